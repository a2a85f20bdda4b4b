"""Readers of local files: one row at a time, so that a broken line costs that line alone."""

import csv
import functools
import io
import itertools
import json
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

import orjson

from stages.download.folders import COMPRESSIONS, KINDS, TRAIN, files_below, files_of_split, kind_of
from stages.download.json_file import is_lines, read_json
from stages.download.rows import BadRow, Part, Row, Rows
from stages.download.streams import DAMAGED_GZIP, open_text
from stages.download.tables import read_arrow, read_parquet
from stages.errors import AccessError, DataError
from stages.progress import say

# Plain text is cut into documents at a blank line after DOCUMENT_CHARS, or at any line end after
# twice that: long enough to hold context, short enough that a single file gives both splits.
DOCUMENT_CHARS = 2_000

# Separators of columns that programs write besides the comma.
_SEPARATORS = ";\t"

_ARRAY = "an array of records? name it .json"


def read_path(
    path: Path,
    columns: Collection[str] | None = None,
    split: str = TRAIN,
    validation_split: str | None = None,
) -> Rows:
    """Rows of a file, or of a split of the files below a folder (stages/download/folders.py).

    Of a table ``columns`` alone are read (None: all).
    """
    for part in parts_of_path(path, columns, split, validation_split):
        yield from part()


def parts_of_path(
    path: Path,
    columns: Collection[str] | None = None,
    split: str = TRAIN,
    validation_split: str | None = None,
) -> list[Part]:
    """The rows of ``read_path``, file by file."""
    files = [path]
    if path.is_dir():
        known, others = files_below(path)
        _say_unread(path, others, f"none of {', '.join(KINDS)}")
        files = files_of_split(known, path, split, validation_split)
        read = set(files)
        _say_unread(path, [file for file in known if file not in read], f"not of split '{split}'")
    return [functools.partial(_named_rows, path, file, columns) for file in files]


def _named_rows(path: Path, file: Path, columns: Collection[str] | None) -> Rows:
    # Named relative to data.path: an absolute path would differ between machines.
    name = file.relative_to(path).as_posix() if path.is_dir() else file.name
    for position, row in rows_of(file, columns):
        yield f"{name}:{position}", row


def _say_unread(path: Path, files: list[Path], what: str) -> None:
    if files:
        names = ", ".join(file.relative_to(path).as_posix() for file in files[:3])
        say(
            f"download: {len(files):,} files of data.path are {what} and are not read: "
            f"{names}{' …' if len(files) > 3 else ''}"
        )


def rows_of(file: Path, columns: Collection[str] | None) -> Iterator[tuple[int, Row]]:
    """Rows of one file with their lines or numbers, read as its name says.

    Raises DataError, AccessError naming it.
    """
    reader = READERS.get(kind_of(file))
    if reader is None:
        raise DataError(
            f"data.path: '{file}' is none of {', '.join(KINDS)} "
            f"(each also with {' or '.join(COMPRESSIONS)} after it)"
        )
    packed = file.suffix.lower()
    try:
        if reader is read_json and is_lines(file):
            reader = read_jsonl
        if reader is read_parquet or reader is read_arrow:
            yield from reader(file, columns)
        else:
            yield from reader(file)
    except DAMAGED_GZIP as error:
        raise DataError(f"{file} is a damaged gzip file: {error}") from None
    except PermissionError:
        raise AccessError(f"data.path: no permission to read {file}") from None
    except OSError as error:
        if packed != ".zst" or error.errno is not None:
            raise
        raise DataError(f"{file} is a damaged zstd file: {error}") from None


def _lines(file: Path) -> Iterator[tuple[int, bytes]]:
    """The lines, without their ends and the mark that a file of UTF-8 may begin with."""
    with open_text(file) as stream:
        for number, line in enumerate(stream, 1):
            yield number, (line if number > 1 else line.removeprefix(BOM_UTF8)).rstrip(b"\r\n")


def read_jsonl(file: Path) -> Iterator[tuple[int, Row]]:
    """One JSON object a line; blank lines are passed over. Of a key given twice the last counts."""
    for number, line in _lines(file):
        try:
            value = orjson.loads(line)
        except orjson.JSONDecodeError:
            if line.strip():
                yield number, _parsed(line)
        else:
            yield number, value if isinstance(value, dict) else _not_an_object(line)


def _parsed(line: bytes) -> Row:
    """What the line holds for Python, whose JSON has more in it: NaN, halves of surrogate pairs."""
    try:
        value = json.loads(line.decode())
    except UnicodeDecodeError:
        return BadRow("not_utf8", "save the file as UTF-8")
    except json.JSONDecodeError as error:
        detail = _ARRAY if line.lstrip().startswith(b"[") else f"{error.msg}, column {error.colno}"
        return BadRow("not_json", detail)
    except (ValueError, RecursionError):  # more digits, or brackets, than Python takes
        return BadRow("not_json")
    return value if isinstance(value, dict) else _not_an_object(line)


def _not_an_object(line: bytes) -> BadRow:
    return BadRow("not_an_object", _ARRAY if line.lstrip().startswith(b"[") else "")


def read_csv(file: Path) -> Iterator[tuple[int, Row]]:
    """Comma-separated values with a header line; a row of another length is malformed.

    Where the header has no comma but semicolons or tabs, as of many spreadsheets, these separate.
    A quote that breaks its row, or is never closed, costs the line on which that row begins.
    """
    csv.field_size_limit(2**31 - 1)
    with open_text(file) as stream:
        # Bytes that are not UTF-8 become lone surrogates, so that they cost no other row.
        text = io.TextIOWrapper(stream, "utf-8-sig", errors="surrogateescape", newline="")
        first = list(_up_to_text(text))
        read = functools.partial(csv.reader, delimiter=_separator(*first[-1:]), strict=True)
        header: list[str] = []
        for number, values in _csv_rows(itertools.chain(first, text), read):
            if not header:
                if isinstance(values, csv.Error):
                    raise DataError(f"{file}:{number}: {values}: is a quote not closed?")
                # Columns without a name are often empty ones that a spreadsheet has added.
                twice = [name for name, n in Counter(values).items() if name and n > 1]
                if twice:
                    raise DataError(f"{file}:{number}: the header has column '{twice[0]}' twice")
                header = values
            elif isinstance(values, csv.Error):
                yield number, BadRow("not_csv", str(values))
            elif values:
                yield number, _csv_row(header, values)


def _up_to_text(lines: Iterator[str]) -> Iterator[str]:
    """The lines up to the first that is not blank."""
    for line in lines:
        yield line
        if line.strip():
            return


def _separator(header: str = "") -> str:
    separator = max(_SEPARATORS, key=header.count)
    return separator if separator in header and "," not in header else ","


def _csv_rows(
    text: Iterator[str], read: Callable[[Iterable[str]], Iterator[list[str]]]
) -> Iterator[tuple[int, list[str] | csv.Error]]:
    """Values of each row (none for a blank line) or what breaks it, by number of its first line."""
    number = 1
    again: list[str] = []
    while True:
        taken: list[str] = []
        lines = _noted(itertools.chain(again, text), taken)
        try:
            values = next(read(lines))
        except StopIteration:
            return
        except csv.Error as error:
            yield number, error
            # An open quote took in all lines up to the next quote, so those between hold whole
            # rows. The last has that quote, and may begin a row of several lines.
            for inner, line in enumerate(taken[1:-1], number + 1):
                yield inner, _csv_line(line, read)
            again = taken[1:][-1:]
            number += len(taken) - len(again)
        else:
            yield number, values
            again = []
            number += len(taken)


def _noted(lines: Iterable[str], taken: list[str]) -> Iterator[str]:
    for line in lines:
        taken.append(line)
        yield line


def _csv_line(
    line: str, read: Callable[[Iterable[str]], Iterator[list[str]]]
) -> list[str] | csv.Error:
    try:
        return next(read([line]))
    except csv.Error as error:
        return error


def _csv_row(header: list[str], values: list[str]) -> Row:
    if len(values) != len(header):
        return BadRow("wrong_number_of_columns", f"{len(values):,}, the header {len(header):,}")
    try:
        "".join(values).encode()
    except UnicodeEncodeError:
        return BadRow("not_utf8", "save the file as UTF-8")
    return dict(zip(header, values, strict=True))


def read_txt(file: Path) -> Iterator[tuple[int, Row]]:
    """Plain text as documents of about DOCUMENT_CHARS characters, cut between lines.

    A line of twice that and more is cut between words.
    """
    lines: list[str] = []
    start, length = 1, 0

    def document() -> tuple[int, Row]:
        return start, {"text": "\n".join(lines).strip("\n")}

    for number, line in _short_lines(file):
        if isinstance(line, BadRow):
            yield number, line
            continue
        if not lines and not line.strip():
            continue
        start = start if lines else number
        lines.append(line)
        length += len(line) + 1
        at_blank = length >= DOCUMENT_CHARS and not line.strip()
        if at_blank or length >= 2 * DOCUMENT_CHARS or len(line) >= DOCUMENT_CHARS:
            yield document()
            lines, length = [], 0
    if lines:
        yield document()


def _short_lines(file: Path) -> Iterator[tuple[int, str | BadRow]]:
    for number, content in _lines(file):
        try:
            line = content.decode()
        except UnicodeDecodeError:
            yield number, BadRow("not_utf8", "save the file as UTF-8")
            continue
        start = 0
        while len(line) - start >= 2 * DOCUMENT_CHARS:
            cut = line.rfind(" ", start + DOCUMENT_CHARS, start + 2 * DOCUMENT_CHARS)
            cut = cut if cut > 0 else start + 2 * DOCUMENT_CHARS
            yield number, line[start:cut]
            start = cut
            while line.startswith(" ", start):
                start += 1
        yield number, line[start:]


# By kind of file; those of tables take the columns to read besides.
READERS: dict[str, Callable[..., Iterator[tuple[int, Row]]]] = {
    "jsonl": read_jsonl,
    "ndjson": read_jsonl,
    "json": read_json,
    "csv": read_csv,
    "tsv": read_csv,
    "parquet": read_parquet,
    "arrow": read_arrow,
    "txt": read_txt,
}
