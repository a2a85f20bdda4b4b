"""The network: causal, without biases, shaped as its config says."""

from typing import Any

import pytest
import torch
from torch import nn

from model.config import ModelConfig, ShapeError, check_heads
from model.transformer import Transformer, rotary_tables, rotate
from tests.model.tiny import ATTENTION, lively_transformer, random_ids, tiny_config


@pytest.mark.parametrize("kv_heads", ATTENTION.values(), ids=ATTENTION)
@pytest.mark.parametrize("qk_norm", [False, True])
def test_changing_a_later_token_changes_no_earlier_logit(kv_heads: int, qk_norm: bool) -> None:
    model = lively_transformer(kv_heads=kv_heads, qk_norm=qk_norm)
    ids = random_ids(2, 12)
    with torch.no_grad():
        before = model(ids)
        for position in range(12):
            changed = ids.clone()
            changed[:, position] = (changed[:, position] + 1) % 97
            after = model(changed)
            torch.testing.assert_close(after[:, :position], before[:, :position], atol=1e-6, rtol=0)
            # Every later position sees the change: the test above is not passed by blindness.
            assert ((after - before).abs().amax(-1)[:, position:] > 1e-4).all()


def test_sequences_of_a_batch_do_not_meet() -> None:
    model = lively_transformer()
    ids = random_ids(3, 10)
    with torch.no_grad():
        together = model(ids)
        alone = torch.cat([model(row[None]) for row in ids])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_the_order_of_tokens_matters() -> None:
    model = lively_transformer(num_layers=1)
    with torch.no_grad():
        one, other = model(torch.tensor([[3, 4, 5]])), model(torch.tensor([[4, 3, 5]]))
    assert (one[:, -1] - other[:, -1]).abs().max() > 1e-3


@pytest.mark.parametrize("tie_embeddings", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("qk_norm", [False, True])
def test_there_is_no_bias_anywhere(tie_embeddings: bool, qk_norm: bool) -> None:
    model = Transformer(tiny_config(tie_embeddings=tie_embeddings, qk_norm=qk_norm))
    assert all(name.endswith(".weight") for name in model.state_dict())
    assert all(m.bias is None for m in model.modules() if isinstance(m, nn.Linear))
    vectors = [name for name, weight in model.named_parameters() if weight.ndim == 1]
    assert all(name.endswith("norm.weight") for name in vectors)


@pytest.mark.parametrize("tie_embeddings", [True, False], ids=["tied", "untied"])
def test_the_number_of_parameters_is_that_of_the_formula(tie_embeddings: bool) -> None:
    model = Transformer(tiny_config(kv_heads=1, qk_norm=True, tie_embeddings=tie_embeddings))
    block = 32 * 32 * 2 + 2 * 32 * 8 + 3 * 32 * 48 + 2 * 32 + 2 * 8
    assert model.num_parameters() == 2 * block + 32 + 97 * 32 * (1 if tie_embeddings else 2)


def test_a_tied_head_is_the_embedding() -> None:
    assert (tied := Transformer(tiny_config())).head.weight is tied.embedding.weight
    untied = Transformer(tiny_config(tie_embeddings=False))
    assert untied.head.weight is not untied.embedding.weight


def test_dropout_acts_in_training_mode_alone() -> None:
    model = lively_transformer(dropout=0.5)
    plain = lively_transformer(dropout=0.0)
    ids = random_ids(2, 8)
    with torch.no_grad():
        expected = plain(ids)
        assert torch.equal(model(ids), expected)
        assert torch.equal(plain.train()(ids), expected)
        torch.manual_seed(0)
        noisy = model.train()(ids)
        assert not torch.allclose(noisy, expected)
        assert not torch.equal(model(ids), noisy)
        torch.manual_seed(0)
        assert torch.equal(model(ids), noisy)


def test_logits_have_a_row_for_each_token_up_to_seq_len() -> None:
    model = lively_transformer()
    with torch.no_grad():
        assert model(random_ids(2, 32)).shape == (2, 32, 97)
        assert model(random_ids(1, 1)).shape == (1, 1, 97)
        assert model.features(random_ids(2, 5)).shape == (2, 5, 32)


def test_an_input_longer_than_seq_len_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="33 tokens are more than the 32 there is room for"):
        lively_transformer()(random_ids(1, 33))


def test_rotation_keeps_lengths_and_depends_on_distance_alone() -> None:
    config = tiny_config(rope_theta=500.0)
    cos, sin = rotary_tables(config)
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, 1, 1, 8, generator=generator) for _ in range(2))

    def score(i: int, j: int) -> float:
        at_i = rotate(q, (cos[i : i + 1], sin[i : i + 1]))
        at_j = rotate(k, (cos[j : j + 1], sin[j : j + 1]))
        torch.testing.assert_close(at_i.norm(), q.norm())
        return float((at_i * at_j).sum())

    assert score(9, 4) == pytest.approx(score(25, 20), abs=1e-5)
    assert score(9, 4) != pytest.approx(score(9, 5), abs=1e-3)
    assert torch.equal(rotate(q, (cos[:1], sin[:1])), q)


# --- the config


@pytest.mark.parametrize(
    ("changes", "key", "reason"),
    [
        ({"vocab_size": 0}, "vocab_size", "0 is not positive"),
        ({"d_model": 0}, "d_model", "0 is not positive"),
        ({"num_layers": -1}, "num_layers", "-1 is not positive"),
        ({"num_heads": 0}, "num_heads", "0 is not positive"),
        ({"kv_heads": 0}, "kv_heads", "0 is not positive"),
        ({"d_ff": 0}, "d_ff", "0 is not positive"),
        ({"seq_len": 0}, "seq_len", "0 is not positive"),
        ({"d_model": 34}, "d_model", "34 is not divisible by num_heads 4"),
        ({"kv_heads": 3}, "num_heads", "4 is not divisible by kv_heads 3"),
        ({"kv_heads": 8}, "num_heads", "4 is not divisible by kv_heads 8"),
        ({"d_model": 12}, "d_model", "rotary positions need pairs"),
        ({"head_dim": 16, "kv_heads": 3}, "num_heads", "4 is not divisible by kv_heads 3"),
        ({"head_dim": 7}, "head_dim", "rotary positions need pairs"),
        ({"head_dim": -8}, "head_dim", "-8 is not positive"),
    ],
)
def test_an_impossible_shape_is_an_error_that_names_the_key(
    changes: dict[str, Any], key: str, reason: str
) -> None:
    with pytest.raises(ShapeError, match=f"^{key}: .*{reason}") as caught:
        tiny_config(**changes)
    assert caught.value.key == key
    assert isinstance(caught.value, ValueError)


def test_heads_that_fit_pass_the_check() -> None:
    check_heads(d_model=768, num_heads=12, kv_heads=4)
    with pytest.raises(ShapeError, match="num_heads"):
        check_heads(d_model=768, num_heads=12, kv_heads=5)


def test_head_dim_is_the_width_over_the_heads_unless_given() -> None:
    assert tiny_config().head_dim == 8
    assert tiny_config(head_dim=16).head_dim == 16
    assert lively_transformer(head_dim=16)(random_ids(1, 4)).shape == (1, 4, 97)


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("tie_embeddings", [True, False])
def test_a_config_survives_the_form_of_hugging_face(qk_norm: bool, tie_embeddings: bool) -> None:
    config = tiny_config(
        kv_heads=1,
        rope_theta=12_345.0,
        qk_norm=qk_norm,
        tie_embeddings=tie_embeddings,
        norm_eps=1e-4,
        head_dim=16,
        bos_id=1,
        end_id=2,
        pad_id=0,
    )
    assert ModelConfig.from_hugging_face(config.to_hugging_face()) == config
