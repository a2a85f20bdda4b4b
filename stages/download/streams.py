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


def open_text(file: Path) -> io.BufferedReader:
    """As ``open_bytes``, for a file of text. Raises DataError if it is UTF-16."""
    stream = open_bytes(file)
    try:
        if _is_utf16(stream.peek(64)[:64]):
            raise DataError(f"{file} is UTF-16: save it as UTF-8")
    except BaseException:
        stream.close()
        raise
    return stream


def _is_utf16(head: bytes) -> bool:
    """By its mark, or since every second byte of text in most languages of Europe is zero."""
    marked = head.startswith((b"\xff\xfe", b"\xfe\xff"))
    return marked or (len(head) >= 4 and not (any(head[0::2]) and any(head[1::2])) and any(head))
