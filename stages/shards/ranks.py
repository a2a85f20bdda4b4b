"""The same ids several times as fast: a byte-level BPE vocabulary in the hands of ``tiktoken``.

``tokenizers`` merges the pairs of a list in the list's order; ``tiktoken`` any neighbours whose
bytes together are a token, the one of lowest id first. ``encoder_of`` gives an encoder only where
this is the same for every text, and the reason where it may not be:

* In any text, two neighbours that would merge into a token have come about as they do in the bytes
  of that token alone, since no merge has crossed their borders. So it is enough that each token's
  own bytes, merged by id, come to the two parts that the list has for it, and that ids rise with
  the list.
* Text is cut into words by the regular expression of ``tokenizers``' ByteLevel, in ``tiktoken``'s
  writing of it; a test compares how both class each character of Unicode.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tiktoken
from numpy.typing import NDArray

from model.template import BOS, CONTROL_TOKENS, END, ROLE_TOKENS, UNESCAPES
from model.tokenizer import ChatTokenizer
from stages.conversations import Message

# GPT-2's, with the possessive quantifiers that spare the search its way back.
WORDS = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
# Stands for control tokens in the text that is encoded: a code point that is no character. Text
# that has it nonetheless is encoded by `tokenizers`.
SENTINEL = "\U0010ffff"
NO_RANK = 2**32  # above all ids

Ids = NDArray[np.uint32]
Pair = tuple[bytes, bytes]


class NotTheSame(Exception):
    """The two libraries may give other ids for some text; the message says why."""


class RankEncoder:
    """Encodes conversations in the template as ``ChatTokenizer.encode_chats`` does."""

    def __init__(self, ranks: Mapping[bytes, int], control_ids: Mapping[str, int]) -> None:
        """``ranks`` are the ids of all other tokens by their bytes."""
        marks = {token: f"{SENTINEL}{number}" for number, token in enumerate(CONTROL_TOKENS)}
        self._encoding = tiktoken.Encoding(
            "parley",
            pat_str=WORDS,
            mergeable_ranks=dict(ranks),
            special_tokens={marks[token]: control_ids[token] for token in CONTROL_TOKENS},
        )
        self._marks = set(marks.values())
        self._bos, self._end = marks[BOS], marks[END]
        self._roles = {role: marks[token] for role, token in ROLE_TOKENS.items()}

    def encode_chats(self, chats: Sequence[Sequence[Message]]) -> Ids | None:
        """Ids of conversations, one after another; None if a content holds the sentinel.

        Other threads run meanwhile.
        """
        parts: list[str] = []
        for messages in chats:
            parts.append(self._bos)
            for message in messages:
                if SENTINEL in message["content"]:
                    return None
                parts += (self._roles[message["role"]], message["content"], self._end)
        return self._encoding.encode_to_numpy(
            "".join(parts), allowed_special=self._marks, disallowed_special=()
        )


def encoder_of(tokenizer: ChatTokenizer) -> RankEncoder:
    """An encoder that gives the ids of ``tokenizer`` for every text. Raises NotTheSame."""
    parts: dict[str, Any] = json.loads(tokenizer.backend.to_str())
    model = parts["model"]
    if model["type"] != "BPE" or any(
        model.get(key)
        for key in (
            "dropout",
            "unk_token",
            "continuing_subword_prefix",
            "end_of_word_suffix",
            "byte_fallback",
            "ignore_merges",
        )
    ):
        raise NotTheSame("its model is no plain byte-level BPE")
    words = parts["pre_tokenizer"] or {}
    wanted = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    if {key: words.get(key) for key in wanted} != wanted:
        raise NotTheSame("it cuts text into words in another way")
    if _replacements(parts["normalizer"]) != list(UNESCAPES):
        raise NotTheSame("its normaliser is not that of the chat template")
    control_ids = {token["content"]: token["id"] for token in parts["added_tokens"]}
    if set(control_ids) != set(CONTROL_TOKENS):
        raise NotTheSame("it has added tokens of its own")
    ranks = ranks_of(
        {token: number for token, number in model["vocab"].items() if token not in control_ids},
        [tuple(pair) for pair in model["merges"]],
    )
    return RankEncoder(ranks, control_ids)


def ranks_of(vocabulary: Mapping[str, int], merges: Sequence[tuple[str, str]]) -> dict[bytes, int]:
    """The ids of a byte-level vocabulary by bytes. Raises NotTheSame unless merges follow ids."""
    byte_of = {character: byte for byte, character in byte_characters().items()}
    # No text is encoded as any other token of a vocabulary that was learnt elsewhere.
    reached = {*byte_of, *(left + right for left, right in merges)}
    try:
        ranks = {
            bytes(byte_of[c] for c in token): number
            for token, number in vocabulary.items()
            if token in reached
        }
        rules = [
            (bytes(byte_of[c] for c in left), bytes(byte_of[c] for c in right))
            for left, right in merges
        ]
    except KeyError:
        raise NotTheSame("it has a token that is not made of bytes") from None
    results = [ranks.get(left + right, -1) for left, right in rules]
    if (
        len(ranks) != 256 + len(rules)
        or any(bytes([byte]) not in ranks for byte in range(256))
        or any(second <= first for first, second in zip([-1, *results], results, strict=False))
    ):
        raise NotTheSame("the order of its merges is not that of its ids")
    for rule in rules:
        if last_pair(rule[0] + rule[1], ranks) != rule:
            raise NotTheSame(f"the parts of {rule[0] + rule[1]!r} can come together in another way")
    return ranks


def last_pair(token: bytes, ranks: Mapping[bytes, int]) -> Pair | None:
    """What the bytes of ``token`` come to, merged by lowest rank until two parts are left.

    None if they stop before.
    """
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        pairs = [ranks.get(parts[i] + parts[i + 1], NO_RANK) for i in range(len(parts) - 1)]
        lowest = min(pairs)
        if lowest == NO_RANK:
            return None
        place = pairs.index(lowest)
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
    return (parts[0], parts[1]) if len(parts) == 2 else None


def _replacements(normalizer: Mapping[str, Any] | None) -> list[tuple[str, str]] | None:
    """What a normaliser replaces by what; None if it does anything else."""
    if normalizer is None or normalizer.get("type") != "Sequence":
        return None
    steps = normalizer["normalizers"]
    if any(step["type"] != "Replace" or "String" not in step["pattern"] for step in steps):
        return None
    return [(step["pattern"]["String"], step["content"]) for step in steps]


def byte_characters() -> dict[int, str]:
    """The character by which a byte-level vocabulary writes each byte (Radford et al. 2019)."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (byte for byte in range(256) if byte not in shown)
    return {
        **{byte: chr(byte) for byte in shown},
        **{byte: chr(256 + number) for number, byte in enumerate(others)},
    }
