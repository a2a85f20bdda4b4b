"""Reader of a JSON file: records one at a time, whatever the size of the array that holds them."""

import codecs
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stages.download.formats import recognise
from stages.download.rows import BadRow, Row
from stages.download.streams import open_text
from stages.errors import DataError

CHUNK = 1 << 20  # bytes read at once, or as many as the record that is being read has so far
LONGEST_LINE = 1 << 26  # bytes of a line that is_lines looks at: memory does not grow with a file
NEAR_END = 16  # what fails so near to the end of what was read may be cut, as a string always may

_CUT = ", and the file ends: is it cut off?"
_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()
_DECODER_OF_LONG_NUMBERS = json.JSONDecoder(parse_int=str)


def read_json(file: Path) -> Iterator[tuple[int, Row]]:
    """An array of objects, or an object whose only list holds them (as ``{"data": […]}``).

    Raises DataError naming item and line where the file is no JSON.
    """
    with open_text(file) as stream:
        text = _Text(file, stream)
        if text.peek() == "[":
            yield from enumerate(text.records(), 1)
            text.end()
            return
        if text.peek() != "{":
            text.skip()
            text.end()
            raise DataError(f"{file} holds no array of records")
        keys, lists = [], []
        for key in text.members():
            keys.append(key)
            if text.peek() == "[":
                lists.append(key)
                for _ in text.items():
                    text.skip()
            else:
                text.skip()
        text.end()
    with open_text(file) as stream:
        text = _Text(file, stream)
        if len(lists) != 1 or recognise(dict.fromkeys(keys)) is not None:
            yield 1, text.record()
            return
        for key in text.members():
            if key == lists[0]:
                yield from enumerate(text.records(), 1)
            else:
                text.skip()


def is_lines(file: Path) -> bool:
    """Whether a file that is called JSON is JSON Lines: two lines and more, an object in one.

    Many are, on the hub and elsewhere, and the loader of `datasets` takes either.
    """
    with open_text(file) as stream:
        if stream.peek(64)[:64].lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
            return False
        found: list[bytes] = []
        while len(found) < 2 and (line := stream.readline(LONGEST_LINE)):
            if not line.endswith(b"\n") and len(line) == LONGEST_LINE:
                return False
            if line.strip():
                found.append(line)
    return len(found) == 2 and any(map(_is_object, found))


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


class _Text:
    """The text of a JSON file from where it has been read to, a part in memory at a time."""

    def __init__(self, file: Path, stream: io.BufferedReader) -> None:
        self._file, self._stream = file, stream
        self._decode = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape").decode
        self._buffer, self._at, self._whole = "", 0, False
        self._began = 0  # where in the buffer the last value begins
        self._line = 1  # of the buffer's first character
        self._sound = True  # all so far is UTF-8
        self._item = 0  # of the last array of the file

    def _more(self) -> None:
        """Drops what has been read, and reads at least as much as is left."""
        self._line += self._buffer.count("\n", 0, self._at)
        left = self._buffer[self._at :]
        read = self._stream.read(max(CHUNK, len(left)))
        self._whole = not read
        more = self._decode(read, self._whole)
        # A byte that is not UTF-8 has become half of a surrogate pair.
        self._sound = self._sound and (more.isascii() or _is_unicode(more))
        self._buffer, self._at = left + more, 0

    def peek(self) -> str:
        """The next character that is no white space; none at the end."""
        while True:
            self._at = _SPACE.match(self._buffer, self._at).end()  # type: ignore[union-attr]
            if self._at < len(self._buffer):
                return self._buffer[self._at]
            if self._whole:
                return ""
            self._more()

    def value(self, decoder: json.JSONDecoder = _DECODER) -> Any:
        """The next value. Raises ValueError for an integer that is too long, DataError."""
        self.peek()
        while True:
            self._began = self._at
            try:
                value, end = decoder.raw_decode(self._buffer, self._at)
            except json.JSONDecodeError as error:
                in_string = error.msg.startswith("Unterminated string")
                if self._whole or not (in_string or error.pos > len(self._buffer) - NEAR_END):
                    reason = f"a string that does not end{_CUT}" if in_string else error.msg
                    raise self._failure(reason, error.pos) from None
            except RecursionError:
                raise self._failure("nested too deeply", self._at) from None
            else:
                # A number near the end of the buffer may go on: of 1e+ it is the 1.
                sure = self._buffer[end - 1] in '"]}' or end < len(self._buffer) - NEAR_END
                if sure or self._whole:
                    self._at = end
                    return value
            self._more()

    def skip(self) -> None:
        """Reads the next value, whatever it is."""
        self.value(_DECODER_OF_LONG_NUMBERS)

    def record(self) -> Row:
        """The next value as a row."""
        try:
            value = self.value()
        except ValueError:
            self.skip()
            return BadRow("not_json")
        if not self._sound and not _is_unicode(self._buffer[self._began : self._at]):
            return BadRow("not_utf8")
        return value if isinstance(value, dict) else BadRow("not_an_object")

    def items(self) -> Iterator[None]:
        """Halts before each value of an array, which has to be read then."""
        self._take("[")
        self._item = 0
        if self.peek() != "]":
            self._item += 1
            yield
            while self.peek() == ",":
                self._take(",")
                self._item += 1
                yield
        self._take("]")

    def records(self) -> Iterator[Row]:
        for _ in self.items():
            yield self.record()

    def members(self) -> Iterator[str]:
        """The keys of an object, each halted at before its value, which has to be read then."""
        self._take("{")
        while self.peek() != "}":
            key = self.value()
            if not isinstance(key, str):
                raise self._failure("a key is no string", self._at)
            self._take(":")
            yield key
            if self.peek() != "}":
                self._take(",")
        self._take("}")

    def end(self) -> None:
        if self.peek():
            raise self._failure("more after its end (one object a line? name it .jsonl)", self._at)

    def _take(self, mark: str) -> None:
        if self.peek() != mark:
            raise self._failure(f"Expecting '{mark}'", self._at)
        self._at += 1

    def _failure(self, reason: str, at: int) -> DataError:
        line = self._line + self._buffer.count("\n", 0, at)
        where = f"item {self._item}, " if self._item else ""
        cut = _CUT if self._whole and at >= len(self._buffer) else ""
        return DataError(f"{self._file} is not JSON: {where}line {line}: {reason}{cut}")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
