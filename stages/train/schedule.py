"""Learning-rate schedules: pure functions of the progress after warm-up."""

from bisect import bisect_left
from collections.abc import Callable
from math import cos, pi

from stages.train.params import TrainParams


def _cosine(progress: float, params: TrainParams) -> float:
    """Half a cosine from 1 to 0 (Loshchilov & Hutter 2017)."""
    return 0.5 * (1 + cos(pi * progress))


def _linear(progress: float, params: TrainParams) -> float:
    """A straight line from 1 to 0."""
    return 1 - progress


def _wsd(progress: float, params: TrainParams) -> float:
    """Constant, then a straight line to 0 over the last ``decay_fraction`` (Hu et al. 2024)."""
    return min(1.0, (1 - progress) / params.decay_fraction)


# The share of the way from min_lr up to lr, for a progress from 0 to 1.
SCHEDULES: dict[str, Callable[[float, TrainParams], float]] = {
    "cosine": _cosine,
    "linear": _linear,
    "wsd": _wsd,
}


def share_of_peak(step: int, total_steps: int, params: TrainParams) -> float:
    """The learning rates of ``step`` (from 0) of ``total_steps`` as a share of their peaks.

    Rises linearly over ``warmup_steps`` and reaches ``min_lr / lr`` at the last step.
    """
    if step < params.warmup_steps:
        return (step + 1) / params.warmup_steps
    progress = (step + 1 - params.warmup_steps) / max(1, total_steps - params.warmup_steps)
    share = SCHEDULES[params.schedule](min(progress, 1.0), params)
    least = params.min_lr / params.lr
    return least + (1 - least) * share


def steps_without_end(total_steps: int, params: TrainParams) -> int:
    """How many first steps are the same for any larger number of steps in all.

    With ``wsd`` those before the decay; the other schedules stretch with the run from the end of
    the warm-up on.
    """
    warmup = min(params.warmup_steps, total_steps)
    if params.schedule != "wsd":
        return warmup
    after_warmup = range(warmup, total_steps)
    return warmup + bisect_left(
        after_warmup, True, key=lambda step: share_of_peak(step, total_steps, params) < 1
    )
