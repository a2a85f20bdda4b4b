"""The learning rate rises, then falls to its end, whatever the lengths."""

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from stages.train.params import TrainParams
from stages.train.schedule import SCHEDULES, share_of_peak, steps_without_end
from tests.builders import train_params

LR = 0.01
schedules = st.sampled_from(sorted(SCHEDULES))


def rates(total: int, **changes: Any) -> tuple[list[float], TrainParams]:
    params = train_params(lr=LR, **changes)
    return [params.lr * share_of_peak(step, total, params) for step in range(total)], params


@given(
    schedule=schedules,
    total=st.integers(1, 120),
    warmup=st.integers(0, 120),
    low=st.sampled_from([0.0, LR / 10, LR]),
    decay_fraction=st.floats(0.01, 1.0),
)
def test_it_rises_linearly_then_never_rises_again_and_ends_at_min_lr(
    schedule: str, total: int, warmup: int, low: float, decay_fraction: float
) -> None:
    assume(warmup < total)
    values, _ = rates(
        total,
        warmup_steps=warmup,
        schedule=schedule,
        min_lr=low,
        decay_fraction=decay_fraction,
    )
    for step in range(warmup):
        assert values[step] == pytest.approx(LR * (step + 1) / warmup)
    after = values[warmup:]
    assert all(a >= b for a, b in pairwise(after))
    assert all(low * (1 - 1e-9) <= value <= LR * (1 + 1e-9) for value in after)
    assert values[-1] == pytest.approx(low, abs=1e-12)


@given(schedule=schedules, total=st.integers(1, 50), extra=st.integers(0, 1000))
def test_a_run_shorter_than_its_warm_up_only_rises(schedule: str, total: int, extra: int) -> None:
    values, _ = rates(total, warmup_steps=total + extra, schedule=schedule)
    expected = [LR * (step + 1) / (total + extra) for step in range(total)]
    assert values == pytest.approx(expected)


def test_no_step_stands_still() -> None:
    values, _ = rates(5, warmup_steps=3, schedule="cosine")
    assert values[0] > 0


@pytest.mark.parametrize(
    ("schedule", "share"),
    [("cosine", 0.5), ("linear", 0.5), ("cosine", 0.25), ("linear", 0.25)],
)
def test_cosine_and_linear_pass_through_their_known_points(schedule: str, share: float) -> None:
    total, warmup, low = 104, 4, 0.002
    values, _ = rates(total, warmup_steps=warmup, schedule=schedule, min_lr=low)
    known = {
        ("cosine", 0.5): 0.5,
        ("cosine", 0.25): (1 + 0.5**0.5) / 2,
        ("linear", 0.5): 0.5,
        ("linear", 0.25): 0.75,
    }
    step = warmup + int(share * (total - warmup)) - 1
    assert values[step] == pytest.approx(low + (LR - low) * known[schedule, share])


@pytest.mark.parametrize(("decay_fraction", "decaying"), [(0.2, 20), (0.5, 50), (1.0, 100)])
def test_wsd_is_level_and_then_a_straight_line_down(decay_fraction: float, decaying: int) -> None:
    total, warmup = 110, 10
    values, _ = rates(total, warmup_steps=warmup, schedule="wsd", decay_fraction=decay_fraction)
    level, decay = values[warmup : total - decaying], values[total - decaying :]
    assert level == pytest.approx([LR] * len(level))
    assert decay == pytest.approx([LR * (1 - (i + 1) / decaying) for i in range(decaying)])


@given(
    schedule=schedules,
    total=st.integers(1, 120),
    more=st.integers(0, 300),
    warmup=st.integers(0, 130),
    decay_fraction=st.floats(0.01, 1.0),
    longer_fraction=st.floats(0.01, 1.0),
)
def test_steps_without_end_have_the_rates_of_any_longer_run(
    schedule: str,
    total: int,
    more: int,
    warmup: int,
    decay_fraction: float,
    longer_fraction: float,
) -> None:
    changes: dict[str, Any] = {"schedule": schedule, "warmup_steps": warmup}
    shorter, params = rates(total, decay_fraction=decay_fraction, **changes)
    common = steps_without_end(total, params)
    assert 0 <= common <= total
    longer, longer_params = rates(total + more, decay_fraction=longer_fraction, **changes)
    # A long decay of the longer run may begin before the shorter one's: it then has fewer.
    common = min(common, steps_without_end(total + more, longer_params))
    assert longer[:common] == shorter[:common]


@pytest.mark.parametrize(
    ("schedule", "total", "expected"),
    [
        ("wsd", 110, 60),
        ("wsd", 5, 5),
        ("cosine", 110, 10),
        ("linear", 110, 10),
        ("linear", 5, 5),
    ],
)
def test_the_steps_that_a_longer_run_has_in_common(
    schedule: str, total: int, expected: int
) -> None:
    values, params = rates(total, warmup_steps=10, schedule=schedule, decay_fraction=0.5)
    assert steps_without_end(total, params) == expected
    assert schedule != "wsd" or values[10:expected] == [LR] * max(0, expected - 10)
