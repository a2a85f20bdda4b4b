"""The cache of keys and values changes the speed of generation, never its logits."""

from collections.abc import Iterable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.cache import KVCache
from model.transformer import Transformer
from tests.model.tiny import ATTENTION, lively_transformer, random_ids, tiny_config

LENGTH = 24


def fed_in_parts(model: Transformer, ids: Tensor, sizes: Iterable[int], cache: KVCache) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(part, cache) for part in ids.split(list(sizes), dim=1)], dim=1)


PARTS = {
    "whole": [24],
    "token by token": [1] * 24,
    "chunks of 2": [2] * 12,
    "chunks of 5": [5, 5, 5, 5, 4],
    "chunks of 23": [23, 1],
    "prompt, then tokens": [17] + [1] * 7,
    "tokens, then a chunk": [1, 1, 22],
}


@pytest.mark.parametrize("kv_heads", ATTENTION.values(), ids=ATTENTION)
@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("batch", [1, 3])
def test_cached_logits_are_the_uncached_ones(
    kv_heads: int, qk_norm: bool, parts: str, batch: int
) -> None:
    model = lively_transformer(kv_heads=kv_heads, qk_norm=qk_norm)
    ids = random_ids(batch, LENGTH)
    cache = KVCache(model.config, batch=batch)
    cached = fed_in_parts(model, ids, PARTS[parts], cache)
    with torch.no_grad():
        torch.testing.assert_close(cached, model(ids), atol=1e-5, rtol=0)
    assert cache.length == LENGTH


@settings(max_examples=30)
@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=8), seed=st.integers(0, 1000))
def test_any_division_into_parts_gives_the_same_logits(sizes: list[int], seed: int) -> None:
    model = lively_transformer(seq_len=80)
    ids = random_ids(2, sum(sizes), seed=seed)
    cache = KVCache(model.config, batch=2, capacity=sum(sizes))
    with torch.no_grad():
        expected = model(ids)
    torch.testing.assert_close(fed_in_parts(model, ids, sizes, cache), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kv_heads", ATTENTION.values(), ids=ATTENTION)
def test_the_cache_keeps_kv_heads_heads(kv_heads: int) -> None:
    model = lively_transformer(kv_heads=kv_heads)
    cache = KVCache(model.config, batch=3, capacity=10)
    assert cache.keys.shape == cache.values.shape == (2, 3, kv_heads, 10, 8)
    fed_in_parts(model, random_ids(3, 6), [4, 2], cache)
    filled = cache.keys.abs().sum(dim=(0, 1, 2, 4)) > 0
    assert filled.tolist() == [True] * 6 + [False] * 4
    assert cache.keys.shape == (2, 3, kv_heads, 10, 8)


def test_the_cache_has_room_for_seq_len_tokens_by_default() -> None:
    cache = KVCache(tiny_config())
    assert (cache.capacity, cache.length, cache.keys.shape[1]) == (32, 0, 1)
    fed_in_parts(lively_transformer(), random_ids(1, 32), [31, 1], cache)
    assert cache.length == 32


def test_a_capacity_above_seq_len_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="capacity 33 is above the model's seq_len 32"):
        KVCache(tiny_config(), capacity=33)


@pytest.mark.parametrize(("first", "second"), [(11, 0), (10, 1), (4, 7)])
def test_more_tokens_than_the_capacity_are_a_value_error(first: int, second: int) -> None:
    model = lively_transformer()
    cache = KVCache(model.config, capacity=10)
    parts = [size for size in (first, second) if size]
    with pytest.raises(ValueError, match="11 tokens are more than the 10 there is room for"):
        fed_in_parts(model, random_ids(1, 11), parts, cache)
    assert cache.length == (first if second else 0)


def test_a_refused_part_leaves_the_cache_usable() -> None:
    model = lively_transformer()
    ids = random_ids(1, 10)
    cache = KVCache(model.config, capacity=10)
    first = fed_in_parts(model, ids[:, :6], [6], cache)
    with pytest.raises(ValueError, match="room"):
        model(random_ids(1, 5), cache)
    second = fed_in_parts(model, ids[:, 6:], [4], cache)
    with torch.no_grad():
        torch.testing.assert_close(torch.cat((first, second), dim=1), model(ids), atol=1e-5, rtol=0)


def test_a_cache_in_half_precision_gives_nearly_the_same_logits() -> None:
    model = lively_transformer()
    ids = random_ids(2, LENGTH)
    cache = KVCache(model.config, batch=2, dtype=torch.bfloat16)
    cached = fed_in_parts(model, ids, [10] + [1] * 14, cache)
    with torch.no_grad():
        torch.testing.assert_close(cached, model(ids), atol=0.1, rtol=0)
