"""Experiments in DVC's queue: grids, two at a time, killed and queued again."""

import csv
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from stages.params import read_yaml
from tests.conftest import TINY, Run, environment, make_clone
from tests.test_end_to_end import hashes, stages_run

DATA_STAGES = {"download", "tokenizer", "shards"}
# What DVC writes for its queue alone; the stage below it keeps its own state.
QUEUE_PROCESSES = ("stages.train", "exec-run", "queue-worker")


def wait_for_queue(folder: Path, run: Run) -> dict[str, str]:
    """Waits until nothing is queued or running; the state of each experiment by its name."""
    until = time.monotonic() + 500
    while True:
        lines = run("dvc", "queue", "status").stdout.splitlines()
        states = {
            line.split()[1]: line.split()[-1] for line in lines if re.match(r"[0-9a-f]{7} ", line)
        }
        if not {"Queued", "Running"} & set(states.values()):
            return states
        assert time.monotonic() < until, lines
        time.sleep(1)


def log_of(name: str, run: Run) -> str:
    return run("dvc", "queue", "logs", name).stdout


def processes_in(folder: Path) -> Iterator[psutil.Process]:
    """Those of DVC's queue that run in or below ``folder``."""
    for process in psutil.process_iter():
        try:
            command = " ".join(process.cmdline())
            if any(kind in command for kind in QUEUE_PROCESSES) and Path(
                process.cwd()
            ).is_relative_to(folder):
                yield process
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue


def kill_all(folder: Path) -> None:
    for process in processes_in(folder):
        process.kill()


def start_worker(folder: Path, *options: str) -> None:
    """Not by way of a pipe: the worker would keep it open, and its reader would wait for all."""
    subprocess.run(
        ["dvc", "queue", "start", *options],
        cwd=folder,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
    )


def test_a_grid_runs_two_at_a_time_on_data_from_the_cache(clone: tuple[Path, Run]) -> None:
    folder, run = clone
    before = hashes(folder)
    # Rates that no other test trains with: the clone is theirs too, and its cache remembers.
    queued = run("dvc", "exp", "run", "--queue", "-S", "train.lr=choice(1.7e-3,2.3e-3)").stdout
    names = re.findall(r"Queued experiment '([\w-]+)'", queued)
    assert len(names) == 2
    try:
        start_worker(folder, "--jobs", "2")
        states = wait_for_queue(folder, run)
    finally:
        run("dvc", "queue", "stop", "--kill", check=False)
    assert {states[name] for name in names} == {"Success"}
    for name in names:
        ran = stages_run(log_of(name, run))
        assert {"train", "evaluate"} <= set(ran)
        assert not DATA_STAGES & set(ran)
    rows = {
        row["Experiment"]: row
        for row in csv.DictReader(run("dvc", "exp", "show", "--csv").stdout.splitlines())
    }
    assert {rows[name]["train.lr"] for name in names} == {"0.0017", "0.0023"}
    assert len({rows[name]["bits_per_byte"] for name in names}) == 2
    # The workspace is as it was, and has what the queue made from the cache.
    assert hashes(folder) == before
    assert run("git", "status", "--porcelain").stdout == ""
    again = run("dvc", "exp", "run", "-S", "train.lr=2.3e-3").stdout
    assert "Stage 'train' is cached - skipping run, checking out outputs" in again
    assert list((folder / ".checkpoints").iterdir()) == []
    run("git", "checkout", "--", ".")
    run("dvc", "checkout")


@pytest.fixture(scope="module")
def undisturbed(
    clone: tuple[Path, Run], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """What training alone, in the workspace, makes of the settings that are killed below."""
    folder = tmp_path_factory.mktemp("undisturbed")
    run = make_clone(folder, LONGER)
    shutil.copytree(clone[0] / ".dvc/cache", folder / ".dvc/cache")
    run("dvc", "repro", "train")
    return hashes(folder)["train"]


LONGER = {**TINY, "train.max_steps": 400, "train.eval_interval": 100, "runtime.threads": 1}


def longer_clone(clone: tuple[Path, Run], folder: Path) -> Run:
    """A clone with those settings, its data in the cache and in dvc.lock."""
    run = make_clone(folder, {**LONGER, "runtime.checkpoint_steps": 20})
    shutil.copytree(clone[0] / ".dvc/cache", folder / ".dvc/cache")
    shutil.copyfile(clone[0] / "dvc.lock", folder / "dvc.lock")
    run("git", "add", "--all")
    run("git", "commit", "--quiet", "--message=lock")
    return run


def wait_for_save(folder: Path) -> None:
    until = time.monotonic() + 500
    while not list((folder / ".checkpoints").glob("*/step-*")):
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["stage", "worker and all below it"])
def test_killed_and_queued_again_it_goes_on_to_the_same_bytes(
    what: str, clone: tuple[Path, Run], undisturbed: dict[str, str], tmp_path: Path
) -> None:
    run = longer_clone(clone, tmp_path)
    try:
        run("dvc", "exp", "run", "--queue", "--name", "killed")
        start_worker(tmp_path)
        wait_for_save(tmp_path)
        for process in processes_in(tmp_path):
            if what != "stage" or "stages.train" in " ".join(process.cmdline()):
                process.kill()
        run("dvc", "exp", "run", "--queue", "--name", "again")
        start_worker(tmp_path)
        until = time.monotonic() + 500
        while not re.search(r" again .* Success", run("dvc", "queue", "status").stdout):
            assert time.monotonic() < until
            time.sleep(1)
        log = log_of("again", run)
    finally:
        kill_all(tmp_path)
    assert "train: resumed from step " in log
    assert not DATA_STAGES & set(stages_run(log))
    run("dvc", "exp", "apply", "again")
    assert hashes(tmp_path)["train"] == undisturbed


@pytest.mark.slow
def test_stopped_gently_it_saves_and_goes_on_in_a_temporary_run(
    clone: tuple[Path, Run], undisturbed: dict[str, str], tmp_path: Path
) -> None:
    run = longer_clone(clone, tmp_path)
    process = subprocess.Popen(
        [Path(sys.executable).parent / "dvc", "exp", "run", "--temp"],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for_save(tmp_path)
        for stage in processes_in(tmp_path):
            if "stages.train" in " ".join(stage.cmdline()):
                stage.terminate()
        process.wait(300)
    finally:
        process.kill()
        kill_all(tmp_path)
    again = run("dvc", "exp", "run", "--temp", "--name", "again")
    assert "train: resumed from step " in again.stdout + again.stderr
    run("dvc", "exp", "apply", "again")
    assert hashes(tmp_path)["train"] == undisturbed


@pytest.mark.slow
def test_two_of_the_same_at_once_share_one_training(
    clone: tuple[Path, Run], undisturbed: dict[str, str], tmp_path: Path
) -> None:
    run = longer_clone(clone, tmp_path)
    try:
        for name in ("first", "second"):
            run("dvc", "exp", "run", "--queue", "--name", name)
        start_worker(tmp_path, "--jobs", "2")
        states = wait_for_queue(tmp_path, run)
    finally:
        kill_all(tmp_path)
    # The second waits for the first, and takes its results or says that another is alive.
    assert "Success" in states.values()
    for name, state in states.items():
        if state == "Success":
            run("dvc", "exp", "apply", name)
            assert hashes(tmp_path)["train"] == undisturbed
        else:
            assert "another run with the same settings is alive" in log_of(name, run)
    assert read_yaml(tmp_path / "params.yaml")["train"]["max_steps"] == 400
