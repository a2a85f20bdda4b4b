"""Initialisation: the first loss is that of a model which knows nothing."""

from math import log, sqrt
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from model.transformer import Transformer
from tests.model.tiny import random_ids, tiny_config


@pytest.mark.parametrize("tie_embeddings", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize(
    ("d_model", "num_heads", "num_layers", "vocab_size", "qk_norm"),
    [
        (32, 1, 1, 263, False),
        (32, 4, 2, 32_000, True),
        (64, 4, 12, 1_000, False),
        (128, 2, 3, 263, True),
        (128, 2, 3, 8_192, False),
        (256, 4, 4, 4_096, True),
        (96, 6, 2, 70_000, False),
        (768, 12, 2, 263, False),
        (768, 12, 1, 16_000, True),
    ],
)
def test_the_first_loss_is_within_two_percent_of_ln_vocab_size(
    d_model: int,
    num_heads: int,
    num_layers: int,
    vocab_size: int,
    qk_norm: bool,
    tie_embeddings: bool,
) -> None:
    config = tiny_config(
        vocab_size=vocab_size,
        d_model=d_model,
        num_layers=num_layers,
        num_heads=num_heads,
        kv_heads=1,
        d_ff=2 * d_model,
        qk_norm=qk_norm,
        tie_embeddings=tie_embeddings,
    )
    torch.manual_seed(0)
    model = Transformer(config)
    ids = random_ids(8, 33, vocab_size)
    with torch.no_grad():
        loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
    assert loss.item() == pytest.approx(log(vocab_size), rel=0.02)


def spreads(**changes: Any) -> dict[str, float]:
    """Standard deviation of each matrix of the first block."""
    torch.manual_seed(0)
    block = Transformer(tiny_config(**changes)).blocks[0]
    return {
        name: weight.std().item() for name, weight in block.named_parameters() if weight.ndim > 1
    }


def test_matrices_into_the_residual_stream_shrink_with_the_root_of_the_depth() -> None:
    shallow, deep = spreads(d_model=128, num_layers=2), spreads(d_model=128, num_layers=8)
    for name, std in shallow.items():
        into_residual = name in ("attention.out.weight", "feed_forward.down.weight")
        assert std / deep[name] == pytest.approx(sqrt(8 / 2) if into_residual else 1, rel=0.05)


def test_a_block_begins_close_to_the_identity() -> None:
    torch.manual_seed(0)
    model = Transformer(tiny_config(d_model=64, d_ff=128))
    x = torch.randn(2, 8, 64)
    added = model.blocks[0](x, (model.cos[:8], model.sin[:8]), None, None) - x
    assert 0 < added.std() < 0.1 * x.std()


def test_matrices_keep_the_scale_of_their_input_at_any_width() -> None:
    narrow, wide = spreads(d_model=64, d_ff=64), spreads(d_model=256, d_ff=256)
    for name, std in narrow.items():
        assert std / wide[name] == pytest.approx(sqrt(256 / 64), rel=0.05), name


def test_matrices_have_mean_zero_and_norms_are_one_but_for_the_gain_of_a_tied_head() -> None:
    torch.manual_seed(0)
    config = tiny_config(d_model=64, d_ff=128, qk_norm=True, tie_embeddings=False)
    for name, weight in Transformer(config).named_parameters():
        if weight.ndim == 1:
            assert torch.equal(weight, torch.ones_like(weight)), name
        else:
            assert weight.mean().abs() < weight.std() / 10, name


@pytest.mark.parametrize(("d_model", "gain"), [(128, 4.0), (64, 4.0), (1024, 1.0)])
def test_a_tied_model_divides_its_first_logits_between_gain_and_matrix(
    d_model: int, gain: float
) -> None:
    torch.manual_seed(0)
    model = Transformer(tiny_config(d_model=d_model, num_layers=1, vocab_size=4096))
    assert torch.equal(model.norm.weight, torch.full((d_model,), gain))
    assert model.embedding.weight.std() >= 0.004


def test_the_global_seed_decides_all_weights() -> None:
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        states.append(Transformer(tiny_config(tie_embeddings=False, qk_norm=True)).state_dict())
    first, same, other = states
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first if "norm" not in name)
