"""Counts of the data report: what they say, in memory that does not grow."""

import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.download.report import MOST_LANGUAGES, NAMED_LANGUAGES, Languages, Spread


@settings(max_examples=60)
@given(st.lists(st.integers(0, 3_000_000), min_size=1, max_size=50))
def test_a_spread_has_mean_median_and_maximum(counts: list[int]) -> None:
    spread = Spread()
    for count in counts:
        spread.add(count)
    report = spread.report()
    assert report["max"] == max(counts)
    assert report["mean"] == pytest.approx(statistics.fmean(counts), rel=1e-3)
    median = statistics.median_low(counts)
    assert report["median"] == (median if median < 1024 else pytest.approx(median, rel=2**-9))


def test_a_spread_of_nothing_is_nought() -> None:
    assert Spread().report() == {"mean": 0.0, "median": 0, "max": 0}


def test_a_spread_of_anything_is_small() -> None:
    spread = Spread()
    for count in range(0, 10**7, 97):
        spread.add(count)
    assert len(spread._histogram) < 10_000


def test_languages_are_counted_by_name_the_most_frequent_first() -> None:
    languages = Languages()
    for number in range(NAMED_LANGUAGES + 5):
        for _ in range(number + 1):
            languages.add(f"language {number:02}")
    languages.add(None)
    report = languages.report()
    assert list(report) == [
        *(f"language {number:02}" for number in range(NAMED_LANGUAGES + 4, 4, -1)),
        "(others)",
        "(unknown)",
    ]
    assert report["(others)"] == 1 + 2 + 3 + 4 + 5
    assert report["(unknown)"] == 1


def test_a_column_that_holds_no_languages_does_not_fill_memory() -> None:
    languages = Languages()
    for number in range(10 * MOST_LANGUAGES):
        languages.add(str(number))
    assert sum(languages.report().values()) == 10 * MOST_LANGUAGES
    assert len(languages._counts) == MOST_LANGUAGES
