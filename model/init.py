"""Initialisation of the weights, all in this one place (measured: the log in README.md).

* A matrix inside a block has standard deviation GAIN / sqrt(inputs) (LeCun et al. 1998): the usual
  0.02 at a width of 1,200, and more in narrow models, which learn slowly from 0.02.
* The two that write to the residual stream are far smaller, so that a block begins close to the
  identity (Zhang et al. 2019), and smaller still by sqrt(2 * num_layers), so that depth adds
  nothing (Radford et al. 2019).
* The matrix that makes logits is small enough that the first loss is ln(vocab_size) within 2%.
* The gain of the final norm begins at ``final_gain``, and a tied matrix smaller by as much: the
  first logits are the same, but they move faster from there.
"""

from math import log, sqrt

from torch import nn

from model.config import ModelConfig

GAIN = 0.68
RESIDUAL_GAIN = 0.1
EMBEDDING_STD = 0.02
LARGEST_FINAL_GAIN = 4.0
# Below this a tied embedding is no longer large against the epsilon of the norm that reads it.
SMALLEST_TIED_STD = 0.009
LEAST_OWN_LOGIT = 0.3  # of some dozen ids: at 0 all weights and gradients were 0


def init_weights(model: nn.Module, config: ModelConfig) -> None:
    """Draws all matrices from torch's global generator, in the order of the modules."""
    for name, weight in model.named_parameters():
        if weight.ndim >= 2:
            nn.init.normal_(weight, std=_std(name, weight.shape[1], config))
        elif name == "norm.weight":
            nn.init.constant_(weight, final_gain(config))


def final_gain(config: ModelConfig) -> float:
    """What the gain of the norm before the head begins with: 1 to LARGEST_FINAL_GAIN."""
    if not config.tie_embeddings:
        return 1.0
    return max(1.0, min(LARGEST_FINAL_GAIN, _head_std(config) / SMALLEST_TIED_STD))


def _head_std(config: ModelConfig) -> float:
    """Standard deviation of the head's matrix, seen through the final gain.

    Random logits with standard deviation s raise the first loss by s^2 / 2; s is std *
    sqrt(d_model) and may cost 1%. In a tied model a token's own logit is std * d_model besides, as
    long as the hidden state is its embedding; e^logit / vocab_size may cost 0.5%.
    """
    first_loss = log(config.vocab_size)
    std = sqrt(2 * 0.01 * first_loss) / sqrt(config.d_model)
    if config.tie_embeddings:
        own_logit = max(LEAST_OWN_LOGIT, log(0.005 * first_loss * config.vocab_size))
        std = min(std, own_logit / config.d_model)
    return std


def _std(name: str, inputs: int, config: ModelConfig) -> float:
    if name == "embedding.weight":
        return _head_std(config) / final_gain(config) if config.tie_embeddings else EMBEDDING_STD
    if name == "head.weight":  # a tied head is the embedding, and goes by that name
        return min(EMBEDDING_STD, _head_std(config))
    if name.endswith(("attention.out.weight", "feed_forward.down.weight")):
        return RESIDUAL_GAIN / sqrt(inputs) / sqrt(2 * config.num_layers)
    return GAIN / sqrt(inputs)
