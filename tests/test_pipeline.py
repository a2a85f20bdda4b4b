"""dvc.yaml says of each stage exactly what its code imports and reads."""

import subprocess
import sys
from typing import Any

import pytest
import yaml

from stages import errors
from tests.closure import ROOT, closure, reads_sections

PIPELINE: dict[str, Any] = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
STAGES: dict[str, dict[str, Any]] = PIPELINE["stages"]

# Imported, but no part of what decides an output; with what they import in turn.
LEFT_OUT = {
    "model/__init__.py": "names that lead to other modules",
    "model/native/backend.py": "evaluation computes by torch's operations, whatever the machine",
    "model/native/build.py": "as the kernel",
    "stages/download/transfer.py": "how the hub's files come; each is compared with its digest",
    "stages/errors.py": "messages and exit codes",
    "stages/params.py": "DVC hashes the values themselves",
    "stages/place.py": "which of several processes this is",
    "stages/progress.py": "what the user sees meanwhile",
    "stages/scratch.py": "where an unfinished training is kept",
    "stages/train/checkpoints.py": "a resumed run has the same bytes: train/test_resume.py",
    "stages/train/fingerprint.py": "which state may be resumed",
    "stages/train/launch.py": "starts the processes of a training",
    "stages/train/meter.py": "where the time goes",
    "stages/train/prefetch.py": "when batches are read, not which",
    "stages/train/saves.py": "as checkpoints",
    "stages/train/stopping.py": "when to save and stop",
    "stages/trackers.py": "hears of training, changes nothing",
    "stages/workers.py": "how many threads: tests of the rooms find the same bytes",
}
# Never part of a stage's hash: this machine, and where a run is followed.
NOT_HASHED = {"runtime", "wandb"}
# The check stage reads the whole file; its schemas are its dependencies.
READS_ALL = "check"


# Modules that keys name by default: they draw weights or learn a tokenizer, unless a folder of
# somebody's own is named instead.
BY_DEFAULT = {
    "${train.init_from}": "model/init.py",
    "${tokenizer.path}": "stages/tokenizer/learn.py",
}


def code_dependencies(stage: str) -> set[str]:
    deps = {BY_DEFAULT.get(dep, dep) for dep in STAGES[stage]["deps"]}
    return {dep for dep in deps if dep.endswith(".py")}


@pytest.mark.parametrize("stage", STAGES)
def test_code_dependencies_are_the_import_closure(stage: str) -> None:
    expected = closure(f"stages.{stage}.__main__", frozenset(LEFT_OUT))
    if stage == "preflight":
        expected |= closure("stages.train.__main__", frozenset(LEFT_OUT))
    assert code_dependencies(stage) == expected


def test_preflight_runs_whenever_training_would() -> None:
    preflight, train = STAGES["preflight"], STAGES["train"]
    assert set(preflight["params"]) >= set(train["params"])
    assert {*preflight["deps"], "data/preflight.txt"} >= set(train["deps"])


@pytest.mark.parametrize("stage", [name for name in STAGES if name != READS_ALL])
def test_params_are_the_sections_that_the_code_reads(stage: str) -> None:
    read = reads_sections(closure(f"stages.{stage}.__main__"))
    assert set(STAGES[stage]["params"]) == read - NOT_HASHED


def test_check_covers_every_hashed_section() -> None:
    sections = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    assert set(STAGES[READS_ALL]["params"]) == set(sections) - NOT_HASHED


def test_what_takes_no_options_are_the_stages() -> None:
    assert tuple(PIPELINE["stages"]) == errors.PIPELINE


def test_what_is_left_out_exists() -> None:
    for name in LEFT_OUT:
        assert (ROOT / name).is_file()


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_is_one_simple_command_with_a_description(stage: str) -> None:
    assert STAGES[stage]["cmd"] == f"python -m stages.{stage}"
    assert len(STAGES[stage]["desc"]) > 20


@pytest.mark.parametrize("room", ["download", "tokenizer", "shards", "train", "evaluate"])
def test_stages_never_import_each_other(room: str) -> None:
    for name in closure(f"stages.{room}.__main__"):
        parts = name.split("/")
        assert parts[0] == "model" or len(parts) == 2 or parts[1] == room, name


def test_model_imports_nothing_from_stages() -> None:
    for file in (ROOT / "model").rglob("*.py"):
        module = ".".join(file.relative_to(ROOT).with_suffix("").parts)
        assert not any(name.startswith("stages/") for name in closure(module)), module


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("stages.check.__main__", ["torch", "pandas", "datasets", "numpy", "tokenizers"]),
        ("stages.preflight.__main__", ["torch", "pandas", "datasets", "tokenizers"]),
        ("stages.download.__main__", ["torch", "pandas", "datasets", "tokenizers"]),
        ("stages.tokenizer.__main__", ["torch", "pandas", "datasets"]),
        ("stages.shards.__main__", ["torch", "pandas", "datasets"]),
        ("stages.train.__main__", ["wandb", "datasets", "dvc", "fastapi"]),
        ("stages.evaluate.__main__", ["wandb", "datasets", "dvc", "fastapi"]),
    ],
)
def test_a_stage_imports_no_heavy_library_that_it_does_not_use(
    module: str, absent: list[str]
) -> None:
    program = f"import sys, {module}; print(*(m for m in {absent!r} if m in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert done.stdout.split() == []
