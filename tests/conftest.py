"""A clone of the project in a temporary folder, with params small enough to run in seconds."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.closure import ROOT

# The same examples every time, and none too slow: machines differ. To search among others:
# pytest --hypothesis-profile=search
settings.register_profile(
    "repeatable",
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.register_profile("search", settings.get_profile("repeatable"), derandomize=False)
settings.load_profile("repeatable")

TINY = {
    "data.subset": 300,
    "tokenizer.vocab_size": 512,
    "shards.tokens_per_shard": 100_000,
    "model.d_model": 32,
    "model.num_layers": 2,
    "model.d_ff": 64,
    "model.dropout": 0.1,
    "model.seq_len": 64,
    "train.max_steps": 12,
    "train.warmup_steps": 2,
    "train.batch_size": 4,
    "train.eval_interval": 4,
    "train.eval_tokens": 2048,
    "evaluate.max_new_tokens": 8,
    "evaluate.openings": 1,
    "runtime.threads": 1,  # products so small that threads would only wait for one another
}

Run = Callable[..., subprocess.CompletedProcess[str]]


def set_params(folder: Path, values: dict[str, object]) -> None:
    """Changes keys of params.yaml in place, as an editor would."""
    path = folder / "params.yaml"
    text = path.read_text(encoding="utf-8")
    for key, value in values.items():
        section, name = key.split(".")
        pattern = rf"(^{section}:(?:.*\n)(?:[ #].*\n|\n)*?  {name}:) [^#\n]*"
        text, count = re.subn(pattern, rf"\g<1> {value} ", text, count=1, flags=re.M)
        assert count == 1, key
    path.write_text(text, encoding="utf-8")


def environment() -> dict[str, str]:
    """The tests' own environment with this Python's scripts first, and git told who commits."""
    scripts = str(Path(sys.executable).parent)
    return {
        **os.environ,
        "PATH": scripts + os.pathsep + os.environ["PATH"],
        "GIT_AUTHOR_NAME": "tests",
        "GIT_AUTHOR_EMAIL": "tests@localhost",
        "GIT_COMMITTER_NAME": "tests",
        "GIT_COMMITTER_EMAIL": "tests@localhost",
        "DVC_NO_ANALYTICS": "1",
    }


def runner(folder: Path) -> Run:
    """Runs commands in ``folder``, which must succeed unless ``check=False``."""

    def run(*command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, env=environment(), timeout=600
        )
        if check:
            assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done

    return run


def make_clone(folder: Path, values: dict[str, object]) -> Run:
    """Copies the files that git would, sets params, commits, and returns a runner of commands."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split("\0")
    for name in filter(None, listed):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    set_params(folder, values)

    run = runner(folder)
    run("git", "init", "--quiet", "--initial-branch=main")
    run("git", "add", "--all")
    run("git", "commit", "--quiet", "--message=small params")
    return run


@pytest.fixture(scope="session")
def clone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Run]:
    """A committed clone in which `dvc repro` has run once with TINY params."""
    folder = tmp_path_factory.mktemp("clone")
    run = make_clone(folder, TINY)
    run("dvc", "repro")
    run("git", "add", "--all")
    run("git", "commit", "--quiet", "--message=results")
    return folder, run
