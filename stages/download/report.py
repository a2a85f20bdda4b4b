"""The data report: what became of the rows, and what the kept conversations are like."""

from collections import Counter
from typing import Any

from stages.download.outcomes import Kept
from stages.files import rounded

NAMED_LANGUAGES = 10
MOST_LANGUAGES = 1_000  # told apart: a column that holds something else must not fill memory
_DIGITS = 10  # binary digits in which the median is exact


class Spread:
    """Mean, median and maximum of counts, in memory that does not grow with their number."""

    def __init__(self) -> None:
        self._histogram: Counter[int] = Counter()
        self._number = self._sum = self._largest = 0

    def add(self, count: int) -> None:
        """Adds a count; the median knows it to one part in 2**9 at worst."""
        self._number += 1
        self._sum += count
        if count > self._largest:
            self._largest = count
        shift = max(0, count.bit_length() - _DIGITS)
        self._histogram[count >> shift << shift] += 1

    def report(self) -> dict[str, float]:
        below = 0
        median = 0
        for count, number in sorted(self._histogram.items()):
            below += number
            if 2 * below >= self._number:
                median = count
                break
        mean = self._sum / self._number if self._number else 0.0
        return {"mean": rounded(mean, 4), "median": median, "max": self._largest}


class Languages:
    """How many conversations there are in each language; None is one that is not known."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._others = self._unknown = 0

    def add(self, language: str | None) -> None:
        if language is None:
            self._unknown += 1
        elif language in self._counts or len(self._counts) < MOST_LANGUAGES:
            self._counts[language] += 1
        else:
            self._others += 1

    def report(self) -> dict[str, int]:
        """Of the most frequent ones by name, then of those together that have none here."""
        ordered = sorted(self._counts.items(), key=lambda item: (-item[1], item[0]))
        named = dict(ordered[:NAMED_LANGUAGES])
        others = self._others + sum(number for _, number in ordered[NAMED_LANGUAGES:])
        rest = {"(others)": others, "(unknown)": self._unknown}
        return {**named, **{name: number for name, number in rest.items() if number}}


class Tally:
    """Counts of rows by what became of them, and of the conversations that were kept."""

    def __init__(self) -> None:
        self.read = self.kept = self.malformed = 0
        self.dropped: Counter[str] = Counter()
        self._mended: Counter[str] = Counter()
        self._turns, self._characters = Spread(), Spread()
        self._languages = Languages()

    def keep(self, chosen: Kept) -> None:
        self.kept += 1
        if chosen.mended:
            self._mended.update(chosen.mended)
        self._turns.add(chosen.messages)
        self._characters.add(chosen.characters)
        self._languages.add(chosen.language)

    def report(self) -> dict[str, Any]:
        languages = self._languages.report()
        return {
            "rows": {
                "read": self.read,
                "kept": self.kept,
                "malformed": self.malformed,
                "dropped": dict(sorted(self.dropped.items())),
            },
            "messages_mended": dict(sorted(self._mended.items())),
            "turns": self._turns.report(),
            "characters": self._characters.report(),
            **({"languages": languages} if languages.keys() - {"(unknown)"} else {}),
        }
