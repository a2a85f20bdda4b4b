"""The coloured page shows every character once, as text, with what it cost."""

import math
import re
from html.parser import HTMLParser

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from model.tokenizer import ChatTokenizer
from stages.evaluate.extremes import Conversation
from stages.evaluate.page import STEPS, pieces, shade, write_page
from stages.evaluate.vocabulary import token_sizes, token_texts
from tests.builders import chats

LN2 = math.log(2)


@pytest.fixture(scope="module")
def tokenizer() -> ChatTokenizer:
    words = (message["content"] for chat in chats(30, 1) for message in chat)
    return ChatTokenizer.train(words, 320)


@pytest.fixture(scope="module")
def texts(tokenizer: ChatTokenizer) -> list[bytes]:
    return token_texts(tokenizer, tokenizer.vocab_size)


def conversation(tokenizer: ChatTokenizer, *contents: str, shown: int = 10**6) -> Conversation:
    messages = [
        {"role": "assistant" if turn % 2 else "user", "content": text}
        for turn, text in enumerate(contents)
    ]
    ids = tokenizer.encode_chat(messages)[1:]
    costs = [LN2 * (number % 16) for number in range(len(ids))]
    return Conversation(
        7,
        sum(costs),
        len(ids),
        100,
        ids[:shown],
        costs[:shown],
        [number + 1 for number in range(len(ids))][:shown],
    )


class Reader(HTMLParser):
    """What a reader sees of the articles, and every tag and attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.tips: list[str] = []
        self.text: list[str] = []
        self._skip = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.tips += [value or "" for name, value in attrs if name == "data-t"]
        self._skip = tag in ("style", "title")
        assert {name for name, _ in attrs} <= {"class", "data-t", "lang", "charset", "name",
                                                "content"}  # fmt: skip

    def handle_data(self, data: str) -> None:
        if not self._skip:
            self.text.append(data)


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    return reader


@settings(max_examples=60)
@given(content=st.text(max_size=40).filter(lambda text: text.isprintable()))
@example(content="<script>alert(1)</script> & \"quotes\" 'too'")
@example(content="東京🙂naïve <|user|> é")
@example(content="&lt;b&gt; &amp;")
@example(content="</div></article>")
def test_text_is_text(tokenizer: ChatTokenizer, texts: list[bytes], content: str) -> None:
    reader = read(write_page([conversation(tokenizer, content)], [], tokenizer, texts))
    assert content in "".join(reader.text)
    assert "script" not in reader.tags
    assert reader.tags.count("article") == 1


def test_what_cannot_be_seen_is_named_in_text_and_tips(
    tokenizer: ChatTokenizer, texts: list[bytes]
) -> None:
    reader = read(write_page([conversation(tokenizer, "a\0b\x1b \u202e")], [], tokenizer, texts))
    assert "a[U+0000]b[U+001B] [U+202E]" in "".join(reader.text)
    for text in (*reader.text, *reader.tips):
        assert all(c.isprintable() or c in "\n\t\N{NO-BREAK SPACE}" for c in text), text


def test_every_token_has_its_text_bits_and_rank(
    tokenizer: ChatTokenizer, texts: list[bytes]
) -> None:
    one = conversation(tokenizer, "the cat\nsees", "tea")
    tips = read(write_page([one], [], tokenizer, texts)).tips
    assert len(tips) == len(one.ids)
    assert tips[0] == "<|user|>  ·  0.00 bits  ·  rank 1"
    assert tips[-1].startswith("<|end|>  ·  ")
    assert sum("\\n" in tip for tip in tips) == 1
    for number, tip in enumerate(tips):
        assert f"·  {number % 16:.2f} bits  ·  rank {number + 1}" in tip


def test_a_character_of_several_tokens_is_one_piece(
    tokenizer: ChatTokenizer, texts: list[bytes]
) -> None:
    one = conversation(tokenizer, "東")
    assert len(one.ids) > 3
    found = list(pieces(one, texts))
    assert "".join(piece.text for _, piece in found) == "東"
    assert sum(piece.bits for _, piece in found) == pytest.approx(sum(one.costs) / LN2)
    assert [rank for _, piece in found for rank in piece.ranks] == one.ranks


@given(st.binary(max_size=12))
def test_bytes_that_are_no_text_are_shown_without_losing_a_cost(raw: bytes) -> None:
    texts = [b"", *(bytes([byte]) for byte in range(256))]
    ids = [0, *(byte + 1 for byte in raw), 0]
    one = Conversation(1, 1.0, len(ids), 1, ids, [LN2] * len(ids), [1] * len(ids))
    found = list(pieces(one, texts))
    assert sum(len(piece.nats) for _, piece in found) == len(ids)


def test_a_colour_is_that_of_its_bits() -> None:
    assert [shade(bits) for bits in (0, 0.49, 0.5, 1.99, 2, 13.9, 14, 99)] == [
        0, 0, 1, 2, 3, 7, 8, 8,
    ]  # fmt: skip
    assert list(STEPS) == sorted(STEPS)


def test_a_long_conversation_is_cut_and_the_page_says_so(
    tokenizer: ChatTokenizer, texts: list[bytes]
) -> None:
    one = conversation(tokenizer, "the cat " * 50, shown=20)
    page = write_page([one], [], tokenizer, texts)
    assert f"and {one.tokens - 20:,} more tokens" in page
    assert len(read(page).tips) == 20


def test_the_page_asks_for_nothing_beside_itself(
    tokenizer: ChatTokenizer, texts: list[bytes]
) -> None:
    page = write_page([conversation(tokenizer, "a", "b")], [], tokenizer, texts)
    assert not re.search(r"(src|href|url|@import)\s*[=(:]", page)
    assert "prefers-color-scheme: dark" in page
    assert "<p>None: conversations of fewer than" in page  # of the easiest there is none


def test_sizes_are_the_bytes_of_the_text(tokenizer: ChatTokenizer, texts: list[bytes]) -> None:
    sizes = token_sizes(texts)
    for chat in [*chats(30, 9), [{"role": "user", "content": "\ufdd0| <|end|> \r\n é🙂"}]]:
        ids = tokenizer.encode_chat(chat)
        assert sizes[ids].sum() == sum(len(message["content"].encode()) for message in chat)
        joined = b"".join(texts[token] for token in ids)
        assert joined == "".join(message["content"] for message in chat).encode()
