"""What is known of the data before training: from the shards, else from what dvc.lock says of the
last run, else from the number that the user gives."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stages.corpus import MANIFEST_FILE, SHARDS, TokenStream, read_manifest
from stages.errors import SettingsError
from stages.params import read_yaml
from stages.plan.settings import Settings
from stages.tokenizer.params import LEARNT

LOCK = Path("dvc.lock")
REPORTS = Path("metrics")
# Bytes of English chat that a token stands for, by size of the vocabulary: the embedded data with
# tokenizers learnt from it (measured; in between by the logarithm of the size).
VOCABULARIES = (512, 1024, 2048, 4096, 8192, 16384, 32000)
BYTES_PER_TOKEN = (2.19, 2.85, 3.36, 3.75, 4.01, 4.18, 4.27)
TEMPLATE_TOKENS = 2.0  # role and end of a message


@dataclass(frozen=True)
class Data:
    """Tokens of the training split and how they are known.

    ``cut`` is the share of training conversations longer than the context (None: not known),
    ``size`` the bytes of data/ on the disk.
    """

    vocab_size: int
    train_tokens: int
    source: str
    size: int
    cut: float | None = None
    documents: int | None = None


def describe(settings: Settings, tokens: int | None) -> Data:
    """The data of ``settings``; ``tokens`` are those of training, if the user knows them.

    Raises SettingsError when nothing tells.
    """
    values = settings.values
    if tokens is not None:
        vocabulary = _vocabulary(values)
        share = values["data"]["val_fraction"]
        held_out = round(tokens * share / (1 - share)) if share < 1 else 0
        width = 2 if vocabulary <= 2**16 else 4
        size = round((tokens + held_out) * (width + _bytes_per_token(vocabulary)))
        return Data(vocabulary, tokens, "as you say", size)
    recorded = _recorded()
    same = {
        name: name in recorded and recorded[name].items() <= values[name].items()
        for name in ("data", "tokenizer", "shards")
    }
    if all(same.values()) and (SHARDS / MANIFEST_FILE).is_file():
        return _of_shards(settings)
    if (REPORTS / "data.json").is_file() and _but_subset(recorded) == _but_subset(values):
        return _of_report(settings)
    raise SettingsError(
        "nothing is known of this data yet: run `dvc repro shards` with these settings, or say "
        "how many tokens it has for training, as --tokens 4e8"
    )


def _recorded() -> dict[str, dict[str, Any]]:
    """The sections that the data of the last run was made with, as dvc.lock has them."""
    if not LOCK.is_file():
        return {}
    stages = read_yaml(LOCK).get("stages") or {}
    sections: dict[str, dict[str, Any]] = {}
    for stage in ("download", "tokenizer", "shards"):
        sections |= stages.get(stage, {}).get("params", {}).get("params.yaml", {})
    return sections


def _but_subset(sections: dict[str, Any]) -> dict[str, Any]:
    """The section ``data`` without the key that says how much of it is kept."""
    return {key: value for key, value in sections.get("data", {}).items() if key != "subset"}


def _of_shards(settings: Settings) -> Data:
    manifest = read_manifest()
    splits = manifest["splits"]
    stream = TokenStream(manifest, "train")
    seq_len, lengths = settings.model.seq_len, []
    last: int | None = None
    for begin in range(0, len(stream), 2**20):
        ids = stream.read(begin, min(begin + 2**20, len(stream)))
        places = begin + np.flatnonzero(ids == stream.roles.bos)
        lengths.append(np.diff(places, prepend=[] if last is None else [last]))
        if len(places):
            last = int(places[-1])
    counted = np.concatenate([*lengths, [len(stream) - (last or 0)]])
    return Data(
        manifest["vocab_size"],
        splits["train"]["tokens"],
        f"{SHARDS}/{MANIFEST_FILE}",
        sum(file.stat().st_size for file in Path("data").rglob("*") if file.is_file()),
        float((counted > seq_len + 1).mean()),
        splits["train"]["documents"],
    )


def _of_report(settings: Settings) -> Data:
    report = json.loads((REPORTS / "data.json").read_text(encoding="utf-8"))
    vocabulary = _vocabulary(settings.values)
    per_token = _bytes_per_token(vocabulary)
    splits = ("train", "validation")
    there = sum(report[split]["conversations"] for split in splits)
    wanted: int | None = settings.values["data"]["subset"]
    share = min(1.0, (wanted or there) / there)
    tokens = {
        split: round(
            share
            * (
                report[split]["bytes"] / per_token
                + TEMPLATE_TOKENS * report[split]["messages"]
                + report[split]["conversations"]
            )
        )
        for split in splits
    }
    size = share * sum(report[split]["bytes"] for split in splits)
    width = 2 if vocabulary <= 2**16 else 4
    return Data(
        vocabulary,
        tokens["train"],
        f"estimated from {REPORTS}/data.json, at {per_token:.2f} bytes a token",
        round(1.1 * size) + width * sum(tokens.values()),
        documents=round(share * report["train"]["conversations"]),
    )


def _vocabulary(values: dict[str, Any]) -> int:
    """Ids of the tokenizer that will be learnt, or is taken over. Raises SettingsError."""
    path, learnt = values["tokenizer"]["path"], values["tokenizer"]["vocab_size"]
    if path == LEARNT:
        return int(learnt)
    from stages.tokenizer.adopt import adopt

    return adopt(Path(path)).vocab_size


def _bytes_per_token(vocabulary: int) -> float:
    return float(np.interp(np.log(vocabulary), np.log(VOCABULARIES), BYTES_PER_TOKEN))
