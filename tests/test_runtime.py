"""The runtime section decides where to compute, and that results repeat."""

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from stages.errors import SettingsError
from stages.runtime import RuntimeParams, start_torch
from tests.builders import tiny_params, torch_settings_kept

# What this machine has, in the order of preference.
DEVICES = [
    name
    for name, there in (
        ("cuda", torch.cuda.is_available()),
        ("mps", torch.backends.mps.is_available()),
        ("cpu", True),
    )
    if there
]


@pytest.fixture(autouse=True)
def _settings_kept() -> Iterator[None]:
    with torch_settings_kept():
        yield


def runtime(**changes: Any) -> RuntimeParams:
    changes = {f"runtime.{key}": value for key, value in changes.items()}
    return RuntimeParams(**tiny_params(changes)["runtime"])


@pytest.mark.parametrize("device", DEVICES)
def test_a_device_that_is_there_is_taken(device: str) -> None:
    assert start_torch(runtime(device=device)).type == device


@pytest.mark.parametrize("device", [d for d in ("cuda", "mps") if d not in DEVICES])
def test_a_device_that_is_not_there_is_a_settings_error(device: str) -> None:
    with pytest.raises(SettingsError, match=rf"runtime\.device.*{device}"):
        start_torch(runtime(device=device))


def test_auto_takes_the_fastest_device_there_is() -> None:
    assert start_torch(runtime(device="auto")).type == DEVICES[0]


def test_threads_are_set_and_null_leaves_torchs_own_number() -> None:
    torch.set_num_threads(2)
    start_torch(runtime(threads=None))
    assert torch.get_num_threads() == 2
    start_torch(runtime(threads=1))
    assert torch.get_num_threads() == 1


def test_results_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    torch.use_deterministic_algorithms(False)
    start_torch(runtime())
    assert torch.are_deterministic_algorithms_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] in (":4096:8", ":16:8")


def test_on_a_gpu_what_does_not_repeat_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Told to warn alone, torch leaves attention there with gradients that differ from run to
    run."""
    start_torch(runtime())
    assert torch.is_deterministic_algorithms_warn_only_enabled()
    monkeypatch.setattr("stages.runtime._there", lambda name: True)
    assert start_torch(runtime(device="cuda")).type == "cuda"
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
    start_torch(runtime())  # other tests have this process after it
