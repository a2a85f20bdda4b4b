"""Readers of Arrow's tables: parquet files, and the Arrow files that `datasets` saves."""

import io
import shutil
import tempfile
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stages.download.folders import COMPRESSIONS
from stages.download.rows import BadRow, Row
from stages.download.streams import open_bytes
from stages.errors import DISK_ERRNOS, DataError

BATCH_ROWS = 1024
BUFFER = 1 << 20  # bytes of a column that are read at once
END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"


def read_parquet(file: Path, columns: Collection[str] | None = None) -> Iterator[tuple[int, Row]]:
    """Rows of a parquet file, a batch in memory at a time; ``columns`` alone (None: all).

    Of a column ``a.b`` that the file does not have as such, the fields ``b`` of ``a`` are read.
    """
    import pyarrow
    import pyarrow.parquet

    with _rewindable(file) as stream, _damage_named(file, "parquet"):
        table = pyarrow.parquet.ParquetFile(stream, buffer_size=BUFFER)
        _check_names(file, table.schema_arrow.names, columns)
        leaves = [table.schema.column(i).path for i in range(len(table.schema))]
        chosen = None if columns is None else _chosen(leaves, columns)
        yield from _numbered(table.iter_batches(batch_size=BATCH_ROWS, columns=chosen))


def read_arrow(file: Path, columns: Collection[str] | None = None) -> Iterator[tuple[int, Row]]:
    """Rows of an Arrow file or stream; of its columns ``columns`` alone (None: all)."""
    import pyarrow

    with _rewindable(file) as stream, _damage_named(file, "Arrow"):
        is_file = stream.read(6) == b"ARROW1"
        stream.seek(max(0, stream.seek(0, io.SEEK_END) - len(END_OF_STREAM)))
        if not is_file and stream.read() != END_OF_STREAM:
            raise OSError("it is cut off")
        stream.seek(0)
        opened = pyarrow.ipc.open_file if is_file else pyarrow.ipc.open_stream
        schema = opened(stream).schema
        _check_names(file, schema.names, columns)
        wanted = None if columns is None else {name.split(".")[0] for name in columns} | {*columns}
        fields = [i for i, name in enumerate(schema.names) if wanted is None or name in wanted]
        stream.seek(0)
        reader = opened(stream, options=pyarrow.ipc.IpcReadOptions(included_fields=fields))
        batches = (
            (reader.get_batch(i) for i in range(reader.num_record_batches)) if is_file else reader
        )
        yield from _numbered(_sound_parts(batches))


@contextmanager
def _rewindable(file: Path) -> Iterator[io.BufferedIOBase]:
    """The unpacked contents, on disk where they are compressed: tables begin at their end."""
    with open_bytes(file) as stream:
        if file.suffix.lower() not in COMPRESSIONS:
            yield stream
            return
        with tempfile.TemporaryFile() as unpacked:
            shutil.copyfileobj(stream, unpacked, BUFFER)
            unpacked.seek(0)
            yield unpacked


@contextmanager
def _damage_named(file: Path, kind: str) -> Iterator[None]:
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno in DISK_ERRNOS:
            raise
        raise DataError(f"{file} is a damaged {kind} file: {error}") from None


def _check_names(file: Path, names: list[str], columns: Collection[str] | None) -> None:
    for name, count in Counter(names).items():
        if count > 1 and (columns is None or name in columns):
            raise DataError(f"{file} has column '{name}' twice")


def _chosen(leaves: list[str], columns: Collection[str]) -> list[str]:
    """What pyarrow is to read: names of columns, or paths of fields within them."""
    chosen = set(columns)
    for column in columns:
        name, _, field = column.rpartition(".")
        if name and column not in leaves:
            chosen.update(
                leaf
                for leaf in leaves
                if leaf == name or (leaf.startswith(f"{name}.") and leaf.endswith(f".{field}"))
            )
    return sorted(chosen)


def _sound_parts(batches: Any) -> Iterator[Any]:
    for batch in batches:
        batch.validate(full=True)  # its buffers are taken from the file as they are
        for start in range(0, batch.num_rows, BATCH_ROWS):
            yield batch.slice(start, BATCH_ROWS)


def _numbered(batches: Any) -> Iterator[tuple[int, Row]]:
    number = 0
    for batch in batches:
        for row in batch_rows(batch):
            number += 1
            yield number, row


def batch_rows(batch: Any) -> list[Row]:
    """Rows of a record batch of pyarrow."""
    try:
        return _rows(batch)
    except (ValueError, OverflowError):  # a value that Python cannot hold costs its row
        return [_batch_row(batch.slice(i, 1)) for i in range(batch.num_rows)]


def _batch_row(batch: Any) -> Row:
    try:
        return _rows(batch)[0]
    except UnicodeDecodeError:
        return BadRow("not_utf8")
    except (ValueError, OverflowError):
        return BadRow("unreadable_value")


def _rows(batch: Any) -> list[Row]:
    if not batch.num_columns:
        return [{} for _ in range(batch.num_rows)]
    names = batch.schema.names
    columns = (_values(column) for column in batch.columns)
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def _values(array: Any) -> list[Any]:
    """As ``to_pylist``, several times as fast where lists and structs nest."""
    import pyarrow.compute
    from pyarrow import types

    kind = array.type
    if types.is_list(kind) or types.is_large_list(kind):
        values = _values(array.flatten())  # without those of null lists
        lists: list[Any] = []
        start = 0
        for length in pyarrow.compute.list_value_length(array).to_pylist():
            lists.append(None if length is None else values[start : start + length])
            start += length or 0
        return lists
    names = [field.name for field in kind] if types.is_struct(kind) else []
    if names and len(set(names)) == len(names):
        fields = zip(*map(_values, array.flatten()), strict=True)
        structs = [dict(zip(names, values, strict=True)) for values in fields]
        if not array.null_count:
            return structs
        valid = array.is_valid().to_pylist()
        return [struct if ok else None for struct, ok in zip(structs, valid, strict=True)]
    return array.to_pylist()
