"""How replies read as text: how long they are and how much they repeat themselves.

Measured in words, so that models with other vocabularies compare, and always beside what people
really said at the same places.
"""

from collections import Counter
from collections.abc import Sequence
from statistics import fmean, median

from stages.files import rounded

REPEATED = 4  # words of what is looked for again within a reply


def ngrams(words: Sequence[str], length: int) -> list[tuple[str, ...]]:
    """All runs of ``length`` words, in order."""
    return [tuple(words[i : i + length]) for i in range(len(words) - length + 1)]


def repetition(texts: Sequence[str], length: int = REPEATED) -> float | None:
    """Share of the runs of four words that stood in the same reply before (seq-rep-4 of Welleck
    et al. 2019), over all replies together; None if none is so long."""
    again = total = 0
    for text in texts:
        counts = Counter(ngrams(text.split(), length))
        total += counts.total()
        again += counts.total() - len(counts)
    return again / total if total else None


def distinct(texts: Sequence[str], length: int) -> float | None:
    """Share of different runs of ``length`` words among all of all replies (Li et al. 2016)."""
    found = [run for text in texts for run in ngrams(text.split(), length)]
    return len(set(found)) / len(found) if found else None


def describe(texts: Sequence[str], ended: float | None) -> dict[str, float | int | None]:
    """The measures of some replies; ``ended`` is the share that came to its end by itself."""
    words = [len(text.split()) for text in texts]

    def short(value: float | None) -> float | None:
        return None if value is None else rounded(value, 4)

    return {
        "replies": len(texts),
        "mean_words": short(fmean(words)) if words else None,
        "median_words": median(words) if words else None,
        "repetition": short(repetition(texts)),
        "distinct_1": short(distinct(texts, 1)),
        "distinct_2": short(distinct(texts, 2)),
        "ended": short(ended),
    }
