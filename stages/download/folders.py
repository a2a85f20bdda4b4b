"""Which files of ``data.path`` are read, and which of them make up a split.

A folder is read in order of name, hidden files aside. In a folder that `datasets` has saved
(``save_to_disk``) the files that its ``state.json`` lists are the data.

A file belongs to a split if it, or a folder above it, is named after the split:
``validation.jsonl``, ``validation-00000-of-00002.parquet``, ``validation/a.csv``. Where nothing is
named ``train``, that split is all that is not validation.
"""

import json
import re
from pathlib import Path

from stages.errors import DataError, SettingsError

# Kinds of file by the end of their name, which may be followed by one of COMPRESSIONS.
KINDS = ("jsonl", "ndjson", "json", "csv", "tsv", "parquet", "arrow", "txt")
COMPRESSIONS = (".gz", ".zst")
TRAIN = "train"

_SHARD = re.compile(r"-\d{5}-of-\d{5}")
_SAVED = ("state.json", "dataset_info.json")  # beside the data of a saved data set


def kind_of(file: Path) -> str:
    """The end of the file's name, in lower case, without that of its compression."""
    suffixes = [s.lower() for s in file.suffixes if s.lower() not in COMPRESSIONS]
    return suffixes[-1].lstrip(".") if suffixes else ""


def files_below(path: Path) -> tuple[list[Path], list[Path]]:
    """The files of a folder that can be read, and those that are of no kind that is, with links.

    Raises DataError when there is none to read.
    """
    found = sorted(p for p in path.rglob("*") if not _hidden(p, path))
    files = [p for p in found if p.is_file()]
    folders = {file.parent for file in files}
    saved = {folder: _data_of(folder) for folder in folders if _is_saved(folder)}
    known: list[Path] = []
    # Linked folders are not gone into, as DVC does not: a link may lead round in a circle.
    others = [p for p in found if p.is_symlink() and not p.is_file()]
    for file in files:
        if file.parent in saved:
            if file in saved[file.parent]:
                known.append(file)
        elif file.name != "dataset_dict.json":
            (known if kind_of(file) in KINDS else others).append(file)
    if not known:
        raise DataError(f"data.path: no {'/'.join(KINDS)} file under '{path}'")
    return known, others


def files_of_split(
    files: list[Path], path: Path, split: str, validation_split: str | None
) -> list[Path]:
    """Those of the ``files`` below ``path`` that make up ``split``. Raises SettingsError."""
    named = [file for file in files if split in _names(file, path)]
    if validation_split is not None and split != validation_split:
        held = {file for file in files if validation_split in _names(file, path)}
        named = [file for file in named if file not in held]
        if split == TRAIN and not named:
            named = [file for file in files if file not in held]
    elif split == TRAIN and not named:
        named = files
    if not named:
        key = "validation_split" if split == validation_split else "split"
        raise SettingsError(
            f"data.{key}: no data under '{path}' is named '{split}' (as {split}.jsonl, or in a "
            f"folder {split})"
        )
    return named


def _hidden(file: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(root).parts)


def _names(file: Path, root: Path) -> set[str]:
    *folders, name = file.relative_to(root).parts
    stem = name.split(".")[0]
    return {*folders, stem, _SHARD.sub("", stem)}


def _is_saved(folder: Path) -> bool:
    return all((folder / name).is_file() for name in _SAVED)


def _data_of(folder: Path) -> set[Path]:
    state = folder / "state.json"
    try:
        entries = json.loads(state.read_bytes())["_data_files"]
        files = {folder / entry["filename"] for entry in entries}
    except (ValueError, KeyError, TypeError, RecursionError):
        raise DataError(f"{state} does not list the files of a saved data set") from None
    for file in sorted(files):
        if not file.is_file():
            raise DataError(f"{state} lists {file.name}, which is not there")
    return files
