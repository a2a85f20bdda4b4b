"""The training stage as it is run: repeatable to the byte, and clean when it fails."""

import csv
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from model import load
from stages.errors import DataError, DivergedError
from stages.train.history import Row
from tests.builders import (
    ROOT,
    call_stage,
    error_lines,
    finish,
    start_stage,
)
from tests.train.worlds import outputs, prepare

STARTS = 2  # processes at a time


Result = tuple[Path, int, str]


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Result]:
    """Runs in processes of their own, with dropout: folder, exit code and stderr of each."""
    root = tmp_path_factory.mktemp("runs")
    (root / "wandb").mkdir()
    (root / "site").mkdir()
    # Writing beyond the limit fails as on a full disk.
    (root / "site/sitecustomize.py").write_text(
        "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
    )
    large = {"model.d_model": 64, "model.d_ff": 128, "train.max_steps": 1}
    plans: list[tuple[str, dict[str, Any], list[str], dict[str, str]]] = [
        ("first", {}, [], {"PYTHONHASHSEED": "1"}),
        ("second", {}, ["-X", "importtime"], {"PYTHONHASHSEED": "2"}),
        ("wandb", {"wandb.enabled": True}, [], {"WANDB_DIR": str(root / "wandb")}),
        ("full disk", large, [], {"PYTHONPATH": f"{root / 'site'}{os.pathsep}{ROOT}"}),
    ]
    results = {}
    for begin in range(0, len(plans), STARTS):
        started = [
            (name, start_stage("train", prepare(data, root / name, changes), options, environment))
            for name, changes, options, environment in plans[begin : begin + STARTS]
        ]
        for name, process in started:
            results[name] = (root / name, *finish(process))
    return results


def test_two_runs_give_the_same_bytes(runs: dict[str, Result]) -> None:
    for name in ("first", "second"):
        assert runs[name][1] == 0, runs[name][2]
    first, second = (outputs(runs[name][0]) for name in ("first", "second"))
    assert set(first) >= {"chat/model.safetensors", "chat/config.json", "history.csv", "train.json"}
    assert first == second


def test_the_seed_alone_decides(data: Path, runs: dict[str, Result], tmp_path: Path) -> None:
    for seed in (1, 2):
        root = prepare(data, tmp_path / f"{seed}", {"seed": seed})
        call_stage("train", root)
        ours, first = outputs(root), outputs(runs["first"][0])
        assert {name for name in ours if ours[name] != first[name]} == (
            set() if seed == 1 else {"chat/model.safetensors", "history.csv", "train.json"}
        )


def test_wandb_is_not_imported_when_it_is_off(runs: dict[str, Result]) -> None:
    imported = [line.rpartition("|")[2].strip() for line in runs["second"][2].splitlines()]
    assert "stages.trackers" in imported
    assert [name for name in imported if name.split(".")[0] == "wandb"] == []


def test_wandb_offline_logs_the_run_and_changes_no_byte(runs: dict[str, Result]) -> None:
    root, code, stderr = runs["wandb"]
    assert code == 0, stderr
    assert "W&B is off" not in stderr
    (log,) = (root.parent / "wandb").rglob("*.wandb")
    assert log.stat().st_size
    assert outputs(root) == outputs(runs["first"][0])


def test_the_model_folder_opens_and_holds_what_training_measured(runs: dict[str, Result]) -> None:
    root = runs["first"][0]
    model, tokenizer = load(root / "models/chat")
    assert not model.training
    metrics = json.loads((root / "metrics/train.json").read_text(encoding="utf-8"))
    assert metrics["parameters"] == model.num_parameters()
    assert (metrics["steps"], metrics["tokens"]) == (6, 6 * 2 * 2 * 32)
    assert metrics["best_val_loss"] <= metrics["val_loss"] < metrics["initial_val_loss"]
    manifest = json.loads((root / "data/shards/manifest.json").read_text(encoding="utf-8"))
    config = json.loads((root / "models/chat/config.json").read_text(encoding="utf-8"))
    assert config["tokenizer_sha256"] == manifest["tokenizer_sha256"] == tokenizer.sha256
    weights = load_file(root / "models/chat/model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float32}


def test_the_history_has_a_row_for_each_validation_after_a_step(runs: dict[str, Result]) -> None:
    root = runs["first"][0]
    with (root / "metrics/history.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == list(Row.__dataclass_fields__)
    assert [int(row["step"]) for row in rows] == [2, 4, 6]
    assert all(value for row in rows for value in row.values())
    metrics = json.loads((root / "metrics/train.json").read_text(encoding="utf-8"))
    assert float(rows[-1]["val_loss"]) == metrics["val_loss"]
    assert float(rows[-1]["train_loss"]) == metrics["train_loss"]


def left_behind(root: Path) -> list[str]:
    """Model folders and temporary files that a failed training left."""
    return [
        path.relative_to(root).as_posix()
        for path in root.rglob("*")
        if path.name.endswith(".partial") or path == root / "models/chat"
    ]


def test_a_signal_ends_a_running_training_with_its_code_and_nothing_half_done(
    data: Path, tmp_path: Path
) -> None:
    expected = {signal.SIGTERM: (143, "stopped after step"), signal.SIGINT: (130, "stopped after")}
    started = []
    for number in expected:
        changes = {"train.max_steps": 10**6, "train.eval_interval": 3}
        root = prepare(data, tmp_path / number.name, changes)
        with (tmp_path / f"{number.name}.txt").open("w", encoding="utf-8") as log:
            started.append((number, root, start_stage("train", root, stderr=log)))
    try:
        for number, _, process in started:
            log_file = tmp_path / f"{number.name}.txt"
            until = time.monotonic() + 120
            while "step 6," not in log_file.read_text(encoding="utf-8"):
                assert process.poll() is None, log_file.read_text(encoding="utf-8")
                assert time.monotonic() < until
                time.sleep(0.05)
            process.send_signal(number)
        for number, root, process in started:
            assert process.wait(timeout=60) == expected[number][0]
            (line,) = error_lines((tmp_path / f"{number.name}.txt").read_text(encoding="utf-8"))
            assert expected[number][1] in line
            assert f"(exit code {expected[number][0]})" in line
            assert left_behind(root) == []
    finally:
        for _, _, process in started:
            process.kill()
            process.communicate()


def test_a_disk_that_cannot_take_the_model_is_74_and_leaves_nothing(
    runs: dict[str, Result],
) -> None:
    root, code, stderr = runs["full disk"]
    assert code == 74, stderr
    assert len(error_lines(stderr)) == 1
    assert left_behind(root) == []


def test_a_divergence_leaves_no_model(data: Path, tmp_path: Path) -> None:
    changes = {"train.lr": 1e30, "train.warmup_steps": 0, "train.max_steps": 20}
    root = prepare(data, tmp_path / "run", changes)
    with pytest.raises(DivergedError, match="step"):
        call_stage("train", root)
    assert left_behind(root) == []


def test_shards_of_another_tokenizer_are_refused(data: Path, tmp_path: Path) -> None:
    root = prepare(data, tmp_path / "run")
    with (root / "data/tokenizer/tokenizer.json").open("a") as file:
        file.write("\n")
    with pytest.raises(DataError, match="another tokenizer"):
        call_stage("train", root)
    assert left_behind(root) == []


@pytest.mark.parametrize("setting", [False, "bf16", "fp16"])
@pytest.mark.parametrize("loss_on", ["all", "assistant"])
def test_every_precision_trains_a_model_whose_loss_falls(
    data: Path, tmp_path: Path, setting: Any, loss_on: str
) -> None:
    changes = {"train.mixed_precision": setting, "train.loss_on": loss_on, "train.max_steps": 10}
    root = prepare(data, tmp_path / "run", changes)
    call_stage("train", root)
    metrics = json.loads((root / "metrics/train.json").read_text(encoding="utf-8"))
    assert metrics["best_step"] > 0
    assert metrics["best_val_loss"] < metrics["initial_val_loss"] - 0.2
    weights = load_file(root / "models/chat/model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float32}


def test_epochs_decide_the_number_of_steps_when_max_steps_does_not(
    data: Path, tmp_path: Path
) -> None:
    manifest = json.loads((data / "data/shards/manifest.json").read_text(encoding="utf-8"))
    windows = (manifest["splits"]["train"]["tokens"] - 1) // 32
    root = prepare(data, tmp_path / "run", {"train.max_steps": None, "train.epochs": 0.5})
    call_stage("train", root)
    metrics = json.loads((root / "metrics/train.json").read_text(encoding="utf-8"))
    assert metrics["steps"] == -(-windows // (2 * 4))
