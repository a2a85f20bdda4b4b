"""The choice of the next token, against the definitions."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.sampling import (
    Sampling,
    choose,
    distribution,
    draw,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    penalise,
    uniform,
)

# Multiples of a quarter, so that ties are common.
rows = st.lists(st.integers(-40, 40).map(lambda n: n / 4), min_size=1, max_size=30)


def kept(logits: Tensor) -> list[int]:
    return torch.isfinite(logits).nonzero().flatten().tolist()


@settings(max_examples=200)
@given(row=rows, k=st.integers(1, 35))
def test_top_k_keeps_the_k_largest_and_what_ties_with_the_last(row: list[float], k: int) -> None:
    logits = torch.tensor(row)
    result = keep_top_k(logits, k)
    last = sorted(row, reverse=True)[min(k, len(row)) - 1]
    expected = [i for i, value in enumerate(row) if value >= last]
    assert kept(result) == expected
    assert torch.equal(result[expected], logits[expected])


@settings(max_examples=200)
@given(row=rows, p=st.floats(0.01, 1.0))
def test_top_p_keeps_the_smallest_set_of_most_probable_tokens_that_reaches_p(
    row: list[float], p: float
) -> None:
    logits = torch.tensor(row)
    result = keep_top_p(logits, p)
    nucleus = kept(result)
    assert torch.equal(result[nucleus], logits[nucleus])
    weights = [math.exp(value) for value in row]
    probabilities = [weight / sum(weights) for weight in weights]
    inside = [probabilities[i] for i in nucleus]
    outside = [value for i, value in enumerate(probabilities) if i not in nucleus]
    rounding = 1e-5
    assert inside
    assert sum(inside) >= p - rounding
    assert sum(inside) - min(inside) < p + rounding  # one fewer would not reach p
    assert max(outside, default=0.0) <= min(inside)


def test_the_nucleus_at_a_known_distribution() -> None:
    logits = torch.tensor([[0.5, 0.25, 0.15, 0.1], [0.1, 0.15, 0.25, 0.5]]).log()
    for p, size in ((0.01, 1), (0.45, 1), (0.55, 2), (0.8, 3), (0.95, 4), (1.0, 4)):
        result = keep_top_p(logits, p)
        assert kept(result[0]) == list(range(size))
        assert kept(result[1]) == list(range(4 - size, 4))


@pytest.mark.parametrize("p", [5e-324, 1e-300, 1e-50, 1e-45, 1e-38])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_tiny_nucleus_is_the_most_probable_token(p: float, dtype: torch.dtype) -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0], [5.0, -1.0, 0.0]], dtype=dtype)
    result = keep_top_p(logits, p)
    assert [kept(row) for row in result] == [[1], [0]]
    sampling = Sampling(temperature=1.0, top_p=p)
    assert [choose(row, sampling, 0.99) for row in logits] == [1, 0]


def test_the_nucleus_of_tied_tokens_is_no_larger_than_needed() -> None:
    assert kept(keep_top_p(torch.zeros(10), 0.35)) == [0, 1, 2, 3]


@settings(max_examples=200)
@given(row=rows, p=st.floats(0, 1))
def test_min_p_keeps_what_has_that_share_of_the_largest_probability(
    row: list[float], p: float
) -> None:
    logits = torch.tensor(row)
    result = keep_min_p(logits, p)
    weights = [math.exp(value - max(row)) for value in row]
    rounding = 1e-5
    inside = kept(result)
    assert torch.equal(result[inside], logits[inside])
    assert all(weights[i] >= p - rounding for i in inside)
    assert all(weights[i] < p + rounding for i in range(len(row)) if i not in inside)
    assert row.index(max(row)) in inside


@settings(max_examples=200)
@given(row=rows, seen=st.lists(st.integers(0, 29)), penalty=st.floats(0.1, 10))
def test_the_repetition_penalty_divides_positive_logits_and_multiplies_negative_ones(
    row: list[float], seen: list[int], penalty: float
) -> None:
    seen = [token for token in seen if token < len(row)]
    expected = [
        (value / penalty if value > 0 else value * penalty) if i in seen else value
        for i, value in enumerate(row)
    ]
    torch.testing.assert_close(penalise(torch.tensor(row), seen, penalty), torch.tensor(expected))


@settings(max_examples=100)
@given(row=rows, top_k=st.none() | st.integers(1, 5), top_p=st.floats(0.01, 1.0))
def test_temperature_zero_takes_the_largest(
    row: list[float], top_k: int | None, top_p: float
) -> None:
    before = torch.get_rng_state()
    token = choose(torch.tensor(row), Sampling(temperature=0, top_k=top_k, top_p=top_p), 0.5)
    assert row[token] == max(row)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_penalty_counts_in_greedy_choice_too() -> None:
    logits = torch.tensor([1.0, 3.0, 2.0])
    assert choose(logits, Sampling(temperature=0, repetition_penalty=2.0), 0.0, [1, 1]) == 2
    assert choose(logits, Sampling(temperature=0, repetition_penalty=2.0), 0.0, [0]) == 1


@pytest.mark.parametrize("temperature", [1e-320, 1e-45, 1e-38, 1e-6])
def test_a_tiny_temperature_takes_the_largest(temperature: float) -> None:
    logits = torch.tensor([3.0, -1.0, 5.0, 4.999])
    assert choose(logits, Sampling(temperature=temperature), 0.999) == 2


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize(("top_k", "top_p"), [(None, 1.0), (3, 1.0), (None, 0.8), (3, 0.9)])
def test_the_distribution_is_that_of_the_definition(
    temperature: float, top_k: int | None, top_p: float
) -> None:
    logits = torch.tensor([1.0, 0.0, 2.0, -1.0, 1.5])
    # Both limits apply to the tempered distribution, top_k first.
    probabilities = (logits / temperature).softmax(0).tolist()
    order = sorted(range(5), key=lambda i: -probabilities[i])[:top_k]
    total, mass, expected = sum(probabilities[i] for i in order), 0.0, [0.0] * 5
    for i in order:
        if mass < top_p * total:
            expected[i] = probabilities[i]
        mass += probabilities[i]
    made = distribution(logits, Sampling(temperature=temperature, top_k=top_k, top_p=top_p))
    torch.testing.assert_close(made, torch.tensor(expected) / sum(expected))


@settings(max_examples=200)
@given(weights=st.lists(st.integers(0, 8), min_size=1, max_size=12), u=st.floats(0, 1))
def test_a_draw_is_where_the_cumulative_sum_passes_the_number(weights: list[int], u: float) -> None:
    if not any(weights) or u == 1:
        return
    token = draw(torch.tensor(weights) / sum(weights), u)
    assert weights[token] > 0
    rounding = 1e-6 * sum(weights)
    assert sum(weights[:token]) <= u * sum(weights) + rounding
    assert sum(weights[: token + 1]) >= u * sum(weights) - rounding


def test_draws_have_the_frequencies_of_their_probabilities() -> None:
    probabilities = torch.tensor([0.4, 0.0, 0.3, 0.2, 0.1])
    count = 20_000
    counts = [0] * 5
    for position in range(count):
        counts[draw(probabilities, uniform(7, position))] += 1
    assert counts[1] == 0
    expected = [count * p for p in probabilities.tolist()]
    chi_square = sum((n - e) ** 2 / e for n, e in zip(counts, expected, strict=True) if e)
    assert chi_square < 16.3  # three degrees of freedom: exceeded once in a thousand seeds


def test_uniform_numbers_are_uniform_and_unlike_for_neighbouring_seeds_and_positions() -> None:
    numbers = [uniform(seed, position) for seed in range(40) for position in range(40)]
    assert len(set(numbers)) == 1600
    assert all(0 <= number < 1 for number in numbers)
    bins = [sum(k / 10 <= number < (k + 1) / 10 for number in numbers) for k in range(10)]
    assert sum((n - 160) ** 2 / 160 for n in bins) < 27.9  # nine degrees of freedom
    rows = torch.tensor(numbers, dtype=torch.float64).view(40, 40)
    for table in (rows, rows.T):  # neighbours in either direction
        pairs = torch.stack((table[:-1].flatten(), table[1:].flatten()))
        assert abs(float(torch.corrcoef(pairs)[0, 1])) < 0.1
    assert uniform(-1, 0) == uniform(2**64 - 1, 0)


def test_half_precision_logits_are_drawn_in_full_precision() -> None:
    logits = torch.tensor([1.0, 2.0, 0.5, 1.5])
    for u in (uniform(1, position) for position in range(50)):
        draws = {
            choose(logits.to(dtype), Sampling(temperature=0.7), u)
            for dtype in (torch.float32, torch.bfloat16, torch.float16)
        }
        assert len(draws) == 1


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_are_a_value_error(value: float, temperature: float) -> None:
    logits = torch.tensor([1.0, value, 2.0])
    with pytest.raises(ValueError, match="not finite numbers: its weights are damaged"):
        choose(logits, Sampling(temperature=temperature), 0.5)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("temperature", value) for value in (-0.1, math.inf, math.nan, "1", None, True)),
        *(("top_k", value) for value in (0, -3, 1.5, "3", False)),
        *(("top_p", value) for value in (0.0, 1.01, -0.5, math.nan, None)),
        *(("min_p", value) for value in (-0.1, 1.1, math.nan, "0")),
        *(("repetition_penalty", value) for value in (0.0, -1, math.inf, math.nan)),
        *(("max_new_tokens", value) for value in (-1, 1.0, None, math.nan)),
        *(("seed", value) for value in (1.5, "1", math.nan)),
        *(("stop", value) for value in ("abc", ["abc"], ("",), (1,), None)),
        *(("logprobs", value) for value in (-1, 2.5, True)),
    ],
)
def test_a_setting_out_of_range_is_a_value_error_that_names_it(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name} "):
        Sampling(**{name: value})


def test_settings_at_the_ends_of_their_ranges_are_taken() -> None:
    Sampling(0, 0, 1, 1, 0, 1e-9, 0, (), 0)
    Sampling(10**9, 1e9, 10**9, 1e-300, 1.0, 1e9, 2**70, ("a", "b"), 100)
