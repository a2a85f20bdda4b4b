"""Which tokens step k reads: a pure function of (seed, step).

Any step's batch can be computed directly, so resuming needs no loader state, any number of
processes sees the same batches, and "what was in step k?" has an answer (``python -m
stages.train.batch``).
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stages.corpus import TokenStream
from stages.scoring import IGNORED, document_numbers, to_predict

LINES_SHOWN = 20


@dataclass(frozen=True)
class Batch:
    """Some sequences of a step, ready for the network. Shapes are (sequences, seq_len).

    ``labels`` are the tokens that follow ``inputs``, IGNORED where nothing is to be learnt;
    ``documents`` numbers the document of each input within its sequence (None: they are not kept
    apart). ``first`` is the place of the first sequence in the step.
    """

    inputs: Tensor
    labels: Tensor
    documents: Tensor | None
    first: int

    @property
    def supervised(self) -> int:
        """Number of labels to be learnt."""
        return int((self.labels != IGNORED).sum())

    def split(self, size: int) -> "list[Batch]":
        """The same in batches of ``size`` sequences."""
        count = len(self.inputs)
        documents = [None] * count if self.documents is None else self.documents.split(size)
        parts = zip(self.inputs.split(size), self.labels.split(size), documents, strict=False)
        return [Batch(*part, self.first + i * size) for i, part in enumerate(parts)]

    def to(self, device: torch.device) -> "Batch":
        """The same on ``device``; from pinned memory the copy runs beside the computation."""
        if device.type == "cpu":
            return self
        moved = [
            None if tensor is None else _pinned(tensor, device).to(device, non_blocking=True)
            for tensor in (self.inputs, self.labels, self.documents)
        ]
        return Batch(moved[0], moved[1], moved[2], self.first)  # type: ignore[arg-type]


def _pinned(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.pin_memory() if device.type == "cuda" else tensor


class DataOrder:
    """Windows of ``seq_len`` predictions, without padding, shuffled anew for each epoch.

    A window is as long as the model's context and begins anywhere in a document; within an epoch
    every window is read once. What is left over at the ends of the stream, less than one window,
    differs from epoch to epoch.
    """

    def __init__(
        self,
        stream: TokenStream,
        seq_len: int,
        sequences_per_step: int,
        seed: int,
        assistant_only: bool,
        document_mask: bool = False,
    ) -> None:
        """``assistant_only`` takes the labels of all other turns out; ``document_mask`` numbers
        documents. Raises ValueError if the stream is shorter than one window."""
        self.stream, self.seq_len, self.seed = stream, seq_len, seed
        self.sequences_per_step, self.assistant_only = sequences_per_step, assistant_only
        self.document_mask = document_mask
        self.windows_per_epoch = (len(stream) - 1) // seq_len
        if self.windows_per_epoch < 1:
            raise ValueError(f"{len(stream)} tokens are fewer than one sequence of {seq_len} + 1")
        self._epoch, self._starts = -1, np.zeros(0, np.int64)

    def steps(self, epochs: float) -> int:
        """Number of steps that read ``epochs`` epochs, the last one perhaps into the next."""
        return max(1, int(np.ceil(epochs * self.windows_per_epoch / self.sequences_per_step)))

    def starts(self, step: int) -> list[int]:
        """First token of each sequence of ``step`` (from 0)."""
        first = step * self.sequences_per_step
        return [self._start(first + i) for i in range(self.sequences_per_step)]

    def _start(self, index: int) -> int:
        epoch, position = divmod(index, self.windows_per_epoch)
        if epoch != self._epoch:
            random = np.random.default_rng([self.seed, epoch])
            slack = len(self.stream) - 1 - self.windows_per_epoch * self.seq_len
            offset = random.integers(slack + 1)
            self._starts = offset + random.permutation(self.windows_per_epoch) * self.seq_len
            self._epoch = epoch
        return int(self._starts[position])

    def batch(self, step: int, first: int = 0, count: int | None = None) -> Batch:
        """The sequences of ``step`` (default: all; else ``count`` from place ``first`` on)."""
        starts = self.starts(step)[first:][:count]
        tokens = np.empty((len(starts), self.seq_len + 1), np.int64)
        for row, start in enumerate(starts):
            tokens[row] = self.stream.read(start, start + self.seq_len + 1)
        inputs, labels = tokens[:, :-1].copy(), to_predict(tokens[:, 1:], self.stream.roles.bos)
        if self.assistant_only:
            for row, start in enumerate(starts):
                assistant = self.stream.assistant_mask(start + 1, tokens[row, 1:])
                labels[row][~assistant] = IGNORED
        documents = document_numbers(inputs, self.stream.roles.bos) if self.document_mask else None
        return Batch(
            torch.from_numpy(inputs),
            torch.from_numpy(labels),
            None if documents is None else torch.from_numpy(documents),
            first,
        )

    def documents(self, step: int) -> NDArray[np.int64]:
        """Which documents ``step`` reads from: their lines (from 1) in the training split's file.

        Reads the stream once from its beginning.
        """
        found: list[NDArray[np.int64]] = []
        line = position = 0
        for start in sorted(self.starts(step)):
            line += self.stream.count_documents(position, start + 1)
            position = start + 1
            inside = self.stream.count_documents(position, start + self.seq_len)
            found.append(np.arange(line, line + inside + 1))
        return np.unique(np.concatenate(found))


def name_lines(lines: NDArray[np.int64]) -> str:
    """Documents by their lines in the file that ``DataOrder.documents`` counts in."""
    shown = ", ".join(str(line) for line in lines[:LINES_SHOWN])
    more = f" and {len(lines) - LINES_SHOWN} more" if len(lines) > LINES_SHOWN else ""
    return f"lines {shown}{more} of data/conversations/train.jsonl"
