"""Optimisers have every parameter once between them, and decay matrices alone."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from model.transformer import Transformer
from stages.train import optimizer
from stages.train.muon import Muon
from stages.train.optimizer import (
    OPTIMIZERS,
    make_optimizers,
    parameter_groups,
    set_learning_rates,
)
from stages.train.params import TrainParams
from tests.builders import tiny_model, train_params

NAMES = sorted(OPTIMIZERS)


def members(optimizers: list[Optimizer]) -> list[nn.Parameter]:
    return [p for one in optimizers for group in one.param_groups for p in group["params"]]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("qk_norm", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_every_parameter_is_in_exactly_one_group(tied: bool, qk_norm: bool, name: str) -> None:
    model = tiny_model(tie_embeddings=tied, qk_norm=qk_norm)
    optimizers = make_optimizers(model, train_params(weight_decay=0.3, optimizer=name))
    grouped = Counter(id(p) for p in members(optimizers))
    assert grouped == Counter(id(p) for p in model.parameters())
    for one in optimizers:
        for group in one.param_groups:
            for parameter in group["params"]:
                assert group["weight_decay"] == (0.3 if parameter.ndim >= 2 else 0.0)


@pytest.mark.parametrize("qk_norm", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_muon_has_the_matrices_of_the_blocks_and_adamw_all_else(tied: bool, qk_norm: bool) -> None:
    model = tiny_model(tie_embeddings=tied, qk_norm=qk_norm, num_layers=3)
    inner, rest = make_optimizers(model, train_params(optimizer="muon"))
    assert isinstance(inner, Muon)
    assert isinstance(rest, AdamW)
    expected = [
        matrix
        for block in model.blocks
        for matrix in (
            block.attention.qkv.weight,
            block.attention.out.weight,
            block.feed_forward.gate_up.weight,
            block.feed_forward.down.weight,
        )
    ]
    assert Counter(map(id, members([inner]))) == Counter(map(id, expected))
    outer = {id(p) for p in members([rest])}
    assert outer >= {id(model.embedding.weight), id(model.head.weight), id(model.norm.weight)}


@pytest.mark.parametrize("name", NAMES)
def test_decay_shrinks_matrices_and_nothing_else(name: str) -> None:
    model = tiny_model()
    params = train_params(weight_decay=0.5, lr=0.1, muon_lr=0.05, optimizer=name)
    optimizers = make_optimizers(model, params)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for one in optimizers:
        one.step()
    for key, parameter in model.named_parameters():
        lr = 0.05 if name == "muon" and key.startswith("blocks.") else 0.1
        shrunk = 1 - lr * 0.5 if parameter.ndim >= 2 else 1.0
        torch.testing.assert_close(parameter.detach(), before[key] * shrunk)


@pytest.mark.parametrize("name", NAMES)
def test_frozen_parameters_stay_as_they_are(name: str) -> None:
    model = tiny_model(tie_embeddings=False)
    frozen = (model.embedding.weight, model.blocks[0].attention.out.weight)
    before = [p.detach().clone() for p in frozen]
    for parameter in frozen:
        parameter.requires_grad_(False)
    optimizers = make_optimizers(model, train_params(weight_decay=0.5, optimizer=name))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.ones_like(parameter)
    for one in optimizers:
        one.step()
    assert all(torch.equal(p, old) for p, old in zip(frozen, before, strict=True))


def test_parameters_are_grouped_by_what_decays() -> None:
    model = tiny_model()
    decaying, others = parameter_groups(list(model.parameters()), 0.1)
    assert {p.ndim for p in decaying["params"]} == {2}  # type: ignore[attr-defined]
    assert {p.ndim for p in others["params"]} == {1}  # type: ignore[attr-defined]
    assert (decaying["weight_decay"], others["weight_decay"]) == (0.1, 0.0)


def test_settings_reach_the_optimiser() -> None:
    (one,) = make_optimizers(tiny_model(), train_params(lr=0.07, betas=[0.8, 0.9]))
    for group in one.param_groups:
        assert (group["lr"], tuple(group["betas"])) == (0.07, (0.8, 0.9))


def test_muon_has_a_learning_rate_of_its_own() -> None:
    params = train_params(optimizer="muon", lr=0.07, muon_lr=0.02, betas=[0.8, 0.9])
    inner, rest = make_optimizers(tiny_model(), params)
    assert {(group["lr"], group["momentum"]) for group in inner.param_groups} == {(0.02, 0.8)}
    assert {(group["lr"], tuple(group["betas"])) for group in rest.param_groups} == {
        (0.07, (0.8, 0.9))
    }


def test_the_schedule_scales_every_rate_from_its_own_peak() -> None:
    optimizers = make_optimizers(tiny_model(), train_params(optimizer="muon", lr=0.4, muon_lr=0.2))
    for share in (0.5, 0.125, 1.0):  # of the peak, and not of the rate before
        set_learning_rates(optimizers, share)
        # Muon's groups: queries, keys and values; gate and up; the rest. AdamW's: with and without
        # weight decay.
        assert [group["lr"] for one in optimizers for group in one.param_groups] == [
            *[0.2 * share] * 3,
            *[0.4 * share] * 2,
        ]


def test_another_optimiser_is_one_entry_in_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    def plain(model: nn.Module, params: TrainParams) -> list[Optimizer]:
        return [SGD(model.parameters(), lr=params.lr)]

    monkeypatch.setitem(optimizer.OPTIMIZERS, "plain", plain)
    model: Transformer = tiny_model()
    params: Any = train_params(lr=0.5).model_copy(update={"optimizer": "plain"})
    (one,) = make_optimizers(model, params)
    assert isinstance(one, SGD)
    set_learning_rates([one], 0.5)
    assert one.param_groups[0]["lr"] == 0.25
