"""Repetition and length, against counts made by hand."""

import pytest

from stages.evaluate.replies import describe, distinct, repetition


def test_repetition_is_the_share_of_runs_of_four_that_came_before_in_the_reply() -> None:
    # a b c d, b c d a, c d a b, d a b c, a b c d: one of five has been there.
    assert repetition(["a b c d a b c d"]) == pytest.approx(1 / 5)
    assert repetition(["x x x x x x"]) == pytest.approx(2 / 3)
    assert repetition(["a b c d", "a b c d"]) == 0.0  # of another reply
    assert repetition(["a b c d a b c d", "p q r s"]) == pytest.approx(1 / 6)
    assert repetition(["too short", ""]) is None


def test_distinct_counts_over_all_replies() -> None:
    assert distinct(["a b", "a c"], 1) == pytest.approx(3 / 4)
    assert distinct(["a b a b", "a b"], 2) == pytest.approx(2 / 4)
    assert distinct(["a", ""], 2) is None


def test_replies_are_described_in_words() -> None:
    found = describe(["one two three", "one", "", "a b c d"], 0.75)
    assert found == {
        "replies": 4,
        "mean_words": 2.0,
        "median_words": 2.0,
        "repetition": 0.0,
        "distinct_1": 0.875,
        "distinct_2": 1.0,
        "ended": 0.75,
    }
