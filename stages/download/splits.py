"""The files of the two splits, with their counts and sums."""

import hashlib
import os
from pathlib import Path
from typing import Any

from stages.download.digests import KEPT
from stages.download.outcomes import Kept

_PLACE = 8  # bytes of a place in a file
_ORDERED = 65_536  # lines that are put in order at a time


class SplitFile:
    """Lines of one split, in the order in which they are written."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._sum = hashlib.sha256()
        self.conversations = self.messages = self.characters = self.bytes = 0

    def write(self, kept: Kept) -> None:
        self.conversations += 1
        self.messages += kept.messages
        self.characters += kept.characters
        self.bytes += kept.bytes
        self._put(kept.digest, kept.line)

    def _put(self, digest: bytes, line: bytes) -> None:
        self._sum.update(line)
        self._file.write(line)

    def close(self) -> dict[str, Any]:
        """The counts, and the sum of the file."""
        self._file.close()
        return {**self.counts(), "sha256": self._sum.hexdigest()}

    def counts(self) -> dict[str, int]:
        """Of conversations, messages, and the characters and bytes of their contents."""
        return {
            "conversations": self.conversations,
            "messages": self.messages,
            "characters": self.characters,
            "bytes": self.bytes,
        }


class OrderedSplitFile(SplitFile):
    """Lines of one split in order of digest, so that any prefix is a fair sample of it.

    Until it is closed they wait in a file beside; in memory is a digest and a place of each.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._waiting = path.with_name(f"{path.name}.unordered")
        self._lines = self._waiting.open("w+b")
        self._places = bytearray()
        self._end = 0

    def _put(self, digest: bytes, line: bytes) -> None:
        self._places += digest[:KEPT] + self._end.to_bytes(_PLACE, "big")
        self._lines.write(line)
        self._end += len(line)

    def close(self) -> dict[str, Any]:
        import numpy as np

        with self._lines:
            self._lines.flush()
            places = np.frombuffer(self._places, ">u8").reshape(-1, (KEPT + _PLACE) // 8)
            first, second, starts = places.T
            ends = np.append(starts[1:], np.uint64(self._end))
            order = np.lexsort((second, first))
            for begin in range(0, len(order), _ORDERED):
                part = order[begin : begin + _ORDERED]
                for start, end in zip(starts[part].tolist(), ends[part].tolist(), strict=True):
                    super()._put(b"", os.pread(self._lines.fileno(), end - start, start))
        self._waiting.unlink()
        return super().close()
