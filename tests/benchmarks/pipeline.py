"""What DVC costs beside the stages: ``python -m tests.benchmarks.pipeline`` (README.md)."""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from tests.conftest import TINY, Run, make_clone, runner

Stages = dict[str, dict[str, Any]]
Change = Callable[[Stages, dict[str, Any]], None]  # of dvc.yaml's stages, given params.yaml


def seconds(run: Run, *command: str) -> float:
    """How long a command takes."""
    started = time.perf_counter()
    run(*command)
    return time.perf_counter() - started


def empty_pipeline(folder: Path) -> Run:
    """A repository with a pipeline of one stage that has nothing to do."""
    run = make_clone(folder, {})
    for path in folder.iterdir():
        if path.name not in (".git", ".dvc"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    (folder / "dvc.yaml").write_text(
        "stages:\n  nothing:\n    cmd: touch out.txt\n    outs: [out.txt]\n", encoding="utf-8"
    )
    run("git", "add", "--all")
    run("git", "commit", "--quiet", "--message=empty")
    run("dvc", "repro")
    return run


def write_paths_out(stages: Stages, params: dict[str, Any]) -> None:
    """Puts the values of ${section.key} into the dependencies."""

    def value(dependency: str) -> str:
        if not dependency.startswith("${"):
            return dependency
        section, key = dependency.strip("${}").split(".")
        return str(params[section][key])

    for stage in stages.values():
        stage["deps"] = [value(dependency) for dependency in stage.get("deps", [])]


def drop_code(stages: Stages, params: dict[str, Any]) -> None:
    for stage in stages.values():
        stage["deps"] = [name for name in stage.get("deps", []) if not name.endswith(".py")]


def drop_params(stages: Stages, params: dict[str, Any]) -> None:
    for stage in stages.values():
        stage.pop("params", None)


def drop_all(stages: Stages, params: dict[str, Any]) -> None:
    for change in (write_paths_out, drop_code, drop_params):
        change(stages, params)


# What a pipeline would be spared that named less: where the time of a `dvc repro` goes.
LESS: dict[str, Change] = {
    "paths written out instead of ${…}": write_paths_out,
    "no code among the dependencies": drop_code,
    "no params": drop_params,
    "none of the three": drop_all,
}


def with_less(source: Path, folder: Path, change: Change) -> Run:
    """A copy of a pipeline that has run, its dvc.yaml changed and taken as it is."""
    shutil.copytree(source, folder, symlinks=True)
    file = folder / "dvc.yaml"
    pipeline = yaml.safe_load(file.read_text(encoding="utf-8"))
    change(
        pipeline["stages"],
        yaml.safe_load((folder / "params.yaml").read_text(encoding="utf-8")),
    )
    file.write_text(yaml.safe_dump(pipeline, sort_keys=False), encoding="utf-8")
    run = runner(folder)
    run("dvc", "commit", "--force", "--quiet")
    return run


def stage_seconds(folder: Path) -> float:
    """What the stages take that such an experiment runs, started by themselves."""
    total = 0.0
    for name in ("check", "preflight", "train", "evaluate"):
        started = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", f"stages.{name}"], cwd=folder, check=True, capture_output=True
        )
        total += time.perf_counter() - started
    return total


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.pipeline")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        ours, empty = Path(temporary, "parley"), Path(temporary, "empty")
        ours.mkdir()
        empty.mkdir()
        run, run_empty = make_clone(ours, TINY), empty_pipeline(empty)
        run("dvc", "repro")
        run("git", "add", "--all")
        run("git", "commit", "--quiet", "--message=results")
        runs = {"an empty pipeline": run_empty, "Parley's": run}
        for number, (name, change) in enumerate(LESS.items()):
            runs[name] = with_less(ours, Path(temporary, str(number)), change)
        times: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(options.rounds):
            for name, of_it in runs.items():
                times[name].append(seconds(of_it, "dvc", "repro"))
        print("| `dvc repro` with nothing to do | seconds | times the empty one |")
        print("|---|---:|---:|")
        empties = times["an empty pipeline"]
        for name, taken in times.items():
            ratio = median(a / b for a, b in zip(taken, empties, strict=True))
            print(f"| {name} | {median(taken):.2f} | {ratio:.2f} |")
        overheads = []
        for number in range(options.rounds):
            option = f"train.lr={0.001 + number * 1e-4:.4f}"
            whole = seconds(run, "dvc", "exp", "run", "-S", option)
            overheads.append(whole - stage_seconds(ours))
        print(f"`dvc exp run` beside its stages: {median(overheads):.1f} s")


if __name__ == "__main__":
    main()
