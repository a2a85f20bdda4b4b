"""Learning the vocabulary from the training split, or from a sample of it.

Which conversations are in the sample is decided by a hash of each one's text, so it depends neither
on their order nor on the machine.
"""

import hashlib
import json
from collections.abc import Callable, Iterator

from model.tokenizer import ChatTokenizer
from stages.conversations import CONVERSATIONS, read_split
from stages.errors import DataError
from stages.progress import Progress

SALT = b"tokenizer"


def learn(vocab_size: int, max_chars: int) -> tuple[ChatTokenizer, int]:
    """A tokenizer of ``vocab_size`` ids, and the number of characters that it was learnt from.

    Of a larger training split a fair sample of ``max_chars`` characters at most is read.
    """
    learnt = 0

    def texts() -> Iterator[str]:
        nonlocal learnt
        with Progress("tokenizer", "conversation") as progress:
            for messages in read_split("train", chosen=_sample(max_chars)):
                progress.update()
                for message in messages:
                    text = message["content"][: max_chars - learnt]
                    learnt += len(text)
                    yield text
                if learnt == max_chars:
                    return

    return ChatTokenizer.train(texts(), vocab_size), learnt


def _sample(max_chars: int) -> Callable[[bytes], bool] | None:
    """Tells whether a line of the training split is learnt from; None where all are."""
    path = CONVERSATIONS / "manifest.json"
    try:
        there = json.loads(path.read_text("utf-8"))["splits"]["train"]["characters"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        raise DataError(f"{path} is missing or damaged: run the download stage again") from None
    if there <= max_chars:
        return None
    limit = 2**64 * max_chars // there

    def chosen(line: bytes) -> bool:
        digest = hashlib.blake2b(line, digest_size=8, person=SALT).digest()
        return int.from_bytes(digest, "big") < limit

    return chosen
