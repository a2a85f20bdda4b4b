"""Encoding conversations into shards, a batch at a time on all cores."""

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.tokenizer import ChatTokenizer
from stages.conversations import Message, Split
from stages.corpus import SplitCounts
from stages.progress import Progress, say
from stages.shards.lengths import Lengths
from stages.shards.ranks import NotTheSame, encoder_of

BATCH_CHARS = 2_000_000

Chats = Sequence[list[Message]]
Ids = NDArray[np.unsignedinteger[Any]]
Encode = Callable[[Chats], Ids]


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


def make_encode(tokenizer: ChatTokenizer) -> Encode:
    """A function that gives the ids of conversations in the template, one after another.

    Threads may call it at once; most of its work needs no lock of Python's.
    """

    def plain(chats: Chats) -> Ids:
        return np.array([i for ids in tokenizer.encode_chats(chats) for i in ids], np.uint32)

    try:
        encoder = encoder_of(tokenizer)
    except NotTheSame as reason:
        say(f"shards: the tokenizer is used as it is, at a third of the speed, since {reason}")
        return plain

    def encode(chats: Chats) -> Ids:
        ids = encoder.encode_chats(chats)
        return plain(chats) if ids is None else ids

    return encode


@dataclass(frozen=True)
class Encoded:
    """Some conversations: their ids one after another, where each begins, and what they hold."""

    ids: Ids
    starts: NDArray[np.int64]
    counts: dict[str, int]
    supervised: int


def encode_batch(chats: Chats, encode: Encode, tokenizer: ChatTokenizer) -> Encoded:
    """Encodes and counts; ``supervised`` tokens are those that the assistant is to produce."""
    ids = encode(chats)
    counts = {"documents": len(chats), "bytes": 0, "assistant_bytes": 0, "text_documents": 0}
    for messages in chats:
        counts["text_documents"] += messages[0]["role"] == "text"
        for message in messages:
            content = message["content"]
            size = len(content) if content.isascii() else len(content.encode())
            counts["bytes"] += size
            counts["assistant_bytes"] += size if message["role"] == "assistant" else 0
    starts = np.flatnonzero(ids == tokenizer.bos_id)
    spoken = np.flatnonzero(ids == tokenizer.role_ids["assistant"])
    ends = np.flatnonzero(ids == tokenizer.end_id)
    supervised = int((ends[np.searchsorted(ends, spoken)] - spoken).sum())
    return Encoded(ids, starts, counts, supervised)


@dataclass
class ShardWriter:
    """Writes documents of one split into files of at least ``tokens_per_shard`` tokens."""

    folder: Path
    split: Split
    dtype: np.dtype[Any]
    tokens_per_shard: int
    lengths: Lengths = field(default_factory=Lengths)
    supervised: int = 0

    def __post_init__(self) -> None:
        self.counts: SplitCounts = {
            "files": [],
            "tokens": 0,
            "documents": 0,
            "bytes": 0,
            "assistant_bytes": 0,
            "text_documents": 0,
        }
        self._begin_file()

    def _begin_file(self) -> None:
        self._name = f"{self.split}-{len(self.counts['files']):05d}.bin"
        self._tokens, self._digest = 0, hashlib.sha256()

    def write(self, encoded: Encoded) -> None:
        """Adds documents. Raises OverflowError for an id that the dtype can't hold."""
        ids = encoded.ids
        if len(ids) and ids.max() > np.iinfo(self.dtype).max:
            raise OverflowError(f"token id {ids.max()} does not fit {self.dtype}")
        ends = np.append(encoded.starts[1:], len(ids))
        begin = 0
        while begin < len(ids):
            # A file ends with the document that fills it.
            filling = int(np.searchsorted(ends, begin + self.tokens_per_shard - self._tokens))
            stop = int(ends[min(filling, len(ends) - 1)])
            self._append(ids[begin:stop].astype(self.dtype))
            begin = stop
        self.lengths.add(ends - encoded.starts)
        self.supervised += encoded.supervised
        self.counts["tokens"] += len(ids)
        self.counts["documents"] += encoded.counts["documents"]
        self.counts["bytes"] += encoded.counts["bytes"]
        self.counts["assistant_bytes"] += encoded.counts["assistant_bytes"]
        self.counts["text_documents"] += encoded.counts["text_documents"]

    def _append(self, ids: Ids) -> None:
        data = ids.tobytes()
        with (self.folder / self._name).open("ab") as file:
            file.write(data)
        self._digest.update(data)
        self._tokens += len(ids)
        if self._tokens >= self.tokens_per_shard:
            self._end_file()

    def _end_file(self) -> None:
        entry = {"name": self._name, "tokens": self._tokens, "sha256": self._digest.hexdigest()}
        self.counts["files"].append(entry)
        self._begin_file()

    def close(self) -> SplitCounts:
        """Ends the last file and returns the counts."""
        if self._tokens:
            self._end_file()
        return self.counts


def encode_split(
    conversations: Iterable[list[Message]],
    tokenizer: ChatTokenizer,
    encode: Encode,
    writer: ShardWriter,
    threads: int,
) -> SplitCounts:
    """Encodes a split's conversations into ``writer``, in order, and returns its counts."""
    for encoded in encode_all(conversations, tokenizer, encode, threads, writer.split):
        writer.write(encoded)
    return writer.close()


def encode_all(
    conversations: Iterable[list[Message]],
    tokenizer: ChatTokenizer,
    encode: Encode,
    threads: int,
    name: str,
) -> Iterator[Encoded]:
    """Conversations encoded a batch at a time, in order.

    On ``threads`` threads; what they hold at a time is bounded.
    """
    waiting: deque[Future[Encoded]] = deque()
    with (
        Progress(f"shards: {name}", "conversation") as progress,
        ThreadPoolExecutor(threads, "encode") as pool,
    ):

        def first() -> Encoded:
            encoded = waiting.popleft().result()
            progress.update(encoded.counts["documents"])
            return encoded

        try:
            for batch in batches(conversations):
                waiting.append(pool.submit(encode_batch, batch, encode, tokenizer))
                if len(waiting) > threads:
                    yield first()
            while waiting:
                yield first()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
