"""A model to give away: ``python -m model.export FOLDER``.

Copies ``models/chat`` with a model card (README.md): the hub's metadata, ``metrics/report.md``, and
where it comes from. ``--from`` takes a copy of the model from elsewhere. The model and the report
must be those that dvc.lock records, so that the card speaks of the model beside it.
"""

import argparse
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import yaml

from model.cli import Failure, run, unwritable

MODEL = "models/chat"
REPORT = "metrics/report.md"
CARD = "README.md"
METRICS = ("data", "eval", "train")
CHUNK = 1 << 20


class ExportError(Failure):
    """What stands in the way, in one line."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ExportError(f"{message}: python -m model.export FOLDER [--from {MODEL}]")


def main(arguments: list[str] | None = None, root: Path = Path()) -> Path:
    """Exports as the command line says and returns the new folder. Raises ExportError."""
    parser = _Parser(prog="python -m model.export", description=__doc__)
    parser.add_argument("folder", type=Path, help="a new (or empty) folder")
    parser.add_argument("--from", dest="source", type=Path, default=root / MODEL, help="the model")
    options = parser.parse_args(arguments)
    export(options.source, options.folder, root)
    return Path(options.folder)


def export(source: Path, target: Path, root: Path = Path()) -> None:
    """Writes ``target``, whole or not at all. Raises ExportError."""
    from model.card import card
    from model.loading import load

    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ExportError(f"'{target}' is there already and not empty: name a new folder")
    if target.resolve().is_relative_to(source.resolve()):
        raise ExportError(f"'{target}' is inside the model folder: name a folder elsewhere")
    if not source.is_dir():
        raise ExportError(f"no model folder '{source}': run `dvc repro`")
    lock = read_lock(root)
    check(source, root, lock)
    try:
        load(source)
        found = {
            name: json.loads((root / f"metrics/{name}.json").read_text(encoding="utf-8"))
            for name in METRICS
        }
        report = (root / REPORT).read_text(encoding="utf-8")
    except (FileNotFoundError, ValueError) as error:
        raise ExportError(f"{error}: run `dvc repro`") from None

    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        _copy(source, partial)
        name = target.resolve().name
        text = card(name, source, report, found, root, lock)
        (partial / CARD).write_text(text, encoding="utf-8", newline="\n")
        for file in partial.rglob("*"):
            if file.is_file():
                with file.open("rb") as handle:
                    os.fsync(handle.fileno())
        if target.exists():
            target.rmdir()
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _copy(source: Path, target: Path) -> None:
    """As shutil.copytree, but an error stays an OSError that tells its reason."""
    for path in sorted(path for path in source.rglob("*") if path.is_file()):
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)


def read_lock(root: Path) -> dict[str, Any]:
    """dvc.lock. Raises ExportError when there is none, or one without the pipeline's stages."""
    path = root / "dvc.lock"
    try:
        lock = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert isinstance(lock["stages"], dict)
    except FileNotFoundError:
        raise ExportError(
            f"{path} not found: run `dvc repro` first, and this from the repository root"
        ) from None
    except (yaml.YAMLError, TypeError, KeyError, AssertionError):
        raise ExportError(f"{path} is damaged: `git checkout dvc.lock`") from None
    return dict(lock)


def check(source: Path, root: Path, lock: Mapping[str, Any]) -> None:
    """Raises ExportError unless dvc.lock speaks of this model and of the report on it."""
    made = _recorded(lock, "train", MODEL, "outs")
    reported = _recorded(lock, "report", MODEL, "deps")
    if made is None or reported is None or made != reported:
        raise ExportError("dvc.lock has no report on the last model: run `dvc repro`")
    if folder_md5(source) != made:
        raise ExportError(
            f"'{source}' is not the model that dvc.lock and {REPORT} speak of: run `dvc repro`, "
            "or `dvc checkout` to have that one back"
        )
    report = root / REPORT
    if not report.is_file() or file_md5(report) != _recorded(lock, "report", REPORT, "outs"):
        raise ExportError(f"{report} is not what the pipeline wrote: run `dvc repro`")
    for name in METRICS:
        path = f"metrics/{name}.json"
        if not (root / path).is_file() or file_md5(root / path) != _recorded(
            lock, "report", path, "deps"
        ):
            raise ExportError(f"{path} is not what the report was made of: run `dvc repro`")


def _recorded(lock: Mapping[str, Any], stage: str, path: str, kind: str) -> str | None:
    for entry in lock["stages"].get(stage, {}).get(kind, []):
        if entry["path"] == path:
            return str(entry["md5"])
    return None


def file_md5(path: Path) -> str:
    """Hex digest of a file's bytes, as DVC records it."""
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def folder_md5(folder: Path) -> str:
    """DVC's sum of a folder: that of the list of its files and their sums."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    entries = [
        {"md5": file_md5(path), "relpath": path.relative_to(folder).as_posix()} for path in files
    ]
    entries.sort(key=lambda entry: entry["relpath"])
    text = json.dumps(entries, sort_keys=True)
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest() + ".dir"


def command() -> None:
    """Exports and says so. Raises Failure, or OSError for a disk that is full or failing."""
    try:
        made = main()
    except OSError as error:
        raise unwritable(Path(error.filename2 or error.filename or "FOLDER"), error) from None
    print(f"export: {made}")


if __name__ == "__main__":
    run("export", command)
