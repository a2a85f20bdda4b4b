"""How long the documents of a split are, in tokens."""

from collections import Counter
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from stages.conversations import Split


class Lengths:
    """Counts of lengths, in memory that grows with the number of different ones alone."""

    def __init__(self) -> None:
        self.counts: Counter[int] = Counter()

    def add(self, lengths: NDArray[np.int64]) -> None:
        """Counts some documents."""
        values, counts = np.unique(lengths, return_counts=True)
        for value, count in zip(values.tolist(), counts.tolist(), strict=True):
            self.counts[value] += count

    def longest(self) -> int | None:
        """The length of the longest document; None if there is none."""
        return max(self.counts, default=None)

    def median(self) -> int | None:
        """The length that half of the documents reach (of two, the shorter); None for none."""
        wanted = (self.counts.total() + 1) // 2
        passed = 0
        for length in sorted(self.counts):
            passed += self.counts[length]
            if passed >= wanted:
                return length
        return None

    def by_power_of_two(self) -> Counter[int]:
        """Documents by the exponent of the largest power of two that they reach."""
        powers: Counter[int] = Counter()
        for length, count in self.counts.items():
            powers[length.bit_length() - 1] += count
        return powers


def table(lengths: Mapping[Split, Lengths]) -> str:
    """CSV with a row for each power of two up to the longest document: documents of each split
    that have from so many ``tokens`` up to twice as many."""
    powers = [one.by_power_of_two() for one in lengths.values()]
    rows = [",".join(("log2_tokens", "tokens", *lengths))]
    for exponent in range(max((max(counts, default=-1) for counts in powers), default=-1) + 1):
        values = (exponent, 1 << exponent, *(counts[exponent] for counts in powers))
        rows.append(",".join(map(str, values)))
    return "\n".join(rows) + "\n"
