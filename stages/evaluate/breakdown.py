"""Where the loss is: by the length of the context, by message, by role; and how far to trust the
model's own probabilities."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from stages.corpus import Ids, Roles
from stages.evaluate.measures import bits_per_byte
from stages.evaluate.trace import Block, Sums
from stages.files import rounded

BINS = 10  # of confidence, equally wide
SINGLE_TURNS = 8  # later messages are counted together: 9 to 16, 17 to 32, …
MOST_POWERS = 48

Row = dict[str, Any]


def _row(sums: Sums, group: int) -> Row:
    tokens, size = int(sums.tokens[group]), int(sums.bytes[group])
    nats = float(sums.nats[group])
    return {
        "tokens": tokens,
        "loss": rounded(nats / tokens),
        "bits_per_byte": bits_per_byte(nats, size) if size else None,
    }


class ByContext:
    """Loss by the number of tokens that the model saw before: 1, 2, 3 to 4, 5 to 8, …"""

    def __init__(self, sizes: Ids) -> None:
        self._sums = Sums(MOST_POWERS, sizes)

    def see(self, block: Block) -> None:
        # 1: 0, 2: 1, 3 and 4: 2, …; exact, as float64 holds the numbers exactly.
        powers = np.ceil(np.log2(block.context)).astype(np.int64)
        self._sums.add(powers, block)

    def rows(self) -> list[Row]:
        """One for each power of two; ``context`` is the longest of its contexts."""
        found = np.flatnonzero(self._sums.tokens).tolist()
        return [{"context": 2**power, **_row(self._sums, power)} for power in found]


class ByTurn:
    """Loss by the message's place in its conversation, its role token and its end included."""

    def __init__(self, sizes: Ids) -> None:
        self._sums = Sums(SINGLE_TURNS + MOST_POWERS, sizes)

    def see(self, block: Block) -> None:
        turns = np.maximum(block.turn, 1)
        powers = np.ceil(np.log2(turns)).astype(np.int64)
        single = int(np.log2(SINGLE_TURNS))
        group = np.where(turns <= SINGLE_TURNS, turns - 1, SINGLE_TURNS + powers - single - 1)
        self._sums.add(group, block)

    def rows(self) -> list[Row]:
        """One for each message up to the eighth, then for as many again; ``turn`` is the first."""
        rows = []
        for group in np.flatnonzero(self._sums.tokens).tolist():
            last = group + 1
            first = last
            if group >= SINGLE_TURNS:
                last = SINGLE_TURNS * 2 ** (group - SINGLE_TURNS + 1)
                first = last // 2 + 1
            rows.append({"turn": first, "to": last, **_row(self._sums, group)})
        return rows


class ByRole:
    """Loss of the words of each role, of the ends of messages, and of whose turn is next."""

    NAMES = ("system", "user", "assistant", "text")
    END, NEXT = "(end of message)", "(whose turn)"

    def __init__(self, roles: Roles, sizes: Ids) -> None:
        self._roles = roles
        self._sums = Sums(len(self.NAMES) + 2, sizes)

    def see(self, block: Block) -> None:
        group = np.full(len(block.tokens), len(self.NAMES) + 1)
        for number, role in enumerate(self._roles.all_roles):
            group[(block.role == role) & ~block.is_role] = number
        group[block.tokens == self._roles.end] = len(self.NAMES)
        self._sums.add(group, block)

    def rows(self) -> list[Row]:
        """One for each part that the split has."""
        names = (*self.NAMES, self.END, self.NEXT)
        found = np.flatnonzero(self._sums.tokens).tolist()
        return [{"part": names[group], **_row(self._sums, group)} for group in found]


@dataclass(frozen=True)
class Reliability:
    """How sure the model was, and how often it was right: sums by bin of confidence."""

    accuracy: float
    calibration_error: float
    rows: list[Row]


class Calibration:
    """Probability of the most probable token against how often it comes (Guo et al. 2017)."""

    def __init__(self) -> None:
        self._tokens = np.zeros(BINS, np.int64)
        self._confidence = np.zeros(BINS)
        self._right = np.zeros(BINS, np.int64)

    def see(self, block: Block) -> None:
        confidence = block.confidence[block.predicted]
        group = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
        self._tokens += np.bincount(group, minlength=BINS)
        self._confidence += np.bincount(group, confidence, BINS)
        right = block.rank[block.predicted] == 1
        self._right += np.bincount(group[right], minlength=BINS)

    def result(self) -> Reliability:
        """Accuracy, the expected calibration error (Naeini et al. 2015) and the bins' rows.

        The error is the mean over tokens of the distance, in its bin, between mean confidence and
        accuracy: 0 for a model whose probabilities come true.
        """
        total = int(self._tokens.sum())
        distance = np.abs(self._confidence - self._right).sum()
        rows = [
            {
                "confidence": rounded(float(self._confidence[group] / self._tokens[group])),
                "accuracy": rounded(float(self._right[group] / self._tokens[group])),
                "tokens": int(self._tokens[group]),
            }
            for group in np.flatnonzero(self._tokens).tolist()
        ]
        return Reliability(
            accuracy=rounded(float(self._right.sum() / total)),
            calibration_error=rounded(float(distance / total), 4),
            rows=rows,
        )


def table(rows: list[Row]) -> str:
    """The rows as CSV; what has no value is left empty."""
    if not rows:
        return "\n"
    lines = [",".join(rows[0])]
    for row in rows:
        lines.append(",".join("" if value is None else str(value) for value in row.values()))
    return "\n".join(lines) + "\n"
