"""Loss of a model over a stream of tokens, counted alike whatever the batch size.

The stream is cut into windows of ``seq_len``; every token but the first of the stream is predicted
exactly once, from the tokens before it in its window. ``<|bos|>`` is given, not predicted: it
says no more than that a new document begins.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from model.transformer import Transformer
from stages.corpus import Ids, TokenStream

IGNORED = -100  # the label that torch's cross-entropy passes over
# 32 MiB of float32 logits at a time. With 128, an evaluation of the default model took 1.9 GB of
# memory instead of 0.9, and 12.7 s instead of 10.7.
LOGITS_PER_BATCH = 2**23


@dataclass
class Score:
    """Sums over the tokens predicted: all of them, and those of the assistant's turns."""

    nats: float = 0.0
    tokens: int = 0
    assistant_nats: float = 0.0
    assistant_tokens: int = 0

    @property
    def loss(self) -> float:
        """Mean cross-entropy in nats per token."""
        return self.nats / self.tokens

    @property
    def assistant_loss(self) -> float:
        """The same over the assistant's turns."""
        return self.assistant_nats / self.assistant_tokens


@dataclass(frozen=True)
class Window:
    """Inputs, and the tokens that follow each of them as labels; ``assistant`` marks labels."""

    inputs: Ids
    labels: Ids
    assistant: NDArray[np.bool_] = field(repr=False)


def read_window(stream: TokenStream, start: int, seq_len: int) -> Window:
    """The window whose first input is token ``start``: at most ``seq_len`` inputs and labels, those
    IGNORED that are ``<|bos|>``."""
    tokens = stream.read(start, min(start + seq_len + 1, len(stream)))
    labels = tokens[1:]
    assistant = stream.assistant_mask(start + 1, labels)
    return Window(tokens[:-1], to_predict(labels, stream.roles.bos), assistant)


def to_predict(tokens: Ids, bos: int) -> Ids:
    """``tokens`` as labels: IGNORED where they are ``bos``, the id of ``<|bos|>``."""
    return np.where(tokens == bos, IGNORED, tokens)


def spans(stream: TokenStream, seq_len: int, limit: int | None = None) -> list[tuple[int, int]]:
    """Start and length of neighbouring windows over the first ``limit`` predictions (or all)."""
    last = len(stream) - 1 if limit is None else min(limit, len(stream) - 1)
    return [(start, min(seq_len, last - start)) for start in range(0, last, seq_len)]


def document_numbers(inputs: Ids, bos: int) -> Ids:
    """The document of each token of ``inputs`` (sequences, length), counted in each sequence.

    A document begins with ``<|bos|>``, which nothing but the packer writes; the tokens before the
    first one are document 0.
    """
    return np.cumsum(inputs == bos, axis=1)


def token_nats(
    model: Transformer,
    inputs: Tensor,
    labels: Tensor,
    documents: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Cross-entropy in nats of each label, float32 of shape (sequences, length); 0 if IGNORED."""
    logits = model(inputs, documents=documents, dtype=dtype)
    nats = F.cross_entropy(
        logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return nats.view(labels.shape)


@dataclass(frozen=True)
class Share:
    """Which part of the work this process does, and how the parts become a whole.

    ``total`` adds a float64 array (given, changed in place) over all processes.
    """

    rank: int = 0
    processes: int = 1
    total: Callable[[NDArray[np.float64]], None] = lambda values: None


@torch.no_grad()  # FSDP could not train with what it gathers in inference mode
def score(
    model: Transformer,
    stream: TokenStream,
    limit: int | None = None,
    nats_of: Callable[[Tensor, Tensor, Tensor | None], Tensor] | None = None,
    share: Share = Share(),
) -> Score:
    """Scores the first ``limit`` predictions of ``stream`` (default: all), in evaluation mode.

    Tokens see those of their own document alone if the model was trained so. ``nats_of`` (default:
    ``token_nats`` of the model in float32) gives the nats of each label. The sums are the same to
    the bit however many processes share the work.
    """
    config, device = model.config, model.embedding.weight.device
    seq_len = config.seq_len
    rows = max(1, LOGITS_PER_BATCH // (seq_len * config.vocab_size))
    nats_of = nats_of or partial(token_nats, model)
    windows = spans(stream, seq_len, limit)
    pieces = [windows[i : i + rows] for i in range(0, len(windows), rows)]
    # nats, tokens, and the same of the assistant's turns, for each batch.
    sums = np.zeros((len(pieces), 4))
    was_training = model.training
    model.eval()
    # Every process makes as many passes, since sharded layers meet in each.
    for first in range(0, len(pieces), share.processes):
        mine = min(first + share.rank, len(pieces) - 1)
        batch = [read_window(stream, start, length) for start, length in pieces[mine]]
        inputs = np.zeros((len(batch), seq_len), np.int64)
        labels = np.full((len(batch), seq_len), IGNORED, np.int64)
        assistant = np.zeros((len(batch), seq_len), np.bool_)
        for row, window in enumerate(batch):
            # A short last window is padded behind: causal attention never looks there.
            inputs[row, : len(window.inputs)] = window.inputs
            labels[row, : len(window.labels)] = window.labels
            assistant[row, : len(window.labels)] = window.assistant
        documents = None
        if config.document_mask:
            documents = torch.from_numpy(document_numbers(inputs, stream.roles.bos)).to(device)
        nats = nats_of(
            torch.from_numpy(inputs).to(device), torch.from_numpy(labels).to(device), documents
        ).cpu().double().numpy()  # fmt: skip
        counted = labels != IGNORED
        spoken = counted & assistant
        if first + share.rank < len(pieces):
            sums[mine] = nats[counted].sum(), counted.sum(), nats[spoken].sum(), spoken.sum()
    share.total(sums)
    model.train(was_training)
    total = Score()
    for nats_sum, tokens, assistant_nats, assistant_tokens in sums.tolist():
        total.nats += nats_sum
        total.tokens += int(tokens)
        total.assistant_nats += assistant_nats
        total.assistant_tokens += int(assistant_tokens)
    return total
