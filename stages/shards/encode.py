"""Encoding conversations into shards, a batch at a time on all cores."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.tokenizer import ChatTokenizer
from stages.conversations import Message, Split
from stages.corpus import SplitCounts
from stages.files import sha256_file
from stages.progress import Progress

BATCH_CHARS = 4_000_000


def batches(conversations: Iterable[list[Message]]) -> Iterator[list[list[Message]]]:
    """Conversations in lists of about BATCH_CHARS characters, so that memory stays flat."""
    batch: list[list[Message]] = []
    size = 0
    for messages in conversations:
        batch.append(messages)
        size += sum(len(message["content"]) for message in messages)
        if size >= BATCH_CHARS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class ShardWriter:
    """Writes documents of one split into files of at least ``tokens_per_shard`` tokens."""

    def __init__(
        self, folder: Path, split: Split, dtype: np.dtype[Any], tokens_per_shard: int
    ) -> None:
        self.folder, self.split, self.dtype, self.limit = folder, split, dtype, tokens_per_shard
        self.counts: SplitCounts = {
            "files": [],
            "tokens": 0,
            "documents": 0,
            "bytes": 0,
            "assistant_bytes": 0,
            "text_documents": 0,
        }
        self._pending: list[NDArray[Any]] = []
        self._pending_tokens = 0

    def write(self, messages: list[Message], ids: list[int]) -> None:
        """Adds a document. Raises OverflowError for an id that the dtype can't hold."""
        if max(ids) > np.iinfo(self.dtype).max:
            raise OverflowError(f"token id {max(ids)} does not fit {self.dtype}")
        self._pending.append(np.array(ids, self.dtype))
        self._pending_tokens += len(ids)
        counts = self.counts
        counts["tokens"] += len(ids)
        counts["documents"] += 1
        for message in messages:
            size = len(message["content"].encode())
            counts["bytes"] += size
            counts["assistant_bytes"] += size if message["role"] == "assistant" else 0
        counts["text_documents"] += messages[0]["role"] == "text"
        if self._pending_tokens >= self.limit:
            self._flush()

    def _flush(self) -> None:
        name = f"{self.split}-{len(self.counts['files']):05d}.bin"
        with (self.folder / name).open("wb") as file:
            for array in self._pending:
                file.write(array.tobytes())
        self.counts["files"].append(
            {
                "name": name,
                "tokens": self._pending_tokens,
                "sha256": sha256_file(self.folder / name),
            }
        )
        self._pending, self._pending_tokens = [], 0

    def close(self) -> SplitCounts:
        """Writes what is pending and returns the counts."""
        if self._pending:
            self._flush()
        return self.counts


def encode_split(
    conversations: Iterable[list[Message]], tokenizer: ChatTokenizer, writer: ShardWriter
) -> SplitCounts:
    """Encodes a split's conversations into ``writer`` and returns its counts."""
    with Progress(f"shards: {writer.split}", "conversation") as progress:
        for batch in batches(conversations):
            for messages, ids in zip(batch, tokenizer.encode_chats(batch), strict=True):
                writer.write(messages, ids)
                progress.update()
    return writer.close()
