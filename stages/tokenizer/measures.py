"""How well a tokenizer packs text: UTF-8 bytes per token.

Beside the validation split there are samples of what a chat model meets besides: code, text in
fourteen languages other than English (Article 1 of the Universal Declaration of Human Rights), and
numbers.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

from model.tokenizer import ChatTokenizer
from stages.conversations import read_split
from stages.files import rounded
from stages.progress import Progress

SAMPLES = Path(__file__).with_name("samples")
BATCH = 1024  # texts that are encoded at a time


def on_validation(tokenizer: ChatTokenizer) -> float | None:
    """Of the contents of the validation split; None if there are none."""
    return bytes_per_token(tokenizer, _validation())


def on_samples(tokenizer: ChatTokenizer) -> dict[str, float | None]:
    """Of each of the samples, by name."""
    return {
        file.stem: bytes_per_token(tokenizer, [file.read_text(encoding="utf-8")])
        for file in sorted(SAMPLES.glob("*.txt"))
    }


def bytes_per_token(tokenizer: ChatTokenizer, texts: Iterable[str]) -> float | None:
    """UTF-8 bytes over tokens of ``texts``; None if there are no tokens."""
    size = tokens = 0
    for batch in _batches(texts):
        size += sum(len(text.encode()) for text in batch)
        tokens += sum(map(len, tokenizer.encode_batch(batch)))
    return rounded(size / tokens) if tokens else None


def _validation() -> Iterator[str]:
    with Progress("bytes per token", "conversation") as progress:
        for messages in read_split("validation"):
            progress.update()
            for message in messages:
                yield message["content"]


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
