"""A compiled training repeats to the byte, computes what an eager one does, and compiles once."""

import csv
import json
import os
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo
from torch import Tensor

from stages.corpus import TokenStream
from stages.errors import SettingsError
from stages.scoring import score
from stages.train import compiling
from stages.train.compiling import check_compiler, compile_network, keep_kernels
from stages.train.data_order import DataOrder
from stages.train.loss import TrainingLoss
from stages.train.update import Updater
from tests.builders import (
    call_stage,
    document_stream,
    error_lines,
    random_documents,
    run_stage,
    tiny_model,
    torch_settings_kept,
    train_params,
)
from tests.train.worlds import make_updater, outputs, prepare

SMALL = {
    "model.num_layers": 1,
    "train.grad_accum_steps": 1,
    "train.mixed_precision": "bf16",
    "train.document_mask": True,
}
COMPILED = {**SMALL, "train.compile": True}


def history(root: Path) -> list[dict[str, float]]:
    with (root / "metrics/history.csv").open(encoding="utf-8") as file:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]


def run_compiled(data: Path, root: Path, kernels: Path, changes: dict[str, Any]) -> Path:
    prepare(data, root, {**COMPILED, **changes})
    environment = {"TORCHINDUCTOR_CACHE_DIR": str(kernels)}
    # Of compiling from nothing on a machine that others use too.
    code, stderr = run_stage("train", root, environment=environment, seconds=1200)
    assert code == 0, stderr
    assert "recompil" not in stderr
    return root


def test_a_compiled_run_repeats_to_the_byte_and_learns_as_an_eager_one(
    data: Path, tmp_path: Path
) -> None:
    first, second = (
        run_compiled(data, tmp_path / name, tmp_path / "kernels", {}) for name in ("a", "b")
    )
    assert outputs(first) == outputs(second)
    eager = prepare(data, tmp_path / "eager", SMALL)
    call_stage("train", eager)
    for ours, theirs in zip(history(first), history(eager), strict=True):
        assert ours["step"] == theirs["step"]
        assert ours["lr"] == theirs["lr"]
        for name in ("train_loss", "val_loss"):
            assert ours[name] == pytest.approx(theirs[name], rel=0.02)
    local = json.loads((first / "metrics/train.local.json").read_text(encoding="utf-8"))
    assert local["forward_ms"] > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"train.mixed_precision": False, "train.activation_checkpointing": "full"},
        {"train.activation_checkpointing": "selective", "train.document_mask": False},
        {"runtime.processes": 2},
        {"runtime.processes": 2, "runtime.parallel": "fsdp"},
        {"train.optimizer": "muon"},
    ],
)
def test_compiled_anew_it_repeats_too(data: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    first, second = (
        run_compiled(data, tmp_path / name, tmp_path / f"{name}-kernels", changes)
        for name in ("a", "b")
    )
    assert outputs(first) == outputs(second)


@pytest.fixture
def _fresh_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A compiler that knows nothing yet, and forgets in the end; algorithms as in a stage."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "kernels"))
    torch._dynamo.reset()
    with torch_settings_kept():
        torch.use_deterministic_algorithms(True, warn_only=True)
        yield
    torch._dynamo.reset()


def losses(
    update: Updater, network: TrainingLoss, order: DataOrder, stream: TokenStream, compiled: bool
) -> list[float]:
    """Training losses of some steps with validations between; the first two may compile."""
    result = []
    model = network.model
    for step in range(6):
        with torch._dynamo.config.patch(error_on_recompile=compiled and step >= 2):
            result.append(update(step, order.batch(step), 1.0).nats)
            if step % 2:
                with torch.compiler.set_stance("force_eager"):
                    nats_of = partial(network, per_token=True)
                    result.append(score(model, stream, 150, nats_of).nats)
    return result


@pytest.mark.usefixtures("_fresh_compiler")
def test_steps_after_the_first_never_compile_and_compute_what_eager_ones_do(
    tmp_path: Path,
) -> None:
    stream = document_stream(tmp_path, random_documents(40, 5))
    params = train_params(batch_size=4, grad_accum_steps=2)
    runs: list[list[float]] = []
    weights: list[list[Tensor]] = []
    for compiled in (False, True):
        model = tiny_model(num_layers=1, seq_len=16)
        update = make_updater(model, params)
        network = update.network
        assert isinstance(network, TrainingLoss)
        if compiled:
            compile_network(network, by_block=False)
        order = DataOrder(stream, 16, 8, 1, False)
        runs.append(losses(update, network, order, stream, compiled))
        weights.append([p.detach() for p in model.parameters()])
    assert runs[1] == pytest.approx(runs[0], rel=1e-4)
    for ours, theirs in zip(*weights, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("home", ["plain", "My Documents"])
def test_kernels_are_kept_where_the_compiler_can_find_them(
    home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / home))
    keep_kernels()
    chosen = os.environ["TORCHINDUCTOR_CACHE_DIR"]
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    assert chosen.startswith(str(tmp_path)) == (home == "plain")
    assert not any(character.isspace() for character in chosen)


@pytest.mark.parametrize("spaced", ["TORCHINDUCTOR_CACHE_DIR", "the folder of torch"])
def test_a_path_with_a_space_that_the_compiler_does_not_take_is_named(
    spaced: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    check_compiler(torch.device("cpu"))
    if spaced.isupper():
        monkeypatch.setenv(spaced, "/home/me/My Documents")
    else:
        monkeypatch.setattr(torch, "__path__", ["/home/me/My Documents/torch"])
    with pytest.raises(SettingsError, match=rf"train\.compile: {spaced} has a space"):
        check_compiler(torch.device("cpu"))


@pytest.mark.parametrize("lacks", ["a C compiler", "Python's headers"])
def test_on_a_gpu_what_triton_needs_is_looked_for(
    lacks: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = torch.device("cuda")
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr("torch.utils._triton.has_triton", lambda: True)
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    headers = tmp_path / "Python.h"
    headers.touch()
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    check_compiler(gpu)
    if lacks == "a C compiler":
        monkeypatch.setattr("shutil.which", lambda name: None)
    else:
        headers.unlink()
    with pytest.raises(SettingsError, match=rf"train\.compile: this machine lacks {lacks}"):
        check_compiler(gpu)


def test_a_machine_without_a_compiler_is_told_in_one_line_before_training(
    data: Path, tmp_path: Path
) -> None:
    root = prepare(data, tmp_path / "root", COMPILED)
    nothing = {"CXX": "/nonexistent", "PATH": ""}
    code, stderr = run_stage("preflight", root, environment=nothing)
    assert code == 2, stderr
    (line,) = error_lines(stderr)
    assert "train.compile: this machine lacks a C++ compiler" in line
    assert line.endswith("(exit code 2)")
    assert not (root / "data/preflight.txt").exists()
    assert run_stage("preflight", root)[0] == 0


def test_what_a_killed_compiler_left_half_written_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch would open it for ever after: "file too short"."""
    monkeypatch.setattr(compiling, "LINKING_SECONDS", 0.3)
    monkeypatch.setenv(compiling.CACHE, str(tmp_path))
    library = Path(torch._C.__file__)
    whole, cut, empty, zeros = (tmp_path / f"ab/{name}.so" for name in ("w", "c", "e", "z"))
    whole.parent.mkdir()
    shutil.copyfile(library, whole)
    cut.write_bytes(library.read_bytes()[: library.stat().st_size // 2])
    empty.touch()
    zeros.write_bytes(bytes(1000))
    compiling.keep_kernels()
    assert list(tmp_path.rglob("*.so")) == [whole]


def test_what_another_run_is_linking_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(compiling.CACHE, str(tmp_path))
    library = tmp_path / "linking.so"
    library.touch()
    linker = threading.Timer(0.3, shutil.copyfile, (torch._C.__file__, library))
    linker.start()
    compiling.keep_kernels()
    linker.join()
    assert library.stat().st_size > 0
