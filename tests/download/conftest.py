"""The download room's rows, params and runs, in memory and as a stage in a folder of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from stages.conversations import Message
from stages.download.collect import collect
from stages.download.params import EMBEDDED_MARKER, LOCAL, DataParams
from stages.download.rows import Row
from tests.closure import ROOT

DEFAULTS: dict[str, Any] = {
    "name": "local",
    "config": None,
    "split": "train",
    "validation_split": None,
    "revision": None,
    "subset": None,
    "format": "auto",
    "columns": {},
    "filter": {},
    "drop_redacted": False,
    "drop_flagged": False,
    "min_turns": 2,
    "max_turns": None,
    "min_chars": 1,
    "max_chars": None,
    "val_fraction": 0.2,
    "max_bad_fraction": 0.01,
}


def data_params(**changes: Any) -> DataParams:
    """The section as the stage reads it, with ``changes``."""
    path = "." if changes.get("name", LOCAL) == LOCAL else EMBEDDED_MARKER
    return DataParams(**{**DEFAULTS, "path": path, **changes})


def chat(*contents: str, first: str = "user") -> list[dict[str, str]]:
    """Messages of OpenAI's shape in turn, the user's first."""
    roles = ("user", "assistant") if first == "user" else ("assistant", "user")
    return [
        {"role": roles[number % 2], "content": content} for number, content in enumerate(contents)
    ]


def chats(count: int) -> list[dict[str, Any]]:
    """Rows of ``count`` different conversations."""
    return [{"messages": chat(f"What is {n}?", f"It is {n}.")} for n in range(count)]


@dataclass(frozen=True)
class Collected:
    """What ``collect`` returned and wrote."""

    report: dict[str, Any]
    train: list[list[Message]]
    validation: list[list[Message]]
    rejected: list[dict[str, str]]
    manifest: dict[str, Any]

    @property
    def all(self) -> list[list[Message]]:
        return self.train + self.validation


def read_collected(folder: Path, report: dict[str, Any]) -> Collected:
    """The folder that the stage leaves, parsed."""

    def lines(name: str) -> list[Any]:
        text = (folder / name).read_text(encoding="utf-8")
        return [json.loads(line) for line in text.split("\n") if line]

    train, validation = (
        [line["messages"] for line in lines(f"{split}.jsonl")] for split in ("train", "validation")
    )
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    return Collected(report, train, validation, lines("rejected.jsonl"), manifest)


Collect = Callable[..., Collected]


@pytest.fixture
def collected(tmp_path_factory: pytest.TempPathFactory) -> Collect:
    """Runs ``collect`` over rows with changed params, each time in a folder of its own."""

    def run(rows: Iterable[Row], **changes: Any) -> Collected:
        folder = tmp_path_factory.mktemp("conversations")
        numbered = ((f"rows:{number}", row) for number, row in enumerate(rows, 1))
        return read_collected(folder, collect(numbered, data_params(**changes), folder))

    return run


@dataclass(frozen=True)
class Ran:
    """A run of the stage: its exit code, its lines on stderr and its folder."""

    code: int
    lines: list[str]
    folder: Path

    @property
    def conversations(self) -> Path:
        return self.folder / "data/conversations"

    @property
    def report(self) -> dict[str, Any]:
        report: dict[str, Any] = json.loads((self.folder / "metrics/data.json").read_bytes())
        return report

    def result(self) -> Collected:
        return read_collected(self.conversations, self.report)

    def outputs(self) -> dict[str, bytes]:
        """Bytes of every file below data and metrics, by name."""
        return {
            path.relative_to(self.folder).as_posix(): path.read_bytes()
            for root in ("data", "metrics")
            for path in sorted((self.folder / root).rglob("*"))
            if path.is_file()
        }

    def failed(self, code: int, *parts: str) -> None:
        """Asserts the one line of a failure, with what it must name, and that nothing is left."""
        assert (self.code, len(self.lines)) == (code, 1), "\n".join(self.lines)
        line = self.lines[0]
        assert line.startswith("error: download: ")
        assert line.endswith(f"(exit code {code})")
        for part in parts:
            assert part in line
        assert not self.outputs()
        assert not list(self.folder.rglob("*.partial"))


def workspace(folder: Path, **changes: Any) -> Path:
    """A folder to run the stage in: params.yaml and the embedded set's marker."""
    (folder / "stages/download").mkdir(parents=True, exist_ok=True)
    (folder / EMBEDDED_MARKER).write_bytes((ROOT / EMBEDDED_MARKER).read_bytes())
    section = {**DEFAULTS, "path": EMBEDDED_MARKER, **changes}
    (folder / "params.yaml").write_text(yaml.safe_dump({"data": section}), encoding="utf-8")
    return folder


def stage_environment(more: Mapping[str, str]) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), **more}


def run_stage(folder: Path, environment: Mapping[str, str] | None = None) -> Ran:
    """``python -m stages.download`` in ``folder``, which it is told by params.yaml alone."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "stages.download"],
        cwd=folder,
        env=stage_environment(environment or {}),
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.stdout == b""
    return Ran(done.returncode, done.stderr.decode().splitlines(), folder)


def jsonl(rows: Iterable[object]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
