"""The peers' models, and the training step that a user of theirs would write."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import AdamW

from tests.benchmarks.contenders import Step
from tests.benchmarks.shapes import Shape


class MeanLoss(nn.Module):
    """A model and its cross-entropy as one module, so that compiling takes in both."""

    def __init__(self, model: nn.Module, logits_of: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.logits_of = model, logits_of

    def forward(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Mean nats of ``labels`` (-100: not counted)."""
        logits = self.logits_of(inputs).float()
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten())


def transformers_llama(shape: Shape) -> MeanLoss:
    """transformers' LlamaForCausalLM."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.d_model,
        intermediate_size=shape.d_ff,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=shape.seq_len,
        tie_word_embeddings=True,
        use_cache=False,
        attn_implementation="sdpa",
    )
    model = LlamaForCausalLM(config).train()
    return MeanLoss(model, lambda ids: model(input_ids=ids).logits)


def litgpt_llama(shape: Shape) -> MeanLoss:
    """litgpt's GPT in the form of its Llama configs, tied as its pretraining does by choice."""
    from litgpt import GPT, Config

    config = Config(
        block_size=shape.seq_len,
        n_layer=shape.num_layers,
        n_embd=shape.d_model,
        n_head=shape.num_heads,
        n_query_groups=shape.kv_heads,
        vocab_size=shape.vocab_size,
        padded_vocab_size=shape.vocab_size,
        intermediate_size=shape.d_ff,
        mlp_class_name="LLaMAMLP",
        norm_class_name="RMSNorm",
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
    )
    model = GPT(config)
    model.apply(model._init_weights)
    model.transformer.wte.weight = model.lm_head.weight
    return MeanLoss(model, model)


def nanogpt(shape: Shape) -> MeanLoss:
    """nanoGPT's model by way of transformers' GPT-2: the same width, depth, heads and tokens.

    Drawn as nanoGPT draws: standard deviation 0.02, that of projections to the residual stream
    divided by sqrt(2 * layers). It has full attention heads, a feed-forward of 4 d_model, learnt
    positions and, other than nanoGPT's default, biases.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=shape.vocab_size,
        n_positions=shape.seq_len,
        n_embd=shape.d_model,
        n_layer=shape.num_layers,
        n_head=shape.num_heads,
        n_inner=4 * shape.d_model,
        activation_function="gelu",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        initializer_range=0.02,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        use_cache=False,
        attn_implementation="sdpa",
    )
    model = GPT2LMHeadModel(config).train()
    return MeanLoss(model, lambda ids: model(input_ids=ids).logits)


LOSSES: dict[str, Callable[[Shape], MeanLoss]] = {
    "transformers": transformers_llama,
    "litgpt": litgpt_llama,
    "nanogpt": nanogpt,
}


def peer_step(loss_of: nn.Module, compiled: bool, device: torch.device) -> Step:
    """bfloat16 by autocast, fused AdamW, clipping, and the loss read at the end of each step."""
    parameters = list(loss_of.parameters())
    optimizer = AdamW(parameters, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    network = torch.compile(loss_of) if compiled else loss_of

    def step(number: int, inputs: Tensor, labels: Tensor) -> None:
        with torch.autocast(device.type, torch.bfloat16):
            loss = network(inputs, labels)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()

    return step
