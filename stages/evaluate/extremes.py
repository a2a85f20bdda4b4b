"""The conversations of the validation set that the model finds hardest and easiest."""

import heapq
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from stages.corpus import Ids
from stages.evaluate.trace import Block, Floats

HOW_MANY = 8  # of either kind
SHOWN = 320  # tokens of a conversation that are kept to be shown
# Of a handful of words the mean cost says more of the words than of the model.
FEWEST_TOKENS = 32


@dataclass
class Conversation:
    """A conversation's cost, and its first tokens one by one."""

    number: int  # its line in validation.jsonl, from 1
    nats: float = 0.0
    tokens: int = 0
    bytes: int = 0
    ids: list[int] = field(default_factory=list)
    costs: list[float] = field(default_factory=list)  # nats of each id
    ranks: list[int] = field(default_factory=list)

    @property
    def bits_per_byte(self) -> float:
        return float(self.nats / np.log(2) / self.bytes)


class Extremes:
    """Keeps the few hardest and easiest by bits per byte, and sums over the ``clean`` ones.

    ``clean`` says of each conversation, in order, whether it counts; those beyond don't.
    """

    def __init__(self, sizes: Ids, clean: "np.ndarray[tuple[int], np.dtype[np.bool_]]") -> None:
        self._sizes, self._clean = sizes, clean
        self._current, self._document = Conversation(1), 0
        # (difficulty, its line, itself): heaps whose first is the next to be pushed out.
        self._hardest: list[tuple[float, int, Conversation]] = []
        self._easiest: list[tuple[float, int, Conversation]] = []
        self.clean_nats, self.clean_bytes = 0.0, 0

    def see(self, block: Block) -> None:
        if not len(block.tokens):
            return
        begins = np.flatnonzero(np.diff(block.document, prepend=self._document))
        self._document = int(block.document[-1])
        fresh = set(begins.tolist())
        for start, stop in pairwise(sorted({0, *fresh, len(block.tokens)})):
            if start in fresh:
                self._finish()
            keep = slice(start, stop)
            self._add(block.tokens[keep], block.nats[keep], block.rank[keep])

    def _add(self, tokens: Ids, nats: Floats, ranks: Ids) -> None:
        one = self._current
        one.nats += float(nats.sum())
        one.tokens += len(tokens)
        one.bytes += int(self._sizes[tokens].sum())
        room = SHOWN - len(one.ids)
        if room > 0:
            one.ids += tokens[:room].tolist()
            one.costs += nats[:room].tolist()
            one.ranks += ranks[:room].tolist()

    def _finish(self) -> None:
        one, self._current = self._current, Conversation(self._current.number + 1)
        if one.number <= len(self._clean) and self._clean[one.number - 1]:
            self.clean_nats += one.nats
            self.clean_bytes += one.bytes
        if one.bytes and one.tokens >= FEWEST_TOKENS:
            # Of equals the earlier one stays.
            push(self._hardest, (one.bits_per_byte, -one.number, one))
            push(self._easiest, (-one.bits_per_byte, -one.number, one))

    def result(self) -> tuple[list[Conversation], list[Conversation]]:
        """The hardest, hardest first, and the easiest, easiest first; none is in both."""
        self._finish()
        hardest = [one for *_, one in sorted(self._hardest, reverse=True)]
        easiest = [one for *_, one in sorted(self._easiest, reverse=True)]
        numbers = {one.number for one in hardest}
        return hardest, [one for one in easiest if one.number not in numbers]


def push(
    heap: list[tuple[float, int, Conversation]], item: tuple[float, int, Conversation]
) -> None:
    """Adds to a heap of at most HOW_MANY, the smallest going."""
    if len(heap) < HOW_MANY:
        heapq.heappush(heap, item)
    else:
        heapq.heappushpop(heap, item)
