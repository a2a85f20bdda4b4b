"""What the report is made of: the files that the stages before it have left."""

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.conversations import CONVERSATIONS
from stages.errors import DataError

METRICS = Path("metrics")
MODEL = Path("models/chat")
WEIGHTS = "model.safetensors"

Rows = list[dict[str, str]]
TABLES = ("history", "context", "turns", "roles", "calibration", "replies")


@dataclass(frozen=True)
class Inputs:
    """The metrics of each stage, the tables, the samples, and the sums of data and weights."""

    data: dict[str, Any]
    tokenizer: dict[str, Any]
    shards: dict[str, Any]
    train: dict[str, Any]
    evaluation: dict[str, Any]
    tables: dict[str, Rows]
    samples: str
    conversations: dict[str, Any]
    config: dict[str, Any]
    weights_sha256: str


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(f"{path} not found: run `dvc repro`") from None


def _json(path: Path) -> dict[str, Any]:
    try:
        value: dict[str, Any] = json.loads(_text(path))
    except ValueError:
        raise DataError(f"{path} is not JSON: run `dvc repro`") from None
    return value


def read_inputs(weights_sha256: str) -> Inputs:
    """Raises DataError naming the file that is missing or damaged."""
    return Inputs(
        data=_json(METRICS / "data.json"),
        tokenizer=_json(METRICS / "tokenizer.json"),
        shards=_json(METRICS / "shards.json"),
        train=_json(METRICS / "train.json"),
        evaluation=_json(METRICS / "eval.json"),
        tables={
            name: list(csv.DictReader(_text(METRICS / f"{name}.csv").splitlines()))
            for name in TABLES
        },
        samples=_text(METRICS / "samples.md"),
        conversations=_json(CONVERSATIONS / "manifest.json"),
        config=_json(MODEL / "config.json"),
        weights_sha256=weights_sha256,
    )
