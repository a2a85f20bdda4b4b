"""The numbers of metrics/eval.json follow from sums of nats."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.corpus import SplitCounts
from stages.evaluate.measures import bits_per_byte, measures, report
from stages.scoring import Score


def make_counts(size: int, assistant_size: int) -> SplitCounts:
    return {
        "files": [],
        "tokens": 0,
        "documents": 1,
        "bytes": size,
        "assistant_bytes": assistant_size,
        "text_documents": 0,
    }


def test_a_coin_for_each_bit_is_8_bits_a_byte() -> None:
    assert bits_per_byte(1000 * math.log(256), 1000) == 8.0


@given(st.floats(1e-3, 1e9), st.integers(1, 10**9), st.integers(1, 10**9))
def test_loss_perplexity_and_bits_are_three_views_of_one_sum(
    nats: float, tokens: int, size: int
) -> None:
    result = measures(nats, tokens, size)
    assert result is not None
    assert result["loss"] == pytest.approx(nats / tokens, rel=1e-4)
    assert result["perplexity"] == pytest.approx(math.exp(min(nats / tokens, 700)), rel=1e-4)
    assert result["bits_per_byte"] == pytest.approx(nats / math.log(2) / size, rel=1e-4)
    assert (result["tokens"], result["bytes"]) == (tokens, size)


def test_report_measures_all_turns_the_assistants_and_the_baselines() -> None:
    score = Score(nats=600.0, tokens=200, assistant_nats=100.0, assistant_tokens=50)
    result = report(score, {"uniform": 900.0, "bigram": 700.0}, make_counts(800, 300))
    assert result["loss"] == 3.0
    assert result["assistant"]["loss"] == 2.0
    assert result["assistant"]["bytes"] == 300
    assert result["assistant"]["bits_per_byte"] == bits_per_byte(100.0, 300)
    assert result["baselines"] == {
        "uniform": {"bits_per_byte": bits_per_byte(900.0, 800)},
        "bigram": {"bits_per_byte": bits_per_byte(700.0, 800)},
    }


def test_plain_text_has_no_assistant_to_measure() -> None:
    result = report(Score(nats=600.0, tokens=200), {}, make_counts(800, 0))
    assert "assistant" not in result
    assert result["loss"] == 3.0
