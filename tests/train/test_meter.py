"""The meter's arithmetic is that of hand and paper."""

from typing import Any

import pytest
import torch

from model.config import ModelConfig
from model.flops import flops_per_token
from stages.train import meter
from stages.train.meter import Meter, peak_flops
from tests.train.worlds import CPU


def make_config(**changes: Any) -> ModelConfig:
    values = {
        "vocab_size": 1000,
        "d_model": 64,
        "num_layers": 3,
        "num_heads": 4,
        "kv_heads": 4,
        "d_ff": 128,
        "seq_len": 32,
        **changes,
    }
    return ModelConfig(**values)


@pytest.mark.parametrize("tied", [True, False])
def test_flops_of_a_token_are_those_of_hand(tied: bool) -> None:
    # q, k, v and out; gate, up and down; three layers and the head.
    weights = 3 * (4 * 64 * 64 + 3 * 64 * 128) + 1000 * 64
    assert weights == 186_880
    # Two products a layer of 32 scores with 64 numbers each: 2 FLOPs, forward and twice backward.
    scores = 3 * 2 * 32 * 64
    expected = 6 * weights + 6 * scores
    assert flops_per_token(make_config(tie_embeddings=tied)) == expected == 1_195_008


def test_shared_keys_and_values_cost_less() -> None:
    many, few = (flops_per_token(make_config(kv_heads=heads)) for heads in (4, 1))
    # Three of four heads of keys and values, in each of three layers.
    assert many - few == 6 * 3 * 2 * 64 * 48


def test_longer_sequences_cost_their_attention_alone() -> None:
    short, long = (flops_per_token(make_config(seq_len=length)) for length in (32, 64))
    assert long - short == 12 * 3 * 64 * 32


class Clock:
    """Stands for ``time``: every look at it is told."""

    def __init__(self, *seconds: float) -> None:
        self.seconds = iter(seconds)

    def perf_counter(self) -> float:
        return next(self.seconds)


def test_parts_of_a_step_are_milliseconds_and_the_rest_seconds_in_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Begin and end of: validation, and data, forward and forward of each of two steps, save.
    clock = Clock(0, 3, 10, 10.5, 11, 12, 12, 14, 20, 20.25, 30, 31, 31, 32, 40, 41.234)
    monkeypatch.setattr(meter, "time", clock)
    one = Meter(CPU)
    with one.part("validation", always=True):
        pass
    for step in range(2):
        one.begin_step(step)
        for name in ("data", "forward", "forward"):
            with one.part(name):
                pass
    with one.part("save", always=True):
        pass
    assert one.report() == {
        "validation_seconds": 3.0,
        "data_ms": 375.0,
        "forward_ms": 2500.0,
        "save_seconds": 1.23,
    }


def test_a_part_that_fails_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meter, "time", Clock(1, 3))
    one = Meter(CPU)
    one.begin_step(0)
    with pytest.raises(ZeroDivisionError), one.part("data"):
        1 / 0  # noqa: B018
    assert one.report() == {"data_ms": 2000.0}


def test_on_a_gpu_a_step_now_and_then_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(meter, "time", Clock(*range(100)))
    one = Meter(torch.device("cuda"))
    steps = 2 * meter.STEPS_BETWEEN_MEASURED + 1
    for step in range(steps):
        one.begin_step(step)
        with one.part("forward"):
            pass
        with one.part("save", always=True):
            pass
    assert one.measured_steps == 3
    assert one.report() == {"forward_ms": 1000.0, "save_seconds": float(steps)}


def test_a_run_without_steps_has_a_report() -> None:
    assert Meter(CPU).report() == {}


def test_the_peak_is_what_a_product_reaches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meter, "GEMM_SIZE", 100)
    monkeypatch.setattr(meter, "time", Clock(0, 0, 9, 10, 12, 20, 25, 30, 34, 35))
    assert peak_flops(CPU, torch.float32) == 2 * 100**3 / 2


def test_the_peak_of_a_known_gpu_is_its_makers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    assert peak_flops(torch.device("cuda"), torch.bfloat16) == 989e12


def test_the_measurement_draws_nothing_from_the_runs_generator() -> None:
    torch.manual_seed(3)
    state = torch.random.get_rng_state()
    peak_flops(CPU, torch.float32)
    assert torch.equal(torch.random.get_rng_state(), state)
