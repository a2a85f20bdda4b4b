"""Rows in, folder of conversations out: filter, adapt, normalise, deduplicate, split, count."""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.conversations import SPLITS, Message, Split, to_line
from stages.download.formats import Malformed, Unusable, adapt
from stages.download.normalise import content_digest, held_out, normalise
from stages.download.params import DataParams
from stages.download.rows import BadRow, Row, Rows
from stages.errors import DataError, SettingsError
from stages.files import sha256_file, write_json
from stages.progress import Progress

# Malformed rows are judged at the end; a source that is not what it says it is stops earlier.
HOPELESS_ROWS = 10_000


class _SplitWriter:
    """Lines of one split, with their counts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = path.open("w", encoding="utf-8", newline="\n")
        self.conversations = self.messages = self.bytes = 0

    def write(self, line: str, messages: list[Message]) -> None:
        self.file.write(line)
        self.conversations += 1
        self.messages += len(messages)
        self.bytes += sum(len(m["content"].encode()) for m in messages)

    def close(self) -> dict[str, Any]:
        self.file.close()
        return {
            "conversations": self.conversations,
            "messages": self.messages,
            "bytes": self.bytes,
            "sha256": sha256_file(self.path),
        }


def collect(rows: Rows, params: DataParams, folder: Path) -> dict[str, Any]:
    """Writes the conversations of ``rows`` into ``folder`` and returns the data report.

    Raises DataError when nothing survives or more than ``max_bad_fraction`` is malformed,
    SettingsError when the filter names a column that no row has.
    """
    read = malformed = kept = 0
    dropped: Counter[str] = Counter()
    mended: Counter[str] = Counter()
    first_bad = ""
    seen: set[bytes] = set()
    columns: set[str] = set()
    train = _SplitWriter(folder / "train.jsonl")
    validation: list[tuple[bytes, str]] = []

    with (
        Progress("download", "row") as progress,
        (folder / "rejected.jsonl").open("w", encoding="utf-8", newline="\n") as rejected,
    ):
        for where, row in rows:
            read += 1
            progress.update()
            try:
                if params.filter and not isinstance(row, BadRow):
                    columns.update(params.filter.keys() & row.keys())
                messages, changes = _conversation(row, params)
                digest = content_digest(messages)
                if digest in seen:
                    raise Unusable("duplicate")
            except Malformed as error:
                malformed += 1
                dropped[str(error)] += 1
                first_bad = first_bad or f"{where}: {error}"
                rejected.write(json.dumps({"where": where, "reason": str(error)}) + "\n")
                if read >= HOPELESS_ROWS and malformed / read > max(0.5, params.max_bad_fraction):
                    break
                continue
            except Unusable as error:
                dropped[str(error)] += 1
                continue
            seen.add(digest)
            kept += 1
            mended += changes
            line = to_line(messages)
            if held_out(digest, params.val_fraction):
                validation.append((digest, line))
            else:
                train.write(line, messages)
            if kept == params.subset:
                break

        if read and malformed / read > params.max_bad_fraction:
            raise DataError(
                f"{malformed:,} of {read:,} rows are malformed, more than data.max_bad_fraction "
                f"{params.max_bad_fraction} allows; the first is {first_bad}"
            )
        if read and (missing := sorted(params.filter.keys() - columns)):
            raise SettingsError(f"data.filter: no row has a column '{missing[0]}'")
        if not kept:
            reasons = ", ".join(f"{n:,} {reason}" for reason, n in dropped.most_common())
            raise DataError(
                f"no conversation is left of {read:,} rows ({reasons or 'the source is empty'})"
            )

    splits: dict[Split, dict[str, Any]] = {"train": train.close()}
    # In order of hash, so that any prefix is a fair sample of the validation set.
    held = _SplitWriter(folder / "validation.jsonl")
    for _, line in sorted(validation):
        held.write(line, json.loads(line)["messages"])
    splits["validation"] = held.close()
    write_json(folder / "manifest.json", {"splits": splits})
    return {
        "rows": {
            "read": read,
            "kept": kept,
            "malformed": malformed,
            "dropped": dict(sorted(dropped.items())),
        },
        "messages_mended": dict(sorted(mended.items())),
        **{
            split: {k: splits[split][k] for k in ("conversations", "messages", "bytes")}
            for split in SPLITS
        },
    }


def _conversation(row: Row, params: DataParams) -> tuple[list[Message], Counter[str]]:
    if isinstance(row, BadRow):
        raise Malformed(row.reason)
    if not all(_matches(row, column, wanted) for column, wanted in params.filter.items()):
        raise Unusable("filter")
    messages, mended = normalise(adapt(row, params.format))
    is_text = messages[0]["role"] == "text"
    if not is_text and len(messages) < params.min_turns:
        raise Unusable("min_turns")
    return messages, mended


def _matches(row: Mapping[str, Any], column: str, wanted: object) -> bool:
    if column not in row:
        return False
    choices = wanted if isinstance(wanted, list) else [wanted]
    return any(_equal(row[column], choice) for choice in choices)


def _equal(cell: object, wanted: object) -> bool:
    """Whether ``cell`` holds a scalar of the filter; csv has every value as text.

    A truth value is no number, though Python's True equals 1.
    """
    if isinstance(cell, str):
        if isinstance(wanted, bool):  # written True by some, true by others
            return cell.lower() == str(wanted).lower()
        return wanted is not None and cell == str(wanted)
    return isinstance(cell, bool) == isinstance(wanted, bool) and cell == wanted
