"""What DVC costs beside the stages: ``python -m tests.benchmarks.pipeline`` (README.md)."""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from tests.conftest import TINY, Run, make_clone


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
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        ours, empty = Path(temporary, "parley"), Path(temporary, "empty")
        ours.mkdir()
        empty.mkdir()
        run, run_empty = make_clone(ours, TINY), empty_pipeline(empty)
        run("dvc", "repro")
        run("git", "add", "--all")
        run("git", "commit", "--quiet", "--message=results")
        times: dict[str, list[float]] = {"parley": [], "empty": []}
        for _ in range(options.rounds):
            times["parley"].append(seconds(run, "dvc", "repro"))
            times["empty"].append(seconds(run_empty, "dvc", "repro"))
        ratio = median(a / b for a, b in zip(*times.values(), strict=True))
        print(
            f"`dvc repro` with nothing to do: {median(times['parley']):.2f} s, an empty pipeline "
            f"{median(times['empty']):.2f} s: {ratio:.2f} times"
        )
        overheads = []
        for number in range(options.rounds):
            option = f"train.lr={0.001 + number * 1e-4:.4f}"
            whole = seconds(run, "dvc", "exp", "run", "-S", option)
            overheads.append(whole - stage_seconds(ours))
        print(f"`dvc exp run` beside its stages: {median(overheads):.1f} s")


if __name__ == "__main__":
    main()
