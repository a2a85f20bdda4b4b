"""Parameters, work and storage, from the shape alone."""

from dataclasses import dataclass

from model.config import ModelConfig
from stages.train.params import TrainParams

FLOAT = 4  # bytes: weights, gradients and moments are float32


@dataclass(frozen=True)
class Parameters:
    """Numbers of weights by part; a tied matrix counts once, as the embedding."""

    embedding: int
    attention: int
    feed_forward: int
    norms: int
    head: int
    neurons: int  # rows of the blocks' matrices; in no sum

    @property
    def total(self) -> int:
        return self.embedding + self.attention + self.feed_forward + self.norms + self.head

    @property
    def blocks(self) -> int:
        """Matrices of the blocks: what Muon has, and the usual size "without embeddings"."""
        return self.attention + self.feed_forward


def parameters(config: ModelConfig) -> Parameters:
    """The weights of ``config`` by part."""
    heads = (2 * config.num_heads + 2 * config.kv_heads) * config.head_dim
    norms = 2 * config.d_model + (2 * config.head_dim if config.qk_norm else 0)
    table = config.vocab_size * config.d_model
    projected = (config.num_heads + 2 * config.kv_heads) * config.head_dim
    return Parameters(
        embedding=table,
        attention=config.num_layers * heads * config.d_model,
        feed_forward=config.num_layers * 3 * config.d_model * config.d_ff,
        norms=config.num_layers * norms + config.d_model,
        head=0 if config.tie_embeddings else table,
        neurons=config.num_layers * (projected + 2 * config.d_model + 2 * config.d_ff),
    )


def optimizer_bytes(of: Parameters, train: TrainParams) -> int:
    """The optimisers' state: two moments a weight, or Muon's of a matrix in a block, which are
    one a weight and one a row."""
    moments = 2 * of.total - (of.blocks - of.neurons if train.optimizer == "muon" else 0)
    return FLOAT * moments


@dataclass(frozen=True)
class Disk:
    """Bytes that a run takes. DVC keeps data and model twice: in the workspace and in its cache."""

    data: int
    model: int
    checkpoints: int

    @property
    def total(self) -> int:
        return 2 * self.data + 2 * self.model + self.checkpoints


def disk(of: Parameters, train: TrainParams, data: int, keep: int) -> Disk:
    """``keep`` saves, and the one being written, hold weights, optimiser and the best weights."""
    save = FLOAT * 2 * of.total + optimizer_bytes(of, train)
    common = save if train.schedule == "wsd" else 0
    return Disk(data, FLOAT * of.total, (keep + 1) * save + common)
