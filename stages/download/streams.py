"""The bytes of a file, unpacked as its name says."""

import gzip
import io
import zlib
from pathlib import Path

from stages.errors import DataError

# What a damaged file raises while it is unpacked; pyarrow's errors of zstd are bare OSErrors.
DAMAGED_GZIP = (EOFError, gzip.BadGzipFile, zlib.error)


def open_bytes(file: Path) -> io.BufferedReader:
    """The contents of ``file``, unpacked if it ends in .gz or .zst; not all can be rewound."""
    suffix = file.suffix.lower()
    if suffix == ".gz":
        return io.BufferedReader(gzip.open(file, "rb"))
    if suffix == ".zst":
        import pyarrow

        return io.BufferedReader(pyarrow.CompressedInputStream(file.open("rb"), "zstd"))
    return file.open("rb")


# How files begin that are no text.
_MARKS = {b"\x1f\x8b": ".gz", b"\x28\xb5\x2f\xfd": ".zst", b"PAR1\x15": ".parquet"}


def open_text(file: Path) -> io.BufferedReader:
    """As ``open_bytes``, for a file of text. Raises DataError if it is UTF-16, or no text."""
    stream = open_bytes(file)
    try:
        head = stream.peek(64)[:64]
        if _is_utf16(head):
            raise DataError(f"{file} is UTF-16: save it as UTF-8")
        for mark, suffix in _MARKS.items():
            if head.startswith(mark):
                raise DataError(f"{file} holds a {suffix} file: end its name so")
    except BaseException:
        stream.close()
        raise
    return stream


def _is_utf16(head: bytes) -> bool:
    """By its mark, or since every second byte of text in most languages of Europe is zero."""
    marked = head.startswith((b"\xff\xfe", b"\xfe\xff"))
    return marked or (len(head) >= 4 and not (any(head[0::2]) and any(head[1::2])) and any(head))
