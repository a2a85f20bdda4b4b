"""What no training could do on this machine is said before the last model is touched."""

from pathlib import Path
from typing import Any

import pytest

from tests.builders import build_data, exit_code, tiny_params, write_params


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_data(tmp_path_factory.mktemp("world"))


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"model.d_model": 2**40}, "model.d_model"),
        ({"model.d_ff": 2**50}, "model.d_model"),
        ({"train.batch_size": 10**12}, "train.batch_size"),
        ({"train.grad_accum_steps": 10**30}, "train.batch_size"),
        ({"train.micro_batch_size": 3, "train.batch_size": 8}, "use one of 8, 4, 2, 1"),
        ({"train.micro_batch_size": 4, "train.batch_size": 12}, "use one of 12, 6, 3"),
        ({"train.bf16_weights": True}, "train.bf16_weights: needs mixed_precision"),
        ({"runtime.processes": 3}, "runtime.processes: 3 processes can't share the 4 sequences"),
        ({"runtime.threads": 10**6}, "runtime.threads"),
        ({"model.rope_theta": 1e-300}, "model.rope_theta"),
        ({"train.weight_decay": 1e300}, "train.weight_decay"),
        (
            {"runtime.checkpoint_dir": "params.yaml/x"},
            "runtime.checkpoint_dir: 'params.yaml/x' can't",
        ),
        ({"train.init_from": "no/such/folder"}, "train.init_from: 'no/such/folder' is no folder"),
    ],
)
def test_what_can_not_be_trained_is_one_line(
    world: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], key: str
) -> None:
    write_params(world, tiny_params(changes))
    assert exit_code("preflight", world) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: preflight: ")
    assert error.count("\n") == 1
    assert key in error


def test_what_fits_passes(world: Path) -> None:
    write_params(world, tiny_params({"train.micro_batch_size": 1}))
    assert exit_code("preflight", world) == 0
