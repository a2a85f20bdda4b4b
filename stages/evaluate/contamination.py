"""How much of the validation set stands in the training set word for word.

As OpenAI (2023, GPT-4's report, appendix C) does it: of each text only letters and digits are kept,
and substrings of 50 of them, about ten words, are looked for. Here every substring is looked for,
not three; a conversation's messages are one text; it is lower-cased, since the case of a greeting
makes it no other; and characters beyond ASCII count as their bytes of UTF-8. So the figure depends
on no vocabulary and works for any script.

Memory: 64-bit hashes of the validation set's substrings, for at most MOST_BYTES of its text (the
split is in the order of hashes, so its beginning is a fair sample); the training set streams by.
"""

import string
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stages.conversations import Message

LENGTH = 50  # bytes of a substring
MOST_BYTES = 2**22
BLOCK = 2**21  # bytes of training text at a time

Hashes = NDArray[np.uint64]

_KEPT = (string.ascii_letters + string.digits).encode()
_DROPPED = bytes(byte for byte in range(128) if byte not in _KEPT)
_LOWER = bytes(range(256)).lower()


@dataclass
class Contamination:
    """Shares of the validation set that training holds; ``clean`` is one flag a conversation.

    ``ngrams`` of its substrings, ``conversations`` of those long enough to have one. None where
    there is none. Conversations beyond what was looked at have no flag.
    """

    ngrams: float | None
    conversations: float | None
    clean: NDArray[np.bool_]


def normalised(messages: Iterable[Message]) -> bytes:
    """What is compared of a conversation: its letters and digits in lower case."""
    text = "".join(message["content"] for message in messages).encode()
    return text.translate(_LOWER, _DROPPED)


def contamination(
    train: Iterable[list[Message]], validation: Iterable[list[Message]]
) -> Contamination:
    """Looks for the substrings of ``validation`` in ``train``."""
    texts: list[bytes] = []
    size = 0
    for messages in validation:
        texts.append(normalised(messages))
        size += len(texts[-1])
        if size >= MOST_BYTES:
            break
    hashes, owner = _hashes(texts)
    order = np.argsort(hashes, kind="stable")
    wanted = hashes[order]
    found = np.zeros(len(wanted), np.bool_)
    # Most of training's substrings are passed over by one look at a table.
    bits = len(wanted).bit_length() + 2
    shift = np.uint64(64 - bits)
    maybe = np.zeros(2**bits, np.bool_)
    maybe[wanted >> shift] = True
    for block in _blocks(train):
        seen, _ = _hashes(block)
        seen = np.sort(seen[maybe[seen >> shift]])
        if len(wanted) and len(seen):
            place = np.searchsorted(wanted, seen).clip(max=len(wanted) - 1)
            found[place[wanted[place] == seen]] = True
    if len(wanted):  # what was marked is the first of its equals
        first = np.concatenate(([True], wanted[1:] != wanted[:-1]))
        found = found[np.maximum.accumulate(np.where(first, np.arange(len(wanted)), 0))]
    hits = np.bincount(owner[order], found, minlength=len(texts))
    counts = np.bincount(owner, minlength=len(texts))
    long_enough = counts > 0
    return Contamination(
        ngrams=float(found.mean()) if len(found) else None,
        conversations=float((hits[long_enough] > 0).mean()) if long_enough.any() else None,
        clean=hits == 0,
    )


def _blocks(conversations: Iterable[list[Message]]) -> Iterable[list[bytes]]:
    block: list[bytes] = []
    size = 0
    for messages in conversations:
        block.append(normalised(messages))
        size += len(block[-1])
        if size >= BLOCK:
            yield block
            block, size = [], 0
    if block:
        yield block


def _mixed(values: Hashes) -> Hashes:
    """A permutation of 64-bit numbers that spreads any difference (Steele et al. 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


_CODES = _mixed((np.arange(256, dtype=np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15))
_BASE = 0xD1342543DE82EF95


def _power(exponent: int) -> np.uint64:
    return np.uint64(pow(_BASE, exponent, 2**64))


def _hashes(texts: list[bytes]) -> tuple[Hashes, NDArray[np.int64]]:
    """Hashes of all substrings of LENGTH bytes, and the number of the text that each is of.

    A polynomial in the codes of the bytes, made of those of 1, 2, 4, … bytes: few operations on
    whole arrays, whatever the length. None goes from one text into the next.
    """
    data = np.frombuffer(b"".join(texts), np.uint8)
    number = len(data) - LENGTH + 1
    if number <= 0:
        return np.zeros(0, np.uint64), np.zeros(0, np.int64)
    owner = np.repeat(np.arange(len(texts)), [len(text) for text in texts])
    part, width, done = _CODES[data], 1, 0
    total = np.zeros(number, np.uint64)
    while True:
        if LENGTH & width:
            total = total * _power(width) + part[done : done + number]
            done += width
        if 2 * width > LENGTH:
            break
        part = part[:-width] * _power(width) + part[width:]
        width *= 2
    inside = owner[:number] == owner[LENGTH - 1 :]
    return _mixed(total[inside]), owner[:number][inside]
