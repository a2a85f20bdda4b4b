"""Readers of local files: one row at a time, so that a broken line costs that line alone."""

import csv
import gzip
import io
import itertools
import json
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from stages.download.formats import recognise
from stages.download.rows import BadRow, Row, Rows
from stages.errors import AccessError, DataError
from stages.progress import say

# Plain text is cut into documents at a blank line after DOCUMENT_CHARS, or at any line end after
# twice that: long enough to hold context, short enough that a single file gives both splits.
DOCUMENT_CHARS = 2_000


def read_path(path: Path, columns: Collection[str] | None = None) -> Rows:
    """Rows of a file, or of every supported file below a folder in order of name.

    Of parquet files ``columns`` alone are read (None: all).
    """
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file() and not _hidden(p, path))
        known = [file for file in files if _suffix(file) in READERS]
        if not known:
            raise DataError(f"data.path: no {'/'.join(READERS)} file under '{path}'")
        if others := [file.name for file in files if file not in known]:
            say(
                f"download: {len(others):,} files of data.path are none of {', '.join(READERS)} "
                f"and are not read: {', '.join(others[:3])}{' …' if len(others) > 3 else ''}"
            )
    else:
        known = [path]
    for file in known:
        reader = READERS.get(_suffix(file))
        if reader is None:
            raise DataError(
                f"data.path: '{file}' is none of {', '.join(READERS)} (each also as .gz)"
            )
        # Named relative to data.path: an absolute path would differ between machines.
        name = file.relative_to(path).as_posix() if path.is_dir() else file.name
        try:
            rows = read_parquet(file, columns) if reader is read_parquet else reader(file)
            for position, row in rows:
                yield f"{name}:{position}", row
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise DataError(f"{file} is a damaged gzip file: {error}") from None
        except PermissionError:
            raise AccessError(f"data.path: no permission to read {file}") from None


def _hidden(file: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(root).parts)


def _suffix(file: Path) -> str:
    suffixes = [s.lower() for s in file.suffixes if s.lower() != ".gz"]
    return suffixes[-1].lstrip(".") if suffixes else ""


def _open(file: Path) -> io.BufferedReader:
    if file.suffix.lower() == ".gz":
        return io.BufferedReader(gzip.open(file, "rb"))
    return file.open("rb")


def _lines(file: Path) -> Iterator[tuple[int, str | BadRow]]:
    with _open(file) as stream:
        for number, line in enumerate(stream, 1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                yield number, BadRow("not_utf8")
            else:
                yield number, text.rstrip("\r\n")


def read_jsonl(file: Path) -> Iterator[tuple[int, Row]]:
    """One JSON object a line; blank lines are passed over."""
    for number, line in _lines(file):
        if isinstance(line, BadRow):
            yield number, line
        elif line.strip():
            yield number, _parsed(line)


def _parsed(line: str) -> Row:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return BadRow("not_json")
    return value if isinstance(value, dict) else BadRow("not_an_object")


def read_json(file: Path) -> Iterator[tuple[int, Row]]:
    """An array of objects, or an object whose only list holds them (as ``{"data": […]}``)."""
    with _open(file) as stream:
        content = stream.read()
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{file} is not JSON: {error} (one object a line? name it .jsonl)"
        ) from None
    if isinstance(value, dict):
        lists = [v for v in value.values() if isinstance(v, list)]
        value = lists[0] if len(lists) == 1 and recognise(value) is None else [value]
    if not isinstance(value, list):
        raise DataError(f"{file} holds no array of records")
    for number, item in enumerate(value, 1):
        yield number, item if isinstance(item, dict) else BadRow("not_an_object")


def read_csv(file: Path) -> Iterator[tuple[int, Row]]:
    """Comma-separated values with a header line; a row of another length is malformed.

    A quote that breaks its row, or is never closed, costs the line on which that row begins.
    """
    csv.field_size_limit(2**31 - 1)
    with _open(file) as stream:
        # Bytes that are not UTF-8 become lone surrogates, so that they cost no other row.
        text = io.TextIOWrapper(stream, "utf-8-sig", errors="surrogateescape", newline="")
        header: list[str] = []
        for number, values in _csv_rows(text):
            if not header:
                if isinstance(values, csv.Error):
                    raise DataError(f"{file}:{number}: {values}: is a quote not closed?")
                # Columns without a name are often empty ones that a spreadsheet has added.
                twice = [name for name, n in Counter(values).items() if name and n > 1]
                if twice:
                    raise DataError(f"{file}:{number}: the header has column '{twice[0]}' twice")
                header = values
            elif isinstance(values, csv.Error):
                yield number, BadRow("not_csv")
            elif values:
                yield number, _csv_row(header, values)


def _csv_rows(text: Iterator[str]) -> Iterator[tuple[int, list[str] | csv.Error]]:
    """Values of each row (none for a blank line) or what breaks it, by number of its first line."""
    number = 1
    again: list[str] = []
    while True:
        taken: list[str] = []
        lines = _noted(itertools.chain(again, text), taken)
        try:
            values = next(csv.reader(lines, strict=True))
        except StopIteration:
            return
        except csv.Error as error:
            yield number, error
            # An open quote took in all lines up to the next quote, so those between hold whole
            # rows. The last has that quote, and may begin a row of several lines.
            for inner, line in enumerate(taken[1:-1], number + 1):
                yield inner, _csv_line(line)
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


def _csv_line(line: str) -> list[str] | csv.Error:
    try:
        return next(csv.reader([line], strict=True))
    except csv.Error as error:
        return error


def _csv_row(header: list[str], values: list[str]) -> Row:
    if len(values) != len(header):
        return BadRow("wrong_number_of_columns")
    try:
        "".join(values).encode()
    except UnicodeEncodeError:
        return BadRow("not_utf8")
    return dict(zip(header, values, strict=True))


def read_parquet(file: Path, columns: Collection[str] | None = None) -> Iterator[tuple[int, Row]]:
    """Rows of a parquet file, a batch in memory at a time; ``columns`` alone (None: all)."""
    import pyarrow
    import pyarrow.parquet

    with _open(file) as stream:
        try:
            number = 0
            table = pyarrow.parquet.ParquetFile(stream)
            for batch in table.iter_batches(batch_size=1024, columns=columns):
                for row in _batch_rows(batch):
                    number += 1
                    yield number, row
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"{file} is a damaged parquet file: {error}") from None


def _batch_rows(batch: Any) -> list[Row]:
    try:
        return batch.to_pylist()
    except (ValueError, OverflowError):  # a value that Python cannot hold costs its row
        return [_batch_row(batch.slice(i, 1)) for i in range(batch.num_rows)]


def _batch_row(batch: Any) -> Row:
    try:
        return batch.to_pylist()[0]
    except UnicodeDecodeError:
        return BadRow("not_utf8")
    except (ValueError, OverflowError):
        return BadRow("unreadable_value")


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
    for number, line in _lines(file):
        if isinstance(line, BadRow) or len(line) < 2 * DOCUMENT_CHARS:
            yield number, line
            continue
        while len(line) >= 2 * DOCUMENT_CHARS:
            cut = line.rfind(" ", DOCUMENT_CHARS, 2 * DOCUMENT_CHARS)
            cut = cut if cut > 0 else 2 * DOCUMENT_CHARS
            yield number, line[:cut]
            line = line[cut:].lstrip(" ")
        yield number, line


READERS: dict[str, Callable[[Path], Iterator[tuple[int, Row]]]] = {
    "jsonl": read_jsonl,
    "ndjson": read_jsonl,
    "json": read_json,
    "csv": read_csv,
    "parquet": read_parquet,
    "txt": read_txt,
}
