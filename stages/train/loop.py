"""The training loop: updates, validations, the best weights and the history."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from stages.errors import DivergedError
from stages.progress import Progress, say
from stages.trackers import Tracker
from stages.train.data_order import Batch
from stages.train.history import Row
from stages.train.meter import Meter
from stages.train.params import TrainParams
from stages.train.schedule import share_of_peak
from stages.train.update import Update

# Updates in a row that may be skipped because a loss or gradient is not finite.
MAX_SKIPPED = 10
# A float16 scaler halves its scale at each, from 2^16 down to where float16 itself ends.
MAX_OVERFLOWS = 40


class Speed(NamedTuple):
    """Tokens per second since the last validation, without the time that it took."""

    step: int
    tokens_per_second: float


class Means:
    """Means since the last validation; losses weigh by supervised tokens."""

    def __init__(self) -> None:
        self.nats = self.norms = self.seconds = 0.0
        self.tokens = self.steps = self.finite = 0

    def add(self, nats: float, tokens: int, grad_norm: float, seconds: float) -> None:
        """Counts an update."""
        self.steps += 1
        self.seconds += seconds
        if math.isfinite(grad_norm) and math.isfinite(nats):  # else it was skipped
            self.finite += 1
            self.nats += nats
            self.tokens += tokens
            self.norms += grad_norm


@dataclass
class TrainState:
    """All that the loop knows besides weights and optimiser: what a checkpoint must hold."""

    step: int = 0
    tokens: int = 0
    best_val_loss: float = math.inf
    best_step: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    means: Means = field(default_factory=Means)
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    history: list[Row] = field(default_factory=list)
    speeds: list[Speed] = field(default_factory=list)


@dataclass(frozen=True)
class Training:
    """What the loop calls.

    ``read`` gives this process's part of a step's batch, ``update`` (step, batch, share of the peak
    learning rate) changes the weights, ``validate`` gives the validation loss, ``weights`` a copy
    of all weights. ``after_step`` is told after each step but the last whether its validation was
    the best so far. ``documents`` names the conversations of a step. ``share`` is the share of the
    machine's peak that a number of tokens per second is.
    """

    read: Callable[[int], Batch]
    update: Callable[[int, Batch, float], Update]
    validate: Callable[[], float]
    weights: Callable[[], dict[str, Tensor]]
    tracker: Tracker
    meter: Meter
    after_step: Callable[["TrainState", bool], None] = lambda state, improved: None
    documents: Callable[[int], str] = lambda step: ""
    share: Callable[[float], float | None] = lambda tokens_per_second: None


def train(
    training: Training,
    params: TrainParams,
    tokens_per_step: int,
    total_steps: int,
    state: TrainState,
    may_overflow: bool = False,
) -> None:
    """Trains from ``state.step`` until ``total_steps``, updating ``state``.

    Validates before the first step, every ``eval_interval`` steps and after the last. An update
    whose loss or gradient is not finite is skipped; after MAX_SKIPPED of them in a row
    (MAX_OVERFLOWS if float16 ``may_overflow``), or when a validation loss is not finite, raises
    DivergedError.
    """
    tracker, meter = training.tracker, training.meter
    if state.step == 0:
        _record(training, state, 0.0, params.rates)
    with Progress("train", "step", total_steps, scale=False, start=state.step) as progress:
        while state.step < total_steps:
            step = state.step
            started = time.perf_counter()
            meter.begin_step(step)
            with meter.part("data"):
                batch = training.read(step)
            share = share_of_peak(step, total_steps, params)
            done = training.update(step, batch, share)
            _count_skipped(done, state, training, may_overflow, params.rates)
            seconds = time.perf_counter() - started
            state.means.add(done.nats, done.tokens, done.grad_norm, seconds)
            state.step += 1
            state.tokens += tokens_per_step
            speed = tokens_per_step / seconds
            loss = done.nats / done.tokens if done.tokens else math.nan
            mfu = training.share(speed)
            of_peak = "" if mfu is None else f", MFU {mfu:.0%}"
            progress.update(note=f"loss {loss:.3f}, {speed:,.0f} tokens/s{of_peak}")
            tracker.log(
                state.step,
                {
                    "train_loss": loss,
                    "lr": params.lr * share,
                    "grad_norm": done.grad_norm,
                    "tokens_per_second": speed,
                    **({} if mfu is None else {"mfu": mfu}),
                },
            )
            improved = False
            if state.step % params.eval_interval == 0 or state.step == total_steps:
                improved = _record(training, state, params.lr * share, params.rates)
                tokens = state.means.steps * tokens_per_step
                state.speeds.append(Speed(state.step, tokens / state.means.seconds))
                state.means = Means()
            if state.step < total_steps:
                with meter.part("save", always=True):
                    training.after_step(state, improved)


def _record(training: Training, state: TrainState, lr: float, rates: str) -> bool:
    """Validates, adds a row to the history and keeps the weights if they are the best, which it
    returns."""
    since = state.means
    with training.meter.part("validation", always=True):
        val_loss = training.validate()
    if not math.isfinite(val_loss):
        raise DivergedError(f"validation loss is {val_loss} after step {state.step}: lower {rates}")
    row = Row(
        step=state.step,
        tokens=state.tokens,
        train_loss=since.nats / since.tokens if since.tokens else None,
        val_loss=val_loss,
        lr=lr,
        grad_norm=since.norms / since.finite if since.finite else None,
    )
    state.history.append(row)
    training.tracker.log(state.step, {"val_loss": val_loss})
    train_loss = f", train loss {row.train_loss:.3f}" if row.train_loss is not None else ""
    say(f"train: step {state.step}, validation loss {val_loss:.3f}{train_loss}")
    if val_loss >= state.best_val_loss:
        return False
    state.best_val_loss, state.best_step = val_loss, state.step
    state.best_weights = training.weights()
    return True


def _count_skipped(
    done: Update, state: TrainState, training: Training, may_overflow: bool, rates: str
) -> None:
    """Counts the updates that were skipped. Raises DivergedError after too many in a row."""
    if done.applied or not done.tokens:
        state.skipped_in_a_row = 0
        return
    state.skipped += 1
    state.skipped_in_a_row += 1
    what = f"loss {done.nats}" if not math.isfinite(done.nats) else f"gradient {done.grad_norm}"
    limit = MAX_OVERFLOWS if may_overflow else MAX_SKIPPED
    if state.skipped_in_a_row > limit:
        raise DivergedError(
            f"{what} at step {state.step + 1}, the {state.skipped_in_a_row}th skipped in a row; "
            f"it reads {training.documents(state.step)}: lower {rates}, raise "
            "train.warmup_steps, or look at these conversations"
        )
    if not may_overflow:
        say(f"train: step {state.step + 1} skipped: {what}")
