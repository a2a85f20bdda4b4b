"""What both recipes of ``time_to_loss`` share: the data, the clock, and the measure."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from model.config import ModelConfig
from model.transformer import Transformer
from stages.corpus import Manifest, TokenStream, read_manifest
from stages.errors import DataError
from stages.evaluate.measures import bits_per_byte
from stages.progress import Progress
from stages.scoring import score
from stages.train.data_order import Batch, DataOrder
from stages.train.prefetch import Prefetcher
from tests.benchmarks.parley import SEED
from tests.benchmarks.shapes import SHAPES

SHAPE = SHAPES["S"]


@dataclass(frozen=True)
class Corpus:
    """The embedded data as the shards stage leaves it."""

    manifest: Manifest

    @classmethod
    def read(cls) -> "Corpus":
        """Raises DataError for shards of another vocabulary."""
        manifest = read_manifest()
        if manifest["vocab_size"] != SHAPE.vocab_size:
            raise DataError(
                f"data/shards has {manifest['vocab_size']} ids, this benchmark "
                f"{SHAPE.vocab_size}: run `dvc repro shards` with the default params.yaml"
            )
        return cls(manifest)

    def order(
        self, batch_size: int, assistant_only: bool = False, document_mask: bool = False
    ) -> DataOrder:
        """The batches of a training, in Parley's order for either recipe."""
        stream = TokenStream(self.manifest, "train")
        return DataOrder(stream, SHAPE.seq_len, batch_size, SEED, assistant_only, document_mask)

    def bits_per_byte(self, model: nn.Module) -> float:
        """Over the whole validation set, in float32."""
        # `score` needs what Scored has of a Transformer.
        total = score(cast(Transformer, model), TokenStream(self.manifest, "validation"))
        return bits_per_byte(total.nats, self.manifest["splits"]["validation"]["bytes"])


class Scored(nn.Module):
    """Another model in the form in which ``stages.scoring`` measures Parley's."""

    def __init__(self, model: nn.Module, config: ModelConfig, embedding: nn.Module) -> None:
        """``model`` gives logits for ids."""
        super().__init__()
        self.model, self.config, self.embedding = model, config, embedding

    def forward(
        self, ids: Tensor, documents: Tensor | None = None, dtype: torch.dtype | None = None
    ) -> Tensor:
        logits: Tensor = self.model(input_ids=ids).logits
        return logits


def compile_now(loss: Tensor, network: nn.Module) -> None:
    """The backward pass of a first loss, so that compilation is over before the clock starts."""
    loss.backward()
    network.zero_grad(set_to_none=True)


def timed(name: str, order: DataOrder, steps: int, update: Callable[[int, Batch], Any]) -> float:
    """Seconds that ``steps`` updates take, what they wait for their batches included."""
    with (
        Prefetcher(order.batch, steps) as read,
        Progress(name, "step", steps, scale=False) as progress,
    ):
        started = time.perf_counter()
        for step in range(steps):
            update(step, read(step))
            progress.update()
        return time.perf_counter() - started
