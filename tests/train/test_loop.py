"""The loop keeps the best weights, a true history, and stops at what is not finite."""

import csv
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from model.transformer import Transformer
from stages.corpus import TokenStream
from stages.errors import DivergedError
from stages.files import rounded
from stages.scoring import IGNORED, score
from stages.train import loop
from stages.train.data_order import Batch, DataOrder
from stages.train.engine import full_weights
from stages.train.history import Row, write_history
from stages.train.loop import Training, TrainState
from stages.train.meter import Meter
from stages.train.params import TrainParams
from stages.train.precision import Precision
from stages.train.schedule import share_of_peak
from stages.train.update import Update
from tests.builders import document_stream, random_documents, tiny_model, train_params
from tests.train.worlds import CPU, make_updater

NAN, INF = math.nan, math.inf


@dataclass
class Listener:
    """A tracker that remembers what it hears."""

    heard: dict[int, dict[str, float]] = field(default_factory=dict)

    def log(self, step: int, values: dict[str, float]) -> None:
        self.heard.setdefault(step, {}).update(values)

    def finish(self) -> None: ...


@pytest.fixture
def stream(tmp_path: Path) -> TokenStream:
    return document_stream(tmp_path, random_documents(40, 5))


def run_loop(
    stream: TokenStream,
    steps: int,
    validate: Callable[[Transformer], float] | None = None,
    setting: Any = False,
    seed: int = 1,
    dropout: float = 0.1,
    outcomes: Iterable[tuple[float, float, bool]] | None = None,
    **changes: Any,
) -> tuple[Transformer, TrainState, Listener, DataOrder]:
    """Trains a tiny model; ``validate`` is given it (default: its true loss on the stream).

    ``outcomes`` are nats, gradient norm and applied of updates that change nothing instead.
    """
    params = train_params(**changes)
    model = tiny_model(dropout=dropout)
    order = DataOrder(
        stream,
        model.config.seq_len,
        params.sequences_per_step,
        seed,
        params.loss_on == "assistant",
    )
    state, listener = TrainState(), Listener()
    precision = Precision(setting, CPU)
    update: Callable[[int, Batch, float], Update] = make_updater(
        model, params, precision, seed=seed
    )
    if outcomes is not None:
        script = iter(outcomes)

        def update(step: int, batch: Batch, share: float) -> Update:
            nats, norm, applied = next(script)
            return Update(nats, 10, norm, applied)

    training = Training(
        read=order.batch,
        update=update,
        validate=lambda: validate(model) if validate else score(model, stream, 300).loss,
        weights=lambda: full_weights(model),
        tracker=listener,
        meter=Meter(CPU),
        documents=lambda step: f"the documents of {step}",
    )
    loop.train(
        training,
        params,
        params.sequences_per_step * model.config.seq_len,
        steps,
        state,
        may_overflow=precision.scaler.is_enabled(),
    )
    return model, state, listener, order


def copy_of(model: Transformer) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize(
    ("losses", "best"),
    [
        ([5.0, 4.0, 3.0, 2.0, 1.0], 8),
        ([5.0, 4.0, 1.0, 2.0, 3.0], 4),
        ([1.0, 4.0, 3.0, 2.0, 1.5], 0),
        ([5.0, 1.0, 4.0, 1.0, 1.0], 2),  # the earliest of equals
    ],
)
def test_the_best_weights_are_those_of_the_best_validation(
    stream: TokenStream, losses: list[float], best: int
) -> None:
    script = iter(losses)
    seen: list[dict[str, Tensor]] = []

    def validate(model: Transformer) -> float:
        seen.append(copy_of(model))
        return next(script)

    model, state, _, _ = run_loop(stream, 8, validate, eval_interval=2)
    assert (state.best_step, state.best_val_loss) == (best, min(losses))
    for name, value in state.best_weights.items():
        assert torch.equal(value, seen[best // 2][name])
    assert len({tuple(copy["norm.weight"].tolist()) for copy in seen}) == len(losses)
    # Not views of the weights that go on changing.
    with torch.no_grad():
        model.norm.weight.fill_(7.0)
    assert not (state.best_weights["norm.weight"] == 7.0).any()


@pytest.mark.parametrize(
    ("steps", "interval", "expected"),
    [(6, 2, [0, 2, 4, 6]), (7, 3, [0, 3, 6, 7]), (2, 100, [0, 2]), (1, 1, [0, 1])],
)
def test_it_validates_before_the_first_step_at_intervals_and_after_the_last(
    stream: TokenStream, steps: int, interval: int, expected: list[int]
) -> None:
    _, state, _, _ = run_loop(stream, steps, eval_interval=interval)
    assert [row.step for row in state.history] == expected
    assert state.step == steps
    sequence_tokens = 4 * 16
    assert [row.tokens for row in state.history] == [s * sequence_tokens for s in expected]


def rate(step: int, steps: int, params: TrainParams) -> float:
    return params.lr * share_of_peak(step, steps, params)


@pytest.mark.parametrize("loss_on", ["all", "assistant"])
def test_history_holds_means_since_the_row_before(stream: TokenStream, loss_on: str) -> None:
    losses = iter([4.0, 3.5, 3.25, 3.125])
    changes = {"eval_interval": 3, "loss_on": loss_on, "warmup_steps": 2}
    _, state, listener, order = run_loop(stream, 8, lambda _: next(losses), **changes)
    assert [row.val_loss for row in state.history] == [4.0, 3.5, 3.25, 3.125]
    first, *rows = state.history
    assert (first.train_loss, first.grad_norm, first.lr) == (None, None, 0.0)
    before = 0
    for row in rows:
        steps = range(before, row.step)
        counts = [int((order.batch(step).labels != IGNORED).sum()) for step in steps]
        means = [listener.heard[step + 1]["train_loss"] for step in steps]
        norms = [listener.heard[step + 1]["grad_norm"] for step in steps]
        assert len(set(counts)) > 1
        total = sum(count * mean for count, mean in zip(counts, means, strict=True))
        assert row.train_loss == pytest.approx(total / sum(counts))
        assert row.grad_norm == pytest.approx(sum(norms) / len(norms))
        assert row.lr == rate(row.step - 1, 8, train_params(**changes))
        assert listener.heard[row.step]["val_loss"] == row.val_loss
        before = row.step


def test_a_run_repeats_bit_for_bit_and_differs_with_the_seed(stream: TokenStream) -> None:
    first, again, other = (run_loop(stream, 4, seed=seed)[0] for seed in (1, 1, 2))
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True)
    )
    assert not torch.equal(first.embedding.weight, other.embedding.weight)


def test_validation_leaves_no_trace_in_the_weights(stream: TokenStream) -> None:
    """More or fewer validations, and what happens in them, change no later update."""

    def draw(model: Transformer) -> float:
        torch.rand(7)
        return score(model, stream, 100).loss

    often = run_loop(stream, 6, draw, eval_interval=1)[0]
    seldom = run_loop(stream, 6, eval_interval=100)[0]
    for a, b in zip(often.parameters(), seldom.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_division_into_parts_changes_the_weights_by_rounding_alone(
    stream: TokenStream,
) -> None:
    models = [
        run_loop(stream, 4, dropout=0.0, batch_size=size, grad_accum_steps=8 // size)[0]
        for size in (8, 2)
    ]
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


GOOD = (1.0, 1.0, True)
BAD = {
    "loss nan": (NAN, 1.0, False),
    "gradient nan": (1.0, NAN, False),
    "gradient inf": (1.0, INF, False),
}


@pytest.mark.parametrize("setting", [False, "bf16"])
@pytest.mark.parametrize("what", BAD)
def test_a_skipped_update_is_told_counted_and_not_averaged(
    stream: TokenStream, capsys: pytest.CaptureFixture[str], setting: Any, what: str
) -> None:
    outcomes = [(20.0, 1.0, True), BAD[what], (40.0, 3.0, True), BAD[what]]
    _, state, listener, _ = run_loop(
        stream, 4, lambda _: 1.0, setting, outcomes=outcomes, eval_interval=4
    )
    assert (state.step, state.skipped) == (4, 2)
    assert state.history[-1].train_loss == pytest.approx(60.0 / 20)
    assert state.history[-1].grad_norm == pytest.approx(2.0)
    said = capsys.readouterr().err.splitlines()
    assert [line for line in said if "skipped" in line] == [
        f"train: step {step} skipped: {what}" for step in (2, 4)
    ]
    assert set(listener.heard) == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("setting", [False, "bf16"])
@pytest.mark.parametrize("what", BAD)
def test_too_many_skipped_in_a_row_stop_training_and_name_step_and_conversations(
    stream: TokenStream, setting: Any, what: str
) -> None:
    # One good step between them starts the count anew.
    most = loop.MAX_SKIPPED
    last = 2 * most + 4
    outcomes = [GOOD] * 3 + [BAD[what]] * most + [GOOD] + [BAD[what]] * (most + 1)
    reads = f"it reads the documents of {last}: "
    with pytest.raises(DivergedError, match=rf"{what} at step {last + 1}\b.*{reads}"):
        run_loop(stream, 100, lambda _: 1.0, setting, outcomes=outcomes, eval_interval=1000)


def test_a_batch_without_a_label_is_no_skipped_update(stream: TokenStream) -> None:
    steps = 3 * loop.MAX_SKIPPED

    def nothing(step: int, batch: Batch, share: float) -> Update:
        return Update(0.0, 0, 0.0, False)

    state = TrainState()
    training = Training(
        read=DataOrder(stream, 16, 4, 1, False).batch,
        update=nothing,
        validate=lambda: 1.0,
        weights=dict,
        tracker=Listener(),
        meter=Meter(CPU),
    )
    loop.train(training, train_params(eval_interval=1000), 64, steps, state)
    assert (state.step, state.skipped) == (steps, 0)


@pytest.mark.parametrize("loss", [NAN, INF])
@pytest.mark.parametrize(
    ("optimizer", "rates"), [("adamw", "train.lr"), ("muon", "train.lr and train.muon_lr")]
)
def test_a_validation_loss_that_is_not_finite_stops_training(
    stream: TokenStream, optimizer: str, rates: str, loss: float
) -> None:
    losses = iter([3.0, 2.0, loss])
    with pytest.raises(DivergedError, match=rf"validation.*after step 4: lower {rates}$"):
        run_loop(stream, 8, lambda _: next(losses), eval_interval=2, optimizer=optimizer)


def test_weights_that_explode_are_a_divergence_and_not_a_result(stream: TokenStream) -> None:
    with pytest.raises(DivergedError, match="step"):
        run_loop(stream, 20, lr=1e30, warmup_steps=0, grad_clip=0.0)


def test_float16_overflows_are_passed_over_and_not_averaged(
    stream: TokenStream, capsys: pytest.CaptureFixture[str]
) -> None:
    outcomes = [(20.0, 1.0, True), (90.0, INF, False), (40.0, 3.0, True), (NAN, NAN, False)]
    losses = iter([3.0, 2.0])
    _, state, _, _ = run_loop(
        stream, 4, lambda _: next(losses), "fp16", outcomes=outcomes, eval_interval=4
    )
    assert state.history[-1].train_loss == pytest.approx(60.0 / 20)
    assert state.history[-1].grad_norm == pytest.approx(2.0)
    # The scaler looks for its scale so: nothing to tell of each.
    assert "skipped" not in capsys.readouterr().err


def test_endless_float16_overflows_are_a_divergence(stream: TokenStream) -> None:
    # One good step between them starts the count anew.
    most = loop.MAX_OVERFLOWS
    overflow = (1.0, INF, False)
    outcomes = [overflow] * most + [GOOD] + [overflow] * (most + 1)
    with pytest.raises(DivergedError, match=rf"at step {2 * most + 2}\b"):
        run_loop(stream, 1000, lambda _: 1.0, "fp16", outcomes=outcomes, eval_interval=1000)


@pytest.mark.parametrize("setting", [False, "bf16", "fp16"])
def test_every_precision_learns_and_keeps_float32_weights(
    stream: TokenStream, setting: Any
) -> None:
    steps = 25 if setting is False else 12
    model, state, _, _ = run_loop(stream, steps, setting=setting, eval_interval=steps, lr=0.02)
    assert {weight.dtype for weight in model.state_dict().values()} == {torch.float32}
    assert {weight.dtype for weight in state.best_weights.values()} == {torch.float32}
    assert state.best_step == steps
    assert state.best_val_loss < state.history[0].val_loss - 0.2


def test_history_is_written_with_the_digits_that_matter(tmp_path: Path) -> None:
    rows = [
        Row(2, 128, 3.14159265, 2.71828182, 1e-3 / 3, 123456.789),
        Row(4, 256, 2.0, 2.5, 0.0, 1e-7),
    ]
    write_history(rows, tmp_path / "history.csv")
    content = (tmp_path / "history.csv").read_bytes()
    assert b"\r" not in content
    with (tmp_path / "history.csv").open(encoding="utf-8") as file:
        read = list(csv.DictReader(file))
    assert list(read[0]) == ["step", "tokens", "train_loss", "val_loss", "lr", "grad_norm"]
    for row, line in zip(rows, read, strict=True):
        assert (int(line["step"]), int(line["tokens"])) == (row.step, row.tokens)
        for name in ("train_loss", "val_loss", "lr", "grad_norm"):
            assert float(line[name]) == rounded(getattr(row, name))
