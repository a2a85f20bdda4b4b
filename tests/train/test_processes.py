"""Several processes train as one does, to the byte, and live and die together."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.builders import (
    call_stage,
    contents,
    error_lines,
    exit_code,
    finish,
    run_stage,
    stage_environment,
    start_stage,
    tiny_params,
    write_params,
)
from tests.train.worlds import outputs, prepare, saves, step_of

PATIENCE = 120.0
DDP = {"runtime.processes": 2, "runtime.parallel": "ddp"}
FSDP = {"runtime.processes": 2, "runtime.parallel": "fsdp"}
TORCHRUN = ("torch.distributed.run", "--nproc-per-node", "2", "-m", "stages.train")


def start_torchrun(root: Path, log: Path) -> subprocess.Popen[str]:
    """Starts the training as ``torchrun`` would from a terminal."""
    with log.open("w", encoding="utf-8") as file:
        return subprocess.Popen(
            [sys.executable, "-m", *TORCHRUN],
            cwd=root,
            env=stage_environment(root),
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
        )


# --- the same bytes


@dataclass
class Done:
    """A training that has ended."""

    root: Path
    code: int
    stderr: str

    @property
    def said(self) -> list[str]:
        return [line for line in self.stderr.splitlines() if line.startswith("train: ")]


PLANS: dict[str, dict[str, Any]] = {
    "one": {},
    "ddp": DDP,
    "fsdp": FSDP,
    "one, bf16": {"train.mixed_precision": "bf16", "train.document_mask": True},
    "ddp, bf16": {"train.mixed_precision": "bf16", "train.document_mask": True, **DDP},
    "one, fp16": {"train.mixed_precision": "fp16"},
    "ddp, fp16": {"train.mixed_precision": "fp16", **DDP},
    "one, muon": {"train.optimizer": "muon"},
    "ddp, muon": {"train.optimizer": "muon", **DDP},
    "fsdp, muon": {"train.optimizer": "muon", **FSDP},
    "one, recomputed": {"train.activation_checkpointing": "selective"},
    "fsdp, recomputed": {"train.activation_checkpointing": "selective", **FSDP},
}


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Done]:
    """Runs a plan, once: with dropout, and two passes an update where one process makes them."""
    done: dict[str, Done] = {}

    def run_plan(name: str) -> Done:
        if name not in done:
            root = prepare(data, tmp_path_factory.mktemp("plan") / "root", PLANS[name])
            if name.startswith("one, "):  # its bytes are all that is asked for
                call_stage("train", root)
                done[name] = Done(root, 0, "")
            else:
                done[name] = Done(root, *run_stage("train", root))
            assert done[name].code == 0, done[name].stderr
        return done[name]

    return run_plan


@pytest.mark.parametrize(
    ("several", "one"),
    [
        ("ddp", "one"),
        ("fsdp", "one"),
        ("ddp, bf16", "one, bf16"),
        ("ddp, fp16", "one, fp16"),
        pytest.param("ddp, muon", "one, muon", marks=pytest.mark.slow),
        pytest.param("fsdp, muon", "one, muon", marks=pytest.mark.slow),
        pytest.param("fsdp, recomputed", "one, recomputed", marks=pytest.mark.slow),
    ],
)
def test_two_processes_give_the_bytes_of_one_that_accumulates(
    run: Callable[[str], Done], several: str, one: str
) -> None:
    expected = outputs(run(one).root)
    assert set(expected) >= {"chat/model.safetensors", "history.csv", "train.json"}
    assert outputs(run(several).root) == expected


@pytest.mark.parametrize("several", ["ddp", "fsdp"])
def test_one_process_speaks_and_writes_for_all(run: Callable[[str], Done], several: str) -> None:
    one, two = run("one"), run(several)
    # What depends on the clock is left out.
    told = [[line for line in done.said if "validation" in line] for done in (one, two)]
    assert len(told[0]) == 4
    assert told[0] == told[1]
    assert [line for line in two.said if "parameters" in line] == [
        one.said[0] + " among 2 processes"
    ]
    # Of a save each process writes its part of the state; no temporary file is left.
    part = "/state/__1_0.distcp"
    files = [
        {name for name in contents(done.root) if not name.endswith(part)} for done in (one, two)
    ]
    assert files[0] == files[1]
    local = json.loads((two.root / "metrics/train.local.json").read_text(encoding="utf-8"))
    assert local["processes"] == 2


# --- ends and new beginnings

# A step takes long enough that a signal after one comes before the last. Two passes an update: of
# more, two processes would add the gradients up in another order than one does.
LONG = {
    "train.batch_size": 48,
    "train.grad_accum_steps": 2,
    "train.max_steps": 60,
    "train.eval_interval": 3,
    "runtime.checkpoint_steps": 2,
}


@dataclass
class Ended:
    """How a training came to its end amid its steps."""

    code: int
    log: str
    seconds: float
    left: list[psutil.Process]
    saved: int


def amid(
    root: Path, changes: Mapping[str, Any], step: int, end: Callable[[psutil.Process], None]
) -> Ended:
    """Starts a training, lets ``end`` act on its process after ``step``, and waits for all."""
    write_params(root, tiny_params({**LONG, **changes}))
    log = root / "log.txt"
    with log.open("w", encoding="utf-8") as file:
        process = start_stage("train", root, stderr=file)
    started = psutil.Process(process.pid)
    family: list[psutil.Process] = []
    try:
        until = time.monotonic() + PATIENCE
        while f"train: step {step}," not in log.read_text(encoding="utf-8"):
            assert process.poll() is None, log.read_text(encoding="utf-8")
            assert time.monotonic() < until
            time.sleep(0.01)
        family = started.children(recursive=True)
        begun = time.monotonic()
        end(started)
        code = process.wait(PATIENCE)
        seconds = time.monotonic() - begun
        _, left = psutil.wait_procs(family, 30)
    finally:
        for one in (*family, started):
            with suppress(psutil.NoSuchProcess):
                one.kill()
        process.communicate()
    return Ended(code, log.read_text(encoding="utf-8"), seconds, left, step_of(saves(root)[-1]))


def workers(parent: psutil.Process) -> list[psutil.Process]:
    """The processes that train, in the order of their places."""
    found = [child for child in parent.children() if "stages.train" in child.cmdline()]
    return sorted(found, key=lambda process: int(process.environ()["RANK"]))


def kill_a_worker(parent: psutil.Process) -> None:
    first, second = workers(parent)
    assert first.is_running()
    second.send_signal(signal.SIGKILL)


def sent(number: signal.Signals) -> Callable[[psutil.Process], None]:
    return lambda parent: parent.send_signal(number)


Ends = dict[str, Ended]


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    root = prepare(data, tmp_path_factory.mktemp("undisturbed") / "root", LONG)
    call_stage("train", root)
    return outputs(root)


@pytest.fixture(scope="module")
def ends(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ends, Done]:
    """One training that is ended in many ways and goes on after each, until it is complete."""
    root = prepare(data, tmp_path_factory.mktemp("ends") / "root", LONG)
    plans: dict[str, tuple[dict[str, Any], Callable[[psutil.Process], None]]] = {
        "terminated": (FSDP, sent(signal.SIGTERM)),
        "one process": ({}, sent(signal.SIGTERM)),
        "a worker killed": (DDP, kill_a_worker),
        "interrupted": (DDP, sent(signal.SIGINT)),
        "parent killed": (DDP, sent(signal.SIGKILL)),
    }
    done: Ends = {}
    reached = 0
    for name, (changes, end) in plans.items():
        reached = (reached // 3 + 2) * 3
        done[name] = amid(root, changes, reached, end)
        reached = done[name].saved
    # Complete under torchrun, whose processes params.yaml knows nothing of.
    write_params(root, tiny_params(LONG))
    log = root / "torchrun.txt"
    process = start_torchrun(root, log)
    code, _ = finish(process)
    return root, done, Done(root, code, log.read_text(encoding="utf-8"))


def test_whatever_ends_it_the_bytes_are_those_of_an_undisturbed_run(
    ends: tuple[Path, Ends, Done], undisturbed: dict[str, bytes]
) -> None:
    root, _, last = ends
    assert last.code == 0, last.stderr
    assert outputs(root) == undisturbed


def test_torchrun_is_a_launcher_as_good_as_ours(ends: tuple[Path, Ends, Done]) -> None:
    _, done, last = ends
    assert f"train: resumed from step {done['parent killed'].saved}" in last.said
    assert any(line.endswith(" among 2 processes") for line in last.said)
    # Nothing but the threads' number is other than with `runtime.processes: 2`.
    assert not any("machine's part changed" in line for line in last.said)


@pytest.mark.parametrize(
    ("name", "code"), [("terminated", 143), ("one process", 143), ("interrupted", 130)]
)
def test_a_signal_to_the_parent_stops_all_after_a_save_and_one_line_says_so(
    ends: tuple[Path, Ends, Done], name: str, code: int
) -> None:
    end = ends[1][name]
    assert end.code == code, end.log
    (line,) = error_lines(end.log)
    assert f"stopped after step {end.saved}: the next run resumes there (exit code {code})" in line
    assert end.left == []


def test_a_worker_that_is_killed_takes_all_with_it(ends: tuple[Path, Ends, Done]) -> None:
    end = ends[1]["a worker killed"]
    assert end.code == 137, end.log
    assert end.seconds < 30
    assert end.left == []
    (line,) = error_lines(end.log)
    assert "process 1 of 2 has ended with exit code 137, and so have all" in line
    assert "the next run resumes from the last save (exit code 137)" in line
    assert "could not be saved" not in end.log  # the disk has nothing to do with it


def test_workers_whose_parent_is_killed_stop_by_themselves(
    ends: tuple[Path, Ends, Done],
) -> None:
    end = ends[1]["parent killed"]
    assert end.code == -signal.SIGKILL
    assert end.left == []
    (line,) = error_lines(end.log)
    assert f"stopped after step {end.saved}: the next run resumes there (exit code 143)" in line


def test_each_beginning_resumes_and_says_when_the_machines_part_changed(
    ends: tuple[Path, Ends, Done],
) -> None:
    _, done, last = ends
    names = list(done)
    logs = [*(done[name].log for name in names[1:]), last.stderr]
    changes = [
        "(processes 2 -> 1, parallel fsdp -> None)",
        "(processes 1 -> 2, parallel None -> ddp)",
        None,
        None,
        None,
    ]
    for name, log, change in zip(names, logs, changes, strict=True):
        assert f"train: resumed from step {done[name].saved}\n" in log
        told = f"train: the machine's part changed {change}: the batches are the same, "
        assert (told in log) is (change is not None)
        assert log.count("train: resumed") == 1


def test_no_save_is_left_half_written(ends: tuple[Path, Ends, Done]) -> None:
    root = ends[0]
    assert list(root.rglob("*.partial")) == []
    assert [step_of(save) for save in saves(root)] == [LONG["train.max_steps"]]


# --- settings that can't be


@pytest.mark.parametrize("stage", ["preflight", "train"])
@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"runtime.processes": 3}, "runtime.processes: 3 processes can't share the 4 sequences"),
        (
            {**FSDP, "train.mixed_precision": "fp16"},
            "runtime.parallel: fsdp has no gradient scaler for fp16",
        ),
    ],
    ids=["uneven shares", "fsdp in fp16"],
)
def test_impossible_settings_are_one_line_that_names_the_key(
    data: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    changes: dict[str, Any],
    key: str,
    stage: str,
) -> None:
    root = prepare(data, tmp_path / "root", changes)
    if stage == "preflight":
        assert exit_code(stage, root) == 2
        stderr = capfd.readouterr().err
    else:
        code, stderr = run_stage(stage, root)
        assert code == 2, stderr
    (line,) = error_lines(stderr)
    assert key in line
    assert line.endswith("(exit code 2)")
    assert not (root / "models").exists()
    assert list(root.glob(".checkpoints/*")) == []
