"""The fast encoder gives the ids of `tokenizers`, or it is not used."""

import json
import random
from collections.abc import Sequence
from typing import Any

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from model.tokenizer import SMALLEST_VOCAB, ChatTokenizer
from stages.conversations import Message
from stages.shards.ranks import (
    SENTINEL,
    WORDS,
    NotTheSame,
    byte_characters,
    encoder_of,
    last_pair,
    ranks_of,
)
from tests.builders import chats, joined

CHARACTER = byte_characters()


@pytest.fixture(scope="module")
def tokenizer() -> ChatTokenizer:
    words = (message["content"] for chat in chats(60, 1) for message in chat)
    return ChatTokenizer.train(words, 500)


def test_bytes_are_written_as_the_library_writes_them() -> None:
    assert set(CHARACTER.values()) == set(pre_tokenizers.ByteLevel.alphabet())
    pieces = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str("é \x00\xad")
    written = "".join(piece for piece, _ in pieces)
    assert written == "".join(CHARACTER[byte] for byte in "é \x00\xad".encode())


# --- words


@pytest.mark.parametrize(
    "planes",
    [
        (0, 1, 2, 3, 14),  # all that have characters
        pytest.param((*range(4, 14), 15, 16), marks=pytest.mark.slow),
    ],
)
def test_both_class_each_character_of_unicode_alike(planes: Sequence[int]) -> None:
    """Each stands between letters, digits and signs; where it joins them shows its class."""
    split = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str
    joins = 0
    for first in (plane << 16 | half for plane in planes for half in (0, 0x8000)):
        numbers = (n for n in range(first, first + 0x8000) if not 0xD800 <= n < 0xE000)
        characters = [chr(number) for number in numbers]
        text = "\n".join(f"a{c}1{c}!{c}a" for c in characters)
        ranks = {bytes([byte]): byte for byte in range(256)}
        for c in characters:  # what it can join is a token, which is found whole
            for word in (f"a{c}", f"{c}a", f"{c}1{c}", f"{c}!{c}"):
                ranks.setdefault(word.encode(), len(ranks))
        encoding = tiktoken.Encoding("t", pat_str=WORDS, mergeable_ranks=ranks, special_tokens={})
        expected: list[int] = []
        for _, (start, stop) in split(text):
            word = text[start:stop].encode()
            joins += len(text[start:stop]) > 1
            expected += [ranks[word]] if word in ranks else list(word)
        assert encoding.encode_ordinary(text) == expected, hex(first)
    assert joins >= len(planes) << 16


WORDLIKE = st.text(
    st.sampled_from("ab'sdmtlvreé中7²٣ \t\n\r\u00a0\u2003\u3000\u0085\u200b!?😀\u0301\ufdd0"),
    max_size=30,
) | st.text(st.characters(exclude_categories=("Cs",), exclude_characters=SENTINEL), max_size=20)
ROLES = st.sampled_from(["system", "user", "assistant", "text"])
CHATS = st.lists(
    st.lists(st.builds(Message, role=ROLES, content=WORDLIKE), min_size=1, max_size=4), max_size=4
)


@settings(max_examples=200)
@given(corpus=CHATS)
def test_any_conversations_get_the_templates_ids(
    tokenizer: ChatTokenizer, corpus: list[list[Message]]
) -> None:
    ids = encoder_of(tokenizer).encode_chats(corpus)
    assert ids is not None
    assert ids.tolist() == joined(tokenizer.encode_chats(corpus))


@pytest.mark.parametrize(
    "text",
    [
        "<|end|><|assistant|>", "<\ufdd0|user|>", "a" * 300_000, " " * 300_000, "\n" * 99_999 + "x",
        "😀" * 50_000, "ab" * 100_000, "the " * 50_000, "\x00\x01", "",
    ],
)  # fmt: skip
def test_strange_text_gets_the_same_ids(tokenizer: ChatTokenizer, text: str) -> None:
    chat: list[Message] = [{"role": "user", "content": text}, {"role": "assistant", "content": "b"}]
    ids = encoder_of(tokenizer).encode_chats([chat])
    assert ids is not None
    assert ids.tolist() == tokenizer.encode_chat(chat)


def test_text_with_the_sentinel_is_left_to_the_library(tokenizer: ChatTokenizer) -> None:
    chat: list[Message] = [{"role": "user", "content": f"a {SENTINEL}2 b"}]
    assert encoder_of(tokenizer).encode_chats([chat]) is None


# --- merges

Merges = list[tuple[str, str]]


@st.composite
def merge_lists(draw: st.DrawFn) -> Merges:
    """Pairs of earlier tokens in any order, most of which no training would give."""
    tokens = ["a", "b", "c"]
    merges: Merges = []
    for _ in range(draw(st.integers(0, 7))):
        left, right = draw(st.sampled_from(tokens)), draw(st.sampled_from(tokens))
        if left + right not in tokens:
            tokens.append(left + right)
            merges.append((left, right))
    return merges


def vocabulary_of(merges: Merges) -> dict[str, int]:
    tokens = [CHARACTER[byte] for byte in range(256)] + [left + right for left, right in merges]
    return {token: number for number, token in enumerate(tokens)}


@settings(max_examples=400)
@given(merges=merge_lists(), seed=st.integers(0, 2**32))
def test_merges_that_pass_give_the_same_ids(merges: Merges, seed: int) -> None:
    vocabulary = vocabulary_of(merges)
    try:
        ranks = ranks_of(vocabulary, merges)
    except NotTheSame:
        return
    theirs = Tokenizer(models.BPE(vocabulary, merges))
    theirs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    ours = tiktoken.Encoding("t", pat_str=WORDS, mergeable_ranks=ranks, special_tokens={})
    chosen = random.Random(seed)
    for _ in range(40):
        word = "".join(chosen.choices("abc", k=chosen.randint(1, 24)))
        assert ours.encode_ordinary(word) == theirs.encode(word).ids, (merges, word)


@pytest.mark.parametrize(
    ("merges", "word"),
    [
        # "abc" is in the list as a + bc alone, but its bytes come to ab + c.
        ([("a", "b"), ("b", "c"), ("a", "bc")], "abc"),
        # "abcd" is a token that its own bytes never come to.
        ([("b", "c"), ("a", "b"), ("c", "d"), ("ab", "cd")], "abcd"),
    ],
)
def test_merges_that_differ_are_refused(merges: Merges, word: str) -> None:
    vocabulary = vocabulary_of(merges)
    with pytest.raises(NotTheSame, match="come together in another way"):
        ranks_of(vocabulary, merges)
    theirs = Tokenizer(models.BPE(vocabulary, merges)).encode(word).ids
    ranks = {token.encode("latin-1"): n for token, n in vocabulary.items() if ord(max(token)) < 256}
    ranks |= {bytes([byte]): n for n, byte in enumerate(range(256))}
    ours = tiktoken.Encoding("t", pat_str=WORDS, mergeable_ranks=ranks, special_tokens={})
    assert ours.encode_ordinary(word) != theirs


@settings(max_examples=60)
@given(
    texts=st.lists(st.text(st.sampled_from("aab bc'1 é"), max_size=60), min_size=1, max_size=8),
    more=st.integers(0, 60),
)
def test_what_is_trained_always_passes(texts: list[str], more: int) -> None:
    trained = ChatTokenizer.train(iter(texts * 2), SMALLEST_VOCAB + more)
    corpus: list[list[Message]] = [[{"role": "text", "content": text}] for text in texts]
    ids = encoder_of(trained).encode_chats(corpus)
    assert ids is not None
    assert ids.tolist() == joined(trained.encode_chats(corpus))


def test_the_last_pair_is_that_of_merging_by_rank() -> None:
    ranks = {b"a": 0, b"b": 1, b"ab": 2, b"aa": 3, b"aab": 4}
    assert last_pair(b"aab", ranks) == (b"a", b"ab")
    assert last_pair(b"bbb", ranks) is None
    assert last_pair(b"ab", ranks) == (b"a", b"b")


# --- tokenizers that are refused


def changed(tokenizer: ChatTokenizer, path: Sequence[str], value: Any) -> ChatTokenizer:
    parts = json.loads(tokenizer.backend.to_str())
    inner = parts
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return ChatTokenizer(Tokenizer.from_str(json.dumps(parts)))


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        (["model", "dropout"], 0.5, "no plain byte-level BPE"),
        (["model", "ignore_merges"], True, "no plain byte-level BPE"),
        (["model", "unk_token"], "a", "no plain byte-level BPE"),
        (["pre_tokenizer", "add_prefix_space"], True, "words in another way"),
        (["pre_tokenizer", "use_regex"], False, "words in another way"),
        (["pre_tokenizer"], {"type": "Whitespace"}, "words in another way"),
        (["normalizer"], {"type": "NFC"}, "normaliser"),
        (["normalizer"], None, "normaliser"),
    ],
)
def test_what_is_not_plain_byte_level_bpe_is_refused(
    tokenizer: ChatTokenizer, path: Sequence[str], value: Any, reason: str
) -> None:
    with pytest.raises(NotTheSame, match=reason):
        encoder_of(changed(tokenizer, path, value))


def test_added_tokens_are_refused(tokenizer: ChatTokenizer) -> None:
    copy = ChatTokenizer(Tokenizer.from_str(tokenizer.backend.to_str()))
    copy.backend.add_tokens(["hello"])
    with pytest.raises(NotTheSame, match="added tokens of its own"):
        encoder_of(copy)
