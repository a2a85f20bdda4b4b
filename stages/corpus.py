"""The contract between shards and the stages after it: the folder of token shards.

Flat arrays of token ids (little-endian uint16 or uint32) in files of each split, and
``manifest.json`` with counts and the sha256 of the tokenizer that made them. Documents follow one
another; each begins with ``<|bos|>``. Which tokens are the assistant's follows from the role
tokens, so nothing but ids is stored.
"""

import json
from bisect import bisect_right
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray

from stages.errors import DataError
from stages.files import sha256_file

if TYPE_CHECKING:
    from stages.conversations import Split

SHARDS = Path("data/shards")
TOKENIZER = Path("data/tokenizer")
MANIFEST_FILE = "manifest.json"

Ids = NDArray[np.int64]
LOOK_BACK = 1024
OPEN_FILES = 64
COUNT_CHUNK = 2**20


class SplitCounts(TypedDict):
    """What the manifest says of a split. ``bytes`` are of message contents, in UTF-8."""

    files: list[dict[str, Any]]
    tokens: int
    documents: int
    bytes: int
    assistant_bytes: int
    text_documents: int


class Manifest(TypedDict):
    """``manifest.json`` of the shards folder."""

    dtype: str
    vocab_size: int
    tokenizer_sha256: str
    validation_sha256: str
    control_ids: dict[str, int]
    splits: "dict[Split, SplitCounts]"


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """The smaller of uint16 and uint32 (little-endian) that holds ids below ``vocab_size``."""
    return np.dtype("<u2") if vocab_size <= 2**16 else np.dtype("<u4")


def read_manifest(folder: Path = SHARDS, tokenizer: Path = TOKENIZER) -> Manifest:
    """The manifest, checked against the tokenizer beside it.

    Raises DataError when it is missing or damaged, or when another tokenizer made the shards.
    """
    path = folder / MANIFEST_FILE
    try:
        manifest: Manifest = json.loads(path.read_text(encoding="utf-8"))
        made_by = manifest["tokenizer_sha256"]
    except FileNotFoundError:
        raise DataError(f"{path} not found: run the shards stage first") from None
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{path} is damaged: run the shards stage again") from None
    file = tokenizer / "tokenizer.json"
    if not file.is_file() or sha256_file(file) != made_by:
        raise DataError(f"{folder} was made by another tokenizer than {file}: run `dvc repro`")
    return manifest


class Roles(NamedTuple):
    """Ids of the control tokens that decide what a token is."""

    bos: int
    end: int
    assistant: int
    all_roles: tuple[int, ...]

    @classmethod
    def of(cls, manifest: Manifest) -> "Roles":
        ids = manifest["control_ids"]
        roles = tuple(ids[name] for name in ("system", "user", "assistant", "text"))
        return cls(ids["bos"], ids["end"], ids["assistant"], roles)


class TokenStream:
    """All tokens of a split as one array, read from memory-mapped files as they are needed."""

    def __init__(self, manifest: Manifest, split: "Split", folder: Path = SHARDS) -> None:
        """Opens the files. Raises DataError when one is missing or has another length."""
        self.roles = Roles.of(manifest)
        self._files: list[Path] = []
        self._starts: list[int] = []
        dtype = np.dtype(manifest["dtype"]).newbyteorder("<")
        total = 0
        for entry in manifest["splits"][split]["files"]:
            path = folder / entry["name"]
            expected = entry["tokens"] * dtype.itemsize
            if not path.is_file() or path.stat().st_size != expected:
                raise DataError(f"{path} is missing or cut short: run `dvc repro`")
            self._starts.append(total)
            self._files.append(path)
            total += entry["tokens"]
        self._length = total
        # Each map holds a file descriptor, of which a process has some hundred.
        self._map = lru_cache(OPEN_FILES)(lambda path: np.memmap(path, dtype, "r"))

    def __len__(self) -> int:
        """Number of tokens."""
        return self._length

    def read(self, start: int, stop: int) -> Ids:
        """Tokens ``start`` to ``stop`` as int64 of shape (stop - start,)."""
        if not 0 <= start <= stop <= self._length:
            raise IndexError(f"tokens {start} to {stop} of {self._length}")
        parts = []
        file = bisect_right(self._starts, start) - 1
        while start < stop:
            offset = start - self._starts[file]
            part = self._map(self._files[file])[offset : offset + stop - start]
            parts.append(part)
            start += len(part)
            file += 1
        return np.concatenate(parts, dtype=np.int64) if parts else np.zeros(0, np.int64)

    def count_documents(self, start: int, stop: int) -> int:
        """Number of documents that begin at tokens ``start`` to ``stop``."""
        return sum(
            int((self.read(begin, min(begin + COUNT_CHUNK, stop)) == self.roles.bos).sum())
            for begin in range(start, stop, COUNT_CHUNK)
        )

    def assistant_mask(self, start: int, tokens: Ids) -> NDArray[np.bool_]:
        """Which of ``tokens`` (those from position ``start`` on) the assistant is to produce.

        That is an assistant turn's content and its ``<|end|>``, but not the role token.
        """
        is_role = np.isin(tokens, (*self.roles.all_roles, self.roles.bos))
        inside = self._role_before(start) == self.roles.assistant
        # Index of the latest role token at or before each position; 0 stands for "before start".
        positions = np.where(is_role, np.arange(1, len(tokens) + 1), 0)
        latest = np.maximum.accumulate(positions)
        current = np.where(latest > 0, tokens[latest - 1] == self.roles.assistant, inside)
        return current & ~is_role

    def _role_before(self, position: int) -> int:
        """The last role or bos token before ``position``; bos at the beginning."""
        wanted = (*self.roles.all_roles, self.roles.bos)
        while position > 0:
            begin = max(0, position - LOOK_BACK)
            tokens = self.read(begin, position)
            found = np.flatnonzero(np.isin(tokens, wanted))
            if len(found):
                return int(tokens[found[-1]])
            position = begin
        return self.roles.bos
