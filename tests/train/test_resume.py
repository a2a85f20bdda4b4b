"""Killed is as never killed: a resumed training ends with the bytes of an undisturbed one."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from torch.distributed.checkpoint.api import CheckpointException

from stages.errors import BusyError, DataError, Stopped
from stages.scratch import COMPLETE
from stages.train import __main__ as stage
from stages.train import checkpoints, fingerprint, meter, saves
from tests.builders import (
    call_stage,
    contents,
    error_lines,
    finish,
    stage_environment,
    start_stage,
    tiny_params,
    write_params,
)
from tests.train import worlds
from tests.train.worlds import outputs, step_of
from tests.train.worlds import saves as saved

STEPS = 30
SLOW = {"train.max_steps": STEPS, "train.eval_interval": 4, "model.dropout": 0.1}


def prepare(data: Path, root: Path, changes: Mapping[str, Any] | None = None) -> Path:
    return worlds.prepare(data, root, {**SLOW, **(changes or {})})


def undisturbed(data: Path, root: Path, changes: Mapping[str, Any] | None = None) -> Path:
    call_stage("train", prepare(data, root, changes))
    return root


@pytest.fixture(scope="module")
def expected(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What an undisturbed run of SLOW gives."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(meter, "GEMM_SIZE", 64)
        patch.setattr(meter, "GEMM_SECONDS", 0.0)
        return outputs(undisturbed(data, tmp_path_factory.mktemp("expected") / "undisturbed"))


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int, kill: type[BaseException] | None) -> None:
    """After ``step``: an uncaught exception as a kill would be, or (None) a stop request."""
    original = checkpoints.Checkpoints.after_step

    def after_step(self: checkpoints.Checkpoints, state: Any, improved: bool) -> None:
        if state.step == step and kill is None:
            os.kill(os.getpid(), signal.SIGTERM)
        original(self, state, improved)
        if state.step == step and kill is not None:
            raise kill

    monkeypatch.setattr(checkpoints.Checkpoints, "after_step", after_step)


# Where an error arose, as torch.distributed.checkpoint tells it: nowhere.
STACK = traceback.StackSummary()


class Killed(BaseException):
    """Stands for a kill -9: nothing in the project catches it."""


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"train.mixed_precision": "bf16"},
        {"train.mixed_precision": "fp16"},
        {"train.optimizer": "muon", "train.document_mask": True},
        {"train.schedule": "wsd", "train.micro_batch_size": 1, "train.mixed_precision": "bf16"},
    ],
    ids=["fp32", "bf16", "fp16", "muon, documents apart", "wsd"],
)
def test_after_any_number_of_kills_the_bytes_are_those_of_an_undisturbed_run(
    data: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    expected = outputs(undisturbed(data, tmp_path / "undisturbed", changes))
    root = prepare(data, tmp_path / "killed", {**changes, "runtime.checkpoint_steps": 3})
    # The tenth step is after a save and amid two validations; the stop is on a validation's step.
    for step, kill in ((7, Killed), (10, Killed), (16, None), (17, None), (29, Killed)):
        with pytest.MonkeyPatch.context() as patch:
            stop_at(patch, step, kill)
            with pytest.raises(Killed if kill else Stopped):
                call_stage("train", root)
        assert not (root / "models/chat").exists()
    call_stage("train", root)
    assert outputs(root) == expected
    assert [step_of(save) for save in saved(root) if (save.parent / COMPLETE).is_file()] == [STEPS]


def test_a_real_kill_at_any_moment_costs_no_byte(data: Path, tmp_path: Path) -> None:
    expected = outputs(undisturbed(data, tmp_path / "undisturbed", {"train.max_steps": 120}))
    changes = {"train.max_steps": 120, "runtime.checkpoint_steps": 1}
    root = prepare(data, tmp_path / "killed", changes)
    furthest = 0
    for number, wait in ((signal.SIGKILL, 0.03), (signal.SIGTERM, 0.1), (signal.SIGKILL, 0.2)):
        log = tmp_path / "log.txt"
        with log.open("w", encoding="utf-8") as file:
            process = start_stage("train", root, stderr=file)
        until = time.monotonic() + 120
        while not (saved(root) and step_of(saved(root)[-1]) > furthest):
            assert process.poll() is None, log.read_text(encoding="utf-8")
            assert time.monotonic() < until
            time.sleep(0.01)
        time.sleep(wait)
        process.send_signal(number)
        assert process.wait(timeout=60) in (-signal.SIGKILL, 128 + signal.SIGTERM)
        process.communicate()
        assert (f"resumed from step {furthest}" in log.read_text("utf-8")) == (furthest > 0)
        furthest = step_of(saved(root)[-1])
    code, stderr = finish(start_stage("train", root))
    assert code == 0, stderr
    assert f"train: resumed from step {furthest}" in stderr
    assert outputs(root) == expected


def stopped(data: Path, root: Path, step: int, changes: Mapping[str, Any] | None = None) -> Path:
    """A training that was asked to stop after ``step``."""
    prepare(data, root, {"runtime.checkpoint_steps": 2, **(changes or {})})
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, step, None)
        with pytest.raises(Stopped, match=rf"stopped after step {step}: the next run resumes"):
            call_stage("train", root)
    return root


def test_the_newest_saves_are_kept_and_no_more(data: Path, tmp_path: Path) -> None:
    root = stopped(data, tmp_path / "run", 9, {"runtime.keep_checkpoints": 2})
    assert [step_of(save) for save in saved(root)] == [8, 9]
    assert list(root.rglob("*.partial")) == []


@pytest.mark.parametrize(
    "file",
    ["state/__0_0.distcp", "state/.metadata", "best.safetensors", "loop.json", "manifest.json"],
)
@pytest.mark.parametrize("how", ["flip", "cut", "remove"])
def test_a_damaged_save_is_passed_over_for_the_one_before(
    data: Path,
    expected: dict[str, bytes],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    file: str,
    how: str,
) -> None:
    root = stopped(data, tmp_path / "run", 9)
    path = saved(root)[-1] / file
    content = bytearray(path.read_bytes())
    if how == "flip":
        content[len(content) // 2] ^= 4
        path.write_bytes(content)
    elif how == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        path.unlink()
    capsys.readouterr()
    call_stage("train", root)
    said = capsys.readouterr().err
    assert "step-0000000009 is damaged" in said
    assert "resumed from step 8" in said
    assert outputs(root) == expected


@pytest.mark.parametrize("changes", [{"seed": 7}, {"train.lr": 0.5}, {"model.d_ff": 40}])
def test_other_settings_start_anew_and_leave_the_state_alone(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any]
) -> None:
    root = stopped(data, tmp_path / "run", 9)
    before = contents(root / ".checkpoints")
    write_params(root, tiny_params({**SLOW, **changes}))
    capsys.readouterr()
    call_stage("train", root)
    assert "resumed" not in capsys.readouterr().err
    left = contents(root / ".checkpoints")
    assert {name: left[name] for name in before} == before
    assert outputs(root) == outputs(undisturbed(data, tmp_path / "undisturbed", changes))
    # And back again.
    write_params(root, tiny_params(SLOW))
    call_stage("train", root)
    assert "resumed from step 9" in capsys.readouterr().err


def test_machine_settings_may_change_between_stop_and_resume(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = {"train.max_steps": 12}
    root = stopped(data, tmp_path / "run", 9, few)
    machine = {"runtime.threads": 2, "runtime.keep_checkpoints": 1}
    write_params(root, tiny_params({**SLOW, **few, **machine}))
    try:
        call_stage("train", root)
    finally:
        torch.set_num_threads(1)
    said = capsys.readouterr().err
    assert "resumed from step 9" in said
    assert "the machine's part changed (threads 1 -> 2)" in said


def test_state_of_other_code_is_named_and_not_continued(
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root = stopped(data, tmp_path / "run", 9)
    sums = fingerprint.code_sums()
    changed = {**sums, "stages/train/loop.py": "0" * 64}
    monkeypatch.setattr(fingerprint, "code_sums", lambda: changed)
    capsys.readouterr()
    call_stage("train", root)
    said = capsys.readouterr().err
    assert "step 9 of these settings was saved, but stages/train/loop.py changed since" in said
    assert "resumed" not in said
    assert saved(root) != []


def test_the_fingerprint_covers_the_code_that_decides() -> None:
    names = set(fingerprint.code_sums())
    assert names >= {
        "model/config.py",
        "model/init.py",
        "model/transformer.py",
        "stages/corpus.py",
        "stages/scoring.py",
        "stages/train/__main__.py",
        "stages/train/attention.py",
        "stages/train/checkpointing.py",
        "stages/train/compiling.py",
        "stages/train/data_order.py",
        "stages/train/loop.py",
        "stages/train/loss.py",
        "stages/train/optimizer.py",
        "stages/train/precision.py",
        "stages/train/processes.py",
        "stages/train/schedule.py",
        "stages/train/start.py",
        "stages/train/update.py",
    }
    undeciding = {f"{name.replace('.', '/')}.py" for name in fingerprint.UNDECIDING}
    assert not names & (undeciding - {"stages/train/__main__.py"})
    assert undeciding >= {"stages/progress.py", "stages/train/saves.py", "stages/errors.py"}


def test_two_live_runs_never_share_state(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = stopped(data, tmp_path / "run", 9)
    before = contents(root / ".checkpoints")
    monkeypatch.setattr(checkpoints, "LOCK_SECONDS", 0.3)
    (folder,) = (root / ".checkpoints").iterdir()
    with (folder / "lock").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(BusyError, match="another run with the same settings is alive"):
            call_stage("train", root)
    assert contents(root / ".checkpoints") == before
    call_stage("train", root)


def test_dead_state_is_removed_after_its_time_and_live_state_is_not(
    data: Path, tmp_path: Path
) -> None:
    root = stopped(data, tmp_path / "run", 9)
    other = prepare(data, tmp_path / "other", {"seed": 9})
    shutil.copytree(root / ".checkpoints", other / ".checkpoints")
    (folder,) = (other / ".checkpoints").iterdir()
    call_stage("train", other)
    assert folder.exists()
    old = time.time() - (checkpoints.DEAD_DAYS + 1) * 86_400
    for path in (*folder.rglob("*"), folder):
        os.utime(path, (old, old))
    with (folder / "lock").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        call_stage("train", other)
        assert list(folder.glob("step-*")) != []
    call_stage("train", other)
    assert not folder.exists()


@pytest.mark.parametrize(
    ("function", "failure"),
    [
        ("save_file", OSError(28, "No space left on device")),
        ("save_file", SafetensorError("No space left on device (os error 28)")),
        ("save_state", OSError(28, "No space left on device")),
        # Not an Exception, but a BaseException.
        (
            "save_state",
            CheckpointException("write", {0: (OSError(28, "No space left on device"), STACK)}),
        ),
    ],
)
def test_a_save_that_fails_is_told_and_training_goes_on(
    data: Path,
    expected: dict[str, bytes],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    function: str,
    failure: BaseException,
) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise failure

    root = prepare(data, tmp_path / "run", {"runtime.checkpoint_steps": 10})
    with monkeypatch.context() as patch:
        patch.setattr(saves, function, full)
        call_stage("train", root)
    said = capsys.readouterr().err
    assert "step 10 could not be saved" in said
    assert "No space left on device" in said
    assert outputs(root) == expected
    assert list((root / ".checkpoints").iterdir()) == []


def test_a_failure_before_the_first_save_leaves_no_state(data: Path, tmp_path: Path) -> None:
    root = prepare(data, tmp_path / "run")
    with (root / "data/tokenizer/tokenizer.json").open("a") as file:
        file.write("\n")
    with pytest.raises(DataError):
        call_stage("train", root)
    assert saved(root) == []


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({"runtime.checkpoint_minutes": 1e-9}, list(range(1, STEPS))),
        ({"runtime.checkpoint_steps": 8}, [8, 16, 24]),
    ],
)
def test_saves_come_when_they_are_due(
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    steps: list[int],
) -> None:
    monkeypatch.setattr(checkpoints, "SHARE_OF_TIME", 0.0)
    told = saves_told(monkeypatch)
    call_stage("train", prepare(data, tmp_path / "run", changes))
    # The first improvement may be saved at no known cost, and what is complete is saved too.
    assert [step for step in told if step in steps] == steps
    assert len(told) <= len(steps) + 2


def saves_told(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The steps that are to be saved, which takes a moment and saves nothing."""
    told: list[int] = []

    def note(folder: Path, trained: Any, state: Any, layout: Any) -> None:
        told.append(state.step)
        time.sleep(0.001)

    monkeypatch.setattr(saves, "write", note)
    return told


def test_an_improvement_is_saved_when_that_costs_little(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "SHARE_OF_TIME", 1e9)
    told = saves_told(monkeypatch)
    root = prepare(data, tmp_path / "run")
    call_stage("train", root)
    *amid, last = told
    assert amid
    assert set(amid) <= set(range(4, STEPS, 4))
    assert last == STEPS


def test_the_death_of_dvc_stops_its_stage_with_the_state_saved(data: Path, tmp_path: Path) -> None:
    root = prepare(data, tmp_path / "run", {"train.max_steps": 10**6, "train.eval_interval": 3})
    log = tmp_path / "log.txt"
    # A shell stands for DVC: it starts the stage, tells its number and is killed.
    environment = {"DVC_STAGE": "train", "LOG": str(log)}
    program = "import os, subprocess, sys, time\np = subprocess.Popen("
    program += "[sys.executable, '-m', 'stages.train'], stderr=open(os.environ['LOG'], 'w'))\n"
    program += "print(p.pid, flush=True)\ntime.sleep(600)\n"
    parent = start_python(program, root, environment)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    until = time.monotonic() + 120
    while not log.is_file() or "step 6," not in log.read_text(encoding="utf-8"):
        assert time.monotonic() < until
        time.sleep(0.05)
    parent.kill()
    parent.communicate()
    while not error_lines(log.read_text(encoding="utf-8")):
        assert time.monotonic() < until, child
        time.sleep(0.05)
    (line,) = error_lines(log.read_text(encoding="utf-8"))
    assert "the next run resumes there (exit code 143)" in line
    assert len(saved(root)) >= 1


def start_python(program: str, root: Path, environment: Mapping[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=root,
        env=stage_environment(root, environment),
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_save_tells_what_it_holds(data: Path, tmp_path: Path) -> None:
    root = stopped(data, tmp_path / "run", 9)
    save = saved(root)[-1]
    loop = json.loads((save / "loop.json").read_text(encoding="utf-8"))
    assert loop["state"]["step"] == 9
    assert loop["layout"] == {
        "processes": 1,
        "parallel": None,
        "threads": torch.get_num_threads(),
    }
    about = json.loads((save.parent / "about.json").read_text(encoding="utf-8"))
    assert about["params"]["train"]["max_steps"] == STEPS
    sums = json.loads((save / "manifest.json").read_text(encoding="utf-8"))
    assert {*sums, "manifest.json"} == set(contents(save))


def test_killed_before_dvc_has_stored_the_model_is_written_again_at_once(
    data: Path,
    expected: dict[str, bytes],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root = prepare(data, tmp_path / "run")

    def killed(*arguments: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(stage, "write_results", killed)
        with pytest.raises(Killed):
            call_stage("train", root)
    assert not (root / "models").exists()
    for _ in range(2):
        (save,) = saved(root)
        assert (save.parent / COMPLETE).is_file()
        capsys.readouterr()
        call_stage("train", root)
        said = capsys.readouterr().err
        assert f"train: resumed from step {STEPS}\n" in said
        assert "validation loss" not in said
        assert outputs(root) == expected
        # As DVC does before it runs a stage again.
        shutil.rmtree(root / "models")
        shutil.rmtree(root / "metrics")


def test_a_state_that_began_again_is_not_complete_until_it_is(data: Path, tmp_path: Path) -> None:
    root = undisturbed(data, tmp_path / "run")
    (mark,) = (root / ".checkpoints").glob(f"*/{COMPLETE}")
    seen: list[bool] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(saves, "read", lambda *arguments: seen.append(mark.exists()) or 1 / 0)
        with pytest.raises(ZeroDivisionError):
            call_stage("train", root)
    assert seen == [False]


def test_evaluation_removes_complete_states_of_its_own_folder_alone(
    data: Path, tmp_path: Path
) -> None:
    root = undisturbed(data, tmp_path / "run")
    other = undisturbed(data, tmp_path / "other", {"seed": 5})
    unfinished = stopped(data, tmp_path / "unfinished", 9, {"seed": 6})
    (mine,) = (root / ".checkpoints").iterdir()
    for world in (other, unfinished):
        (folder,) = (world / ".checkpoints").iterdir()
        shutil.copytree(folder, root / ".checkpoints" / folder.name)
    before = set((root / ".checkpoints").iterdir())
    call_stage("evaluate", root)
    assert set((root / ".checkpoints").iterdir()) == before - {mine}


WSD = {"train.schedule": "wsd", "train.decay_fraction": 0.5, "train.warmup_steps": 4}
# Warm-up and steps at the peak: the step whose rate falls first is the one after half of the rest.
SHORT, LONG, LONGEST = 24, 34, 44
COMMON = {SHORT: 14, LONG: 19, LONGEST: 24}


def run_wsd(root: Path, steps: int, changes: Mapping[str, Any] | None = None) -> None:
    """Trains anew or on for so many steps in all."""
    write_params(root, tiny_params({**SLOW, **WSD, "train.max_steps": steps, **(changes or {})}))
    call_stage("train", root)


@pytest.mark.parametrize(
    "changes", [{}, {"train.optimizer": "muon", "train.mixed_precision": "bf16"}]
)
def test_a_longer_run_goes_on_from_before_the_decay_of_a_shorter_one(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any]
) -> None:
    root = prepare(data, tmp_path / "run")
    begins = None
    for steps in (SHORT, LONG, LONGEST):
        capsys.readouterr()
        run_wsd(root, steps, changes)
        said = capsys.readouterr().err
        if begins is None:
            assert "resumed" not in said
        else:
            assert f"train: resumed from step {begins} of a shorter run\n" in said
            assert "the machine's part changed" not in said
        begins = COMMON[steps]
    alone = prepare(data, tmp_path / "undisturbed")
    run_wsd(alone, LONGEST, changes)
    assert outputs(root) == outputs(alone)
    # Evaluation removes what is complete, and leaves what a longer run would begin with.
    call_stage("evaluate", root)
    capsys.readouterr()
    run_wsd(root, LONGEST + 2, changes)
    assert f"resumed from step {COMMON[LONGEST]} of a shorter run" in capsys.readouterr().err


def test_a_shorter_run_never_begins_behind_its_own_decay(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = prepare(data, tmp_path / "run")
    run_wsd(root, LONGEST)
    capsys.readouterr()
    run_wsd(root, SHORT)
    assert "resumed" not in capsys.readouterr().err
    run_wsd(root, LONG)
    assert f"resumed from step {COMMON[SHORT]} of a shorter run" in capsys.readouterr().err
    alone = prepare(data, tmp_path / "undisturbed")
    run_wsd(alone, LONG)
    assert outputs(root) == outputs(alone)


def test_a_longer_run_with_a_longer_decay_begins_before_it(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = prepare(data, tmp_path / "run")
    run_wsd(root, SHORT)
    capsys.readouterr()
    earlier = {"train.decay_fraction": 0.9}  # from step 7 of 34 on
    run_wsd(root, LONG, earlier)
    assert "resumed" not in capsys.readouterr().err
    later = {"train.decay_fraction": 0.2}
    run_wsd(root, LONG, later)
    assert f"resumed from step {COMMON[SHORT]} of a shorter run" in capsys.readouterr().err
    alone = prepare(data, tmp_path / "undisturbed")
    run_wsd(alone, LONG, later)
    assert outputs(root) == outputs(alone)


@pytest.mark.parametrize("changes", [{"seed": 7}, {"train.lr": 0.5}, {"train.eval_interval": 5}])
def test_a_longer_run_of_other_settings_begins_anew(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any]
) -> None:
    root = prepare(data, tmp_path / "run")
    run_wsd(root, SHORT)
    capsys.readouterr()
    run_wsd(root, LONG, changes)
    assert "resumed" not in capsys.readouterr().err


def test_a_damaged_state_of_a_shorter_run_is_passed_over(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = prepare(data, tmp_path / "run")
    run_wsd(root, SHORT)
    (common,) = (root / ".checkpoints").glob(f"*/{saves.name_of(COMMON[SHORT])}")
    content = bytearray((common / "best.safetensors").read_bytes())
    content[-1] ^= 1
    (common / "best.safetensors").write_bytes(content)
    capsys.readouterr()
    run_wsd(root, LONG)
    said = capsys.readouterr().err
    assert f"{common.relative_to(root)} is damaged (best.safetensors has changed)" in said
    assert "resumed" not in said
    alone = prepare(data, tmp_path / "undisturbed")
    run_wsd(alone, LONG)
    assert outputs(root) == outputs(alone)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_schedules_that_stretch_leave_nothing_for_longer_runs(
    data: Path, tmp_path: Path, schedule: str
) -> None:
    root = undisturbed(data, tmp_path / "run", {"train.schedule": schedule})
    assert [step_of(save) for save in saved(root)] == [STEPS]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_save_before_the_first_real_update_changes_no_byte(
    data: Path, tmp_path: Path, optimizer: str
) -> None:
    changes = {
        "train.loss_on": "assistant",
        "train.optimizer": optimizer,
        "model.seq_len": 4,
        "train.batch_size": 1,
        "train.grad_accum_steps": 1,
        "train.max_steps": 10,
    }
    expected = outputs(undisturbed(data, tmp_path / "undisturbed", changes))
    other = undisturbed(data, tmp_path / "saved", {**changes, "runtime.checkpoint_steps": 1})
    assert outputs(other) == expected


def test_a_complete_state_is_not_written_again(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = undisturbed(data, tmp_path / "run")
    expected = outputs(root)
    before = contents(root / ".checkpoints")

    def never(*arguments: object, **options: object) -> None:
        raise AssertionError("a save was written")

    monkeypatch.setattr(checkpoints.saves, "write", never)
    call_stage("train", root)
    assert outputs(root) == expected
    assert contents(root / ".checkpoints") == before


def test_a_damaged_save_takes_no_place_of_a_sound_one(data: Path, tmp_path: Path) -> None:
    changes = {"runtime.keep_checkpoints": 1}
    root = stopped(data, tmp_path / "run", 9, changes)
    (save,) = saved(root)
    damaged = save.with_name(save.name.replace("9", "29"))
    save.rename(damaged)
    with (damaged / "loop.json").open("a") as file:
        file.write(" ")
    (damaged.parent / ".step-0000000011.partial").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 12, None)
        with pytest.raises(Stopped, match="the next run resumes"):
            call_stage("train", root)
    assert [step_of(save) for save in saved(root)] == [12]
    assert list(root.rglob("*.partial")) == []
