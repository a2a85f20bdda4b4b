"""The choice of the next token, against the definitions."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from model.sampling import check_sampling, choose, keep_top_k, keep_top_p
from tests.model.tiny import examples

# Multiples of a quarter, so that ties are common.
rows = st.lists(st.integers(-40, 40).map(lambda n: n / 4), min_size=1, max_size=30)


def kept(logits: Tensor) -> list[int]:
    return torch.isfinite(logits).nonzero().flatten().tolist()


@examples(200)
@given(row=rows, k=st.integers(1, 35))
def test_top_k_keeps_the_k_largest_and_what_ties_with_the_last(row: list[float], k: int) -> None:
    logits = torch.tensor(row)
    result = keep_top_k(logits, k)
    last = sorted(row, reverse=True)[min(k, len(row)) - 1]
    expected = [i for i, value in enumerate(row) if value >= last]
    assert kept(result) == expected
    assert torch.equal(result[expected], logits[expected])


@examples(200)
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
    assert choose(logits, 1.0, top_p=p).tolist() == [1, 0]


def test_the_nucleus_of_tied_tokens_is_no_larger_than_needed() -> None:
    assert len(kept(keep_top_p(torch.zeros(10), 0.35))) == 4


@examples(100)
@given(row=rows, top_k=st.none() | st.integers(1, 5), top_p=st.floats(0.01, 1.0))
def test_temperature_zero_takes_the_largest(
    row: list[float], top_k: int | None, top_p: float
) -> None:
    logits = torch.tensor([row, row[::-1]])
    before = torch.get_rng_state()
    result = choose(logits, 0.0, top_k, top_p)
    assert [logits[i, token].item() for i, token in enumerate(result)] == [max(row)] * 2
    assert torch.equal(torch.get_rng_state(), before)


@examples(100)
@given(
    row=rows,
    temperature=st.floats(0, 1e6, exclude_min=True),
    top_k=st.none() | st.integers(1, 5),
    top_p=st.floats(0.01, 1.0),
    seed=st.integers(0, 2**32),
)
def test_a_draw_repeats_with_its_seed_and_stays_among_the_kept(
    row: list[float], temperature: float, top_k: int | None, top_p: float, seed: int
) -> None:
    logits = torch.tensor(row).repeat(4, 1)
    before = torch.get_rng_state()
    first, second = (
        choose(logits, temperature, top_k, top_p, torch.Generator().manual_seed(seed))
        for _ in range(2)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert first.shape == (4,)
    assert torch.equal(first, second)
    if top_k is not None:
        assert set(first.tolist()) <= set(kept(keep_top_k(logits[0], top_k)))


@pytest.mark.parametrize("temperature", [1e-320, 1e-45, 1e-38, 1e-6])
def test_a_tiny_temperature_takes_the_largest(temperature: float) -> None:
    logits = torch.tensor([[3.0, -1.0, 5.0, 4.999]])
    assert choose(logits, temperature).tolist() == [2]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize(("top_k", "top_p"), [(None, 1.0), (3, 1.0), (None, 0.8), (3, 0.9)])
def test_draws_have_the_probabilities_of_their_definition(
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
    count = 20_000
    draws = choose(
        logits.repeat(count, 1), temperature, top_k, top_p, torch.Generator().manual_seed(0)
    )
    frequencies = torch.bincount(draws, minlength=5) / count
    expected_tensor = torch.tensor(expected) / sum(expected)
    assert torch.equal(frequencies > 0, expected_tensor > 0)
    torch.testing.assert_close(frequencies, expected_tensor, atol=0.02, rtol=0)


def test_without_a_generator_draws_follow_the_global_seed() -> None:
    logits = torch.zeros(1, 1000)
    torch.manual_seed(7)
    first = [int(choose(logits, 1.0)) for _ in range(3)]
    torch.manual_seed(7)
    assert [int(choose(logits, 1.0)) for _ in range(3)] == first
    assert [int(choose(logits, 1.0)) for _ in range(3)] != first


def test_half_precision_logits_are_drawn_in_full_precision() -> None:
    logits = torch.tensor([[1.0, 2.0, 0.5, 1.5]]).repeat(50, 1)
    draws = [
        choose(logits.to(dtype), 0.7, generator=torch.Generator().manual_seed(1))
        for dtype in (torch.float32, torch.bfloat16, torch.float16)
    ]
    assert torch.equal(draws[0], draws[1])
    assert torch.equal(draws[0], draws[2])


@pytest.mark.parametrize(
    ("name", "temperature", "top_k", "top_p"),
    [
        ("temperature", -0.1, None, 1.0),
        ("temperature", math.inf, None, 1.0),
        ("temperature", math.nan, None, 1.0),
        ("top_k", 1.0, 0, 1.0),
        ("top_k", 1.0, -3, 1.0),
        ("top_k", 0.0, 0, 1.0),
        ("top_p", 1.0, None, 0.0),
        ("top_p", 1.0, None, 1.01),
        ("top_p", 1.0, None, -0.5),
        ("top_p", 1.0, None, math.nan),
        ("top_p", 0.0, None, 2.0),
    ],
)
def test_a_setting_out_of_range_is_a_value_error_that_names_it(
    name: str, temperature: float, top_k: int | None, top_p: float
) -> None:
    with pytest.raises(ValueError, match=f"^{name} "):
        check_sampling(temperature, top_k, top_p)
    with pytest.raises(ValueError, match=f"^{name} "):
        choose(torch.zeros(1, 4), temperature, top_k, top_p)
