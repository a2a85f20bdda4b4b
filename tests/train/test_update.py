"""One update is that of the whole batch's mean loss, however the batch is divided."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim import SGD, Optimizer

from model.transformer import Transformer
from stages.scoring import IGNORED
from stages.train import update
from stages.train.data_order import Batch
from stages.train.precision import Precision
from stages.train.update import Update, Updater
from tests.builders import FIRST_WORD, STREAM_VOCAB, tiny_model, train_params
from tests.train.worlds import CPU, make_updater

SEQUENCES, SEQ_LEN = 8, 16

LABELS = {
    "all supervised": [SEQ_LEN] * SEQUENCES,
    "uneven": [16, 1, 9, 0, 3, 16, 2, 5],
    "a part without": [16, 16, 0, 0, 3, 0, 7, 16],
    "one token": [0, 0, 0, 0, 0, 1, 0, 0],
}


class Recorder(SGD):
    """Remembers the gradients that it is given and moves nothing."""

    def __init__(self, model: Transformer) -> None:
        super().__init__(model.parameters(), lr=0.0)
        self.param_groups[0]["peak_lr"] = 0.0
        self.gradients: list[Tensor] = []

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        parameters = (p for group in self.param_groups for p in group["params"])
        self.gradients = [p.grad.clone() for p in parameters]


def make_batch(supervised: list[int]) -> Batch:
    """Random tokens; the last ``supervised[i]`` labels of sequence i are to be learnt."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(FIRST_WORD, STREAM_VOCAB, (SEQUENCES, SEQ_LEN + 1), generator=generator)
    labels = tokens[:, 1:].clone()
    for row, count in enumerate(supervised):
        labels[row, : SEQ_LEN - count] = IGNORED
    return Batch(tokens[:, :-1], labels, None, 0)


def gradients(
    model: Transformer, batch: Batch, precision: Precision, **changes: Any
) -> tuple[list[Tensor], Update]:
    """What the optimiser is given in one update."""
    recorder = Recorder(model)
    params = train_params(**{"batch_size": 2, "grad_accum_steps": 4, "grad_clip": 0.0} | changes)
    done = make_updater(model, params, precision, [recorder])(0, batch, 1.0)
    return recorder.gradients, done


def autograd(model: Transformer, batch: Batch) -> tuple[list[Tensor], float]:
    """Gradients of torch's own mean cross-entropy over the whole batch, and its sum."""
    logits = model(batch.inputs, documents=batch.documents).flatten(0, 1)
    nats = F.cross_entropy(logits, batch.labels.flatten(), ignore_index=IGNORED, reduction="sum")
    mean = nats / int((batch.labels != IGNORED).sum())
    return list(torch.autograd.grad(mean, list(model.parameters()))), float(nats.detach())


def global_norm(tensors: list[Tensor]) -> float:
    return float(torch.cat([t.flatten().double() for t in tensors]).norm())


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("supervised", LABELS.values(), ids=LABELS.keys())
@pytest.mark.parametrize("batch_size", [8, 4, 2, 1])
def test_the_gradient_is_that_of_the_mean_over_all_supervised_tokens(
    batch_size: int, supervised: list[int], tied: bool
) -> None:
    model = tiny_model(tie_embeddings=tied)
    batch = make_batch(supervised)
    expected, nats = autograd(model, batch)
    split = {"batch_size": batch_size, "grad_accum_steps": SEQUENCES // batch_size}
    given, done = gradients(model, batch, Precision(False, CPU), **split)
    for gradient, exact in zip(given, expected, strict=True):
        torch.testing.assert_close(gradient, exact, rtol=1e-4, atol=1e-6)
    assert done.tokens == sum(supervised)
    assert done.nats == pytest.approx(nats, rel=1e-5)
    assert done.grad_norm == pytest.approx(global_norm(expected), rel=1e-4)
    assert done.applied


@pytest.mark.parametrize("micro_batch_size", [4, 2, 1])
def test_smaller_passes_give_the_same_gradient(micro_batch_size: int) -> None:
    model = tiny_model()
    batch = make_batch(LABELS["uneven"])
    expected, nats = autograd(model, batch)
    passes: list[int] = []
    model.norm.register_forward_hook(lambda module, inputs, output: passes.append(len(inputs[0])))
    split = {"batch_size": 4, "grad_accum_steps": 2, "micro_batch_size": micro_batch_size}
    given, done = gradients(model, batch, Precision(False, CPU), **split)
    assert passes == [micro_batch_size] * (SEQUENCES // micro_batch_size)
    for gradient, exact in zip(given, expected, strict=True):
        torch.testing.assert_close(gradient, exact, rtol=1e-4, atol=1e-6)
    assert done.nats == pytest.approx(nats, rel=1e-5)


def test_the_gradient_is_that_of_documents_kept_apart() -> None:
    model = tiny_model()
    plain = make_batch(LABELS["all supervised"])
    numbers = torch.arange(SEQ_LEN).div(5, rounding_mode="floor").expand(SEQUENCES, SEQ_LEN)
    batch = Batch(plain.inputs, plain.labels, numbers, 0)
    expected, nats = autograd(model, batch)
    given, done = gradients(model, batch, Precision(False, CPU))
    for gradient, exact in zip(given, expected, strict=True):
        torch.testing.assert_close(gradient, exact, rtol=1e-4, atol=1e-6)
    assert done.nats == pytest.approx(nats, rel=1e-5)
    assert done.nats != pytest.approx(autograd(model, plain)[1], rel=1e-5)


def snapshot(model: Transformer) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def moments(optimizers: Sequence[Optimizer]) -> list[Tensor]:
    return [
        value.clone()
        for optimizer in optimizers
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, Tensor)
    ]


@dataclass
class World:
    """A model after one update, with optimisers that have momentum to lose."""

    model: Transformer
    update: Updater

    def weights(self) -> list[Tensor]:
        return snapshot(self.model)

    def moments(self) -> list[Tensor]:
        return moments(self.update.optimizers)


def trained(setting: Any = False, **changes: Any) -> World:
    model = tiny_model()
    params = train_params(batch_size=2, grad_accum_steps=4, **changes)
    world = World(model, make_updater(model, params, Precision(setting, CPU)))
    before = world.weights()
    assert world.update(0, make_batch(LABELS["uneven"]), 0.1).applied
    assert not same(before, world.weights())
    assert world.moments()
    return world


OPTIMIZER_NAMES = ["adamw", "muon"]


@pytest.mark.parametrize("optimizer", OPTIMIZER_NAMES)
@pytest.mark.parametrize("setting", [False, "bf16", "fp16"])
def test_a_batch_without_a_supervised_token_changes_nothing(setting: Any, optimizer: str) -> None:
    world = trained(setting, optimizer=optimizer)
    scaler = world.update.precision.scaler
    weights, state, scale = world.weights(), world.moments(), scaler.get_scale()
    done = world.update(1, make_batch([0] * SEQUENCES), 0.1)
    assert done == Update(0.0, 0, 0.0, False)
    assert same(weights, world.weights())
    assert same(state, world.moments())
    assert scaler.get_scale() == scale


@pytest.mark.parametrize("optimizer", OPTIMIZER_NAMES)
@pytest.mark.parametrize("setting", [False, "bf16", "fp16"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["weight", "first gradient", "inner gradient"])
def test_a_gradient_that_is_not_finite_is_seen_and_not_applied(
    where: str, bad: float, setting: Any, optimizer: str
) -> None:
    world = trained(setting, optimizer=optimizer)
    inner = world.model.blocks[1].attention.out.weight
    hook = None
    if where == "weight":
        with torch.no_grad():
            world.model.blocks[0].attention.qkv.weight[0, 0] = bad
    else:
        damaged = inner if where == "inner gradient" else world.model.embedding.weight
        hook = damaged.register_hook(lambda grad: torch.full_like(grad, bad))
    weights, state = world.weights(), world.moments()
    batch = make_batch(LABELS["uneven"])
    done = world.update(1, batch, 0.1)
    assert not torch.isfinite(torch.tensor(done.grad_norm))
    assert not done.applied
    assert all(
        torch.equal(a.nan_to_num(), b.nan_to_num())
        for a, b in zip(weights, world.weights(), strict=True)
    )
    assert same(state, world.moments())
    assert all(p.grad is None for p in world.model.parameters())
    if hook is not None:  # the next good batch is learnt from as if nothing had happened
        hook.remove()
        done = world.update(2, batch, 0.1)
        assert torch.isfinite(torch.tensor(done.grad_norm))
        assert done.applied
        assert not same(weights, world.weights())


def test_a_float16_overflow_is_skipped_and_halves_the_scale() -> None:
    world = trained("fp16")
    world.update.precision.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    weights = world.weights()
    done = world.update(1, make_batch(LABELS["uneven"]), 0.1)
    assert not torch.isfinite(torch.tensor(done.grad_norm))
    assert torch.isfinite(torch.tensor(done.nats))
    assert not done.applied
    assert same(weights, world.weights())
    assert world.update.precision.scaler.get_scale() == 2.0**126


@pytest.mark.parametrize("setting", ["bf16", "fp16"])
def test_mixed_precision_keeps_float32_weights_and_about_the_same_gradient(setting: Any) -> None:
    model = tiny_model()
    batch = make_batch(LABELS["uneven"])
    expected, nats = autograd(model, batch)
    given, done = gradients(model, batch, Precision(setting, CPU))
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert {gradient.dtype for gradient in given} == {torch.float32}
    difference = global_norm([a - b for a, b in zip(given, expected, strict=True)])
    assert difference < 0.05 * global_norm(expected)
    assert done.nats == pytest.approx(nats, rel=0.02)


@pytest.mark.parametrize("setting", [False, "fp16"])
@pytest.mark.parametrize("share", [0.25, 0.999, 4.0])
def test_grad_clip_bounds_the_norm_and_keeps_the_direction(setting: Any, share: float) -> None:
    model = tiny_model()
    batch = make_batch(LABELS["uneven"])
    free, done = gradients(model, batch, Precision(setting, CPU), grad_clip=0.0)
    norm = global_norm(free)
    assert done.grad_norm == pytest.approx(norm, rel=1e-5)
    clipped, done = gradients(model, batch, Precision(setting, CPU), grad_clip=share * norm)
    assert done.grad_norm == pytest.approx(norm, rel=1e-5)
    assert global_norm(clipped) == pytest.approx(min(1.0, share) * norm, rel=1e-4)
    for a, b in zip(clipped, free, strict=True):
        torch.testing.assert_close(a, b * min(1.0, share), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("optimizer", OPTIMIZER_NAMES)
def test_the_learning_rate_of_the_step_is_the_one_applied(optimizer: str) -> None:
    moved = []
    for share in (0.01, 0.03):
        model = tiny_model()
        before = snapshot(model)
        params = train_params(
            batch_size=8, grad_accum_steps=1, lr=1e-2, weight_decay=0.0, optimizer=optimizer
        )
        make_updater(model, params)(0, make_batch(LABELS["all supervised"]), share)
        moved.append([b - a for a, b in zip(before, snapshot(model), strict=True)])
    for small, large in zip(*moved, strict=True):
        torch.testing.assert_close(3 * small, large, rtol=2e-2, atol=1e-6)


def test_dropout_depends_on_seed_step_and_place_and_on_no_generator() -> None:
    def gradient(seed: int, step: int, first: int, draws: int = 0) -> list[Tensor]:
        model = tiny_model(dropout=0.4)
        recorder = Recorder(model)
        update = make_updater(model, train_params(batch_size=8), None, [recorder], seed)
        batch = make_batch(LABELS["all supervised"])
        torch.rand(draws)
        update(step, Batch(batch.inputs, batch.labels, None, first), 1.0)
        return recorder.gradients

    one = gradient(1, 3, 0)
    assert same(one, gradient(1, 3, 0, draws=7))
    for other in (gradient(2, 3, 0), gradient(1, 4, 0), gradient(1, 3, 8)):
        assert not same(one, other)


def test_halves_of_an_update_draw_the_dropout_of_the_whole() -> None:
    """What a process of several draws is what one process would have drawn there."""
    batch = make_batch(LABELS["all supervised"])

    def gradient(part: Batch) -> tuple[list[Tensor], Update]:
        return gradients(tiny_model(dropout=0.4), part, Precision(False, CPU))

    whole, done = gradient(batch)
    halves = [gradient(half) for half in batch.split(SEQUENCES // 2)]
    assert done.nats == pytest.approx(sum(half.nats for _, half in halves), rel=1e-6)
    for exact, first, second in zip(whole, *(given for given, _ in halves), strict=True):
        torch.testing.assert_close((first + second) / 2, exact, rtol=1e-4, atol=1e-6)


def test_the_norm_is_that_of_all_elements_in_float64() -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(size, generator=generator) for size in ((3, 5), (7,), (1,), (2, 2, 2))]
    assert update.global_norm(tensors) == pytest.approx(global_norm(tensors), rel=1e-15)
    assert update.global_norm([]) == 0.0
