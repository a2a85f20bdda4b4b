"""Lengths of documents, counted."""

import statistics

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stages.shards.lengths import Lengths, table

LENGTHS = st.lists(st.integers(1, 5000), max_size=40)


def counted(lengths: list[int], at_a_time: int = 7) -> Lengths:
    result = Lengths()
    for i in range(0, len(lengths), at_a_time):
        result.add(np.array(lengths[i : i + at_a_time], np.int64))
    return result


@given(LENGTHS)
def test_median_and_longest_are_those_of_the_list(lengths: list[int]) -> None:
    result = counted(lengths)
    assert result.longest() == max(lengths, default=None)
    assert result.median() == (statistics.median_low(lengths) if lengths else None)


@given(LENGTHS, LENGTHS)
def test_the_table_counts_each_document_in_its_power_of_two(
    train: list[int], validation: list[int]
) -> None:
    text = table({"train": counted(train), "validation": counted(validation)})
    header, *rows = [line.split(",") for line in text.splitlines()]
    assert header == ["log2_tokens", "tokens", "train", "validation"]
    longest = max([0, *train, *validation])
    assert len(rows) == longest.bit_length()
    for number, row in enumerate(rows):
        low = 2**number
        inside = [sum(low <= n < 2 * low for n in lengths) for lengths in (train, validation)]
        assert [int(cell) for cell in row] == [number, low, *inside]
