"""The three data stages on a corpus of the benchmarks' own, each a process that is watched."""

import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from stages.errors import DataError
from stages.params import read_yaml

ROOT = Path(__file__).resolve().parents[2]
STAGES = ("download", "tokenizer", "shards")


class Cost(NamedTuple):
    """Of a process: seconds, and the most memory that was ever resident in it, in MiB."""

    seconds: float
    peak_mib: float


def prepare(root: Path, source: Path, settings: dict[str, Any]) -> None:
    """A folder to run stages in: params.yaml with ``{"section.key": value}`` changed."""
    # Without what other processes may be compiling just now.
    left_out = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "stages/download", root / "stages/download", ignore=left_out)
    values = read_yaml(ROOT / "params.yaml")
    for key, value in {"data.name": "local", "data.path": str(source), **settings}.items():
        section, _, name = key.partition(".")
        values[section][name] = value
    text = yaml.safe_dump(values, sort_keys=False)
    (root / "params.yaml").write_text(text, encoding="utf-8")


def run_stages(root: Path) -> dict[str, Cost]:
    """Runs them in ``root``. Raises DataError when one fails."""
    return {stage: watch([sys.executable, "-m", f"stages.{stage}"], root) for stage in STAGES}


def watch(command: list[str], folder: Path) -> Cost:
    """What ``command`` costs. Raises DataError when it fails."""
    program = (
        "import os, resource, subprocess, sys\n"
        "done = subprocess.run(sys.argv[1:])\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)\n"
        "sys.exit(done.returncode)\n"
    )
    import os

    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", program, *command],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - started
    if done.returncode:
        raise DataError(f"{' '.join(command)} failed with {done.returncode}")
    return Cost(seconds, int(done.stdout.split()[-1]) / 1024)
