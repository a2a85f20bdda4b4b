"""The tokenizer stage: data/conversations -> data/tokenizer and metrics/tokenizer.json."""

from collections.abc import Iterator
from pathlib import Path

from model.tokenizer import ChatTokenizer
from stages.conversations import Split, read_split
from stages.errors import run
from stages.files import output_folder, rounded, write_json
from stages.params import read
from stages.progress import Progress, say
from stages.tokenizer.params import TokenizerParams

FOLDER = Path("data/tokenizer")
METRICS = Path("metrics/tokenizer.json")
BATCH = 1024


def texts(split: Split, progress: Progress) -> Iterator[str]:
    """The messages' contents of a split."""
    for messages in read_split(split):
        progress.update()
        for message in messages:
            yield message["content"]


def bytes_per_token(tokenizer: ChatTokenizer) -> float | None:
    """UTF-8 bytes over tokens of the validation split's contents; None if it is empty."""
    size = tokens = 0
    batch: list[str] = []
    with Progress("bytes per token", "conversation") as progress:
        for text in texts("validation", progress):
            batch.append(text)
            if len(batch) == BATCH:
                size, tokens = size + _bytes(batch), tokens + _tokens(tokenizer, batch)
                batch = []
    size, tokens = size + _bytes(batch), tokens + _tokens(tokenizer, batch)
    return rounded(size / tokens) if tokens else None


def _bytes(batch: list[str]) -> int:
    return sum(len(text.encode()) for text in batch)


def _tokens(tokenizer: ChatTokenizer, batch: list[str]) -> int:
    return sum(map(len, tokenizer.encode_batch(batch)))


def main() -> None:
    params = read("tokenizer", TokenizerParams)
    with Progress("tokenizer", "conversation") as progress:
        tokenizer = ChatTokenizer.train(texts("train", progress), params.vocab_size)
    metrics = {
        "vocab_size": tokenizer.vocab_size,
        "bytes_per_token": bytes_per_token(tokenizer),
    }
    with output_folder(FOLDER) as folder:
        tokenizer.save(folder)
        write_json(METRICS, metrics)
    if tokenizer.vocab_size < params.vocab_size:
        say(
            f"tokenizer: the corpus is too small for tokenizer.vocab_size {params.vocab_size:,}: "
            f"the vocabulary has {tokenizer.vocab_size:,} ids"
        )


if __name__ == "__main__":
    run("tokenizer", main)
