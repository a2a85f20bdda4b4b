"""Shard encoding beside ``tokenizers``: ``python -m tests.benchmarks.encoding`` (README.md).

Both encode the training split of data/conversations with one vocabulary on all cores, in turn; the
ids of every conversation are compared.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import numpy as np

from model.tokenizer import ChatTokenizer
from stages.conversations import Message, read_split
from stages.corpus import token_dtype
from stages.errors import DataError
from stages.shards.encode import ShardWriter, encode_split, make_encode
from stages.workers import cores

Corpus = list[list[Message]]


def theirs(corpus: Corpus, tokenizer: ChatTokenizer) -> list[list[int]]:
    """The ids of all contents, as the library gives them: nothing is rendered or stored."""
    contents = [message["content"] for messages in corpus for message in messages]
    encodings = tokenizer.backend.encode_batch_fast(contents, add_special_tokens=False)
    return [encoding.ids for encoding in encodings]


def ours(corpus: Corpus, tokenizer: ChatTokenizer, folder: Path) -> list[Path]:
    """Shards as the stage writes them, the proof that the fast encoder may be used included."""
    writer = ShardWriter(folder, "train", token_dtype(tokenizer.vocab_size), 2**24)
    counts = encode_split(corpus, tokenizer, make_encode(tokenizer), writer, cores())
    return [folder / entry["name"] for entry in counts["files"]]


def seconds_of(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.encoding")
    parser.add_argument("--vocabulary", type=int, default=32_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    try:
        corpus = list(read_split("train"))
    except DataError:
        sys.exit("encoding: there are no conversations: run `dvc repro download` in this folder")
    contents = (message["content"] for messages in corpus for message in messages)
    tokenizer = ChatTokenizer.train(contents, options.vocabulary)
    print(f"{len(corpus):,} conversations, {tokenizer.vocab_size:,} ids, {cores()} cores")

    rounds: list[tuple[float, float]] = []
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as folder:
            peer = seconds_of(lambda: theirs(corpus, tokenizer))
            own = seconds_of(lambda into=Path(folder): ours(corpus, tokenizer, into))  # type: ignore[misc]
            rounds.append((peer, own))
    with tempfile.TemporaryDirectory() as folder:
        files = ours(corpus, tokenizer, Path(folder))
        dtype = token_dtype(tokenizer.vocab_size)
        stored = np.concatenate([np.fromfile(file, dtype) for file in files])
    expected = np.fromiter(chain.from_iterable(tokenizer.encode_chats(corpus)), np.int64)
    same = np.array_equal(stored, expected)

    peer, own = (statistics.median(column) for column in zip(*rounds, strict=True))
    ratio = statistics.median(one / other for one, other in rounds)
    print("| | seconds | tokens/s |\n|---|---:|---:|")
    for name, seconds in (("tokenizers' encode_batch_fast", peer), ("shards", own)):
        print(f"| {name} | {seconds:.2f} | {len(stored) / seconds:,.0f} |")
    print(f"\nshards is {ratio:.2f} times as fast; the ids are {'the same' if same else 'OTHER'}.")
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
