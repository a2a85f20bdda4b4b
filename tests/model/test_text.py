"""Text as it grows: no half characters, no stop string, and nothing lost."""

from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders

from model.template import CONTROL_TOKENS
from model.text import StopMatcher, Utf8Stream, Vocabulary
from model.tokenizer import ChatTokenizer
from tests.model.tiny import hostile_text


def naive(text: str, stops: list[str]) -> tuple[str, bool]:
    """Text before the stop string that ends first; of those that end together, the longest."""
    for end in range(len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - max(map(len, found))], True
    return text, False


def in_pieces(pieces: list[str], stops: list[str]) -> tuple[str, bool]:
    """What the matcher shows; at no time more than could be shown of the text so far."""
    matcher = StopMatcher(stops)
    shown, text = "", ""
    whole = "".join(pieces)
    for piece in pieces:
        text += piece
        more, stopped = matcher.feed(piece)
        shown += more
        assert naive(whole, stops)[0].startswith(shown)
        if stopped:
            return shown, True
        # What is held back is no more than it must be.
        held = text[len(shown) :]
        assert not held or any(stop.startswith(held) for stop in stops)
    return shown + matcher.rest(), False


few = st.text("ab", max_size=5)


@settings(max_examples=500)
@given(pieces=st.lists(few, max_size=8), stops=st.lists(st.text("ab", min_size=1, max_size=6)))
@example(pieces=["a", "a", "a", "b"], stops=["aab"])
@example(pieces=["xa", "ab"], stops=["b", "aab"])
@example(pieces=["aabc"], stops=["aabd", "bc"])
@example(pieces=["ab", "ab", "ac"], stops=["ababac"])
def test_the_matcher_is_the_naive_definition(pieces: list[str], stops: list[str]) -> None:
    assert in_pieces(pieces, stops) == naive("".join(pieces), stops)


def test_aab_is_found_in_aaab() -> None:
    assert in_pieces(["a", "a", "ab", "x"], ["aab"]) == ("a", True)


def test_without_stop_strings_text_passes_at_once() -> None:
    assert StopMatcher([]).feed("anything") == ("anything", False)


@settings(max_examples=300)
@given(data=st.binary(max_size=40), cuts=st.lists(st.integers(0, 40)))
@example(data="é漢🙂".encode(), cuts=list(range(9)))
@example(data=b"\xf0\x9f\x99", cuts=[1, 2])
@example(data=b"\xed\xa0\x80\xe2\x82", cuts=[1, 4])
def test_bytes_in_pieces_are_the_text_of_all_of_them(data: bytes, cuts: list[int]) -> None:
    places = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    stream = Utf8Stream()
    text = "".join(stream.feed(data[start:stop]) for start, stop in pairwise(places))
    assert text + stream.feed(b"", final=True) == data.decode(errors="replace")


def streamed(tokenizer: ChatTokenizer, ids: list[int]) -> str:
    vocabulary, stream = Vocabulary(tokenizer), Utf8Stream()
    return "".join(stream.feed(vocabulary.bytes(token)) for token in ids) + stream.feed(b"", True)


@settings(max_examples=200)
@given(data=st.data())
def test_streamed_text_is_that_of_the_tokenizer_for_any_ids(
    tokenizer: ChatTokenizer, data: st.DataObject
) -> None:
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 20), max_size=20))
    assert streamed(tokenizer, ids) == tokenizer.decode(ids)


@settings(max_examples=100)
@given(text=hostile_text)
def test_encoded_text_streams_as_it_was(tokenizer: ChatTokenizer, text: str) -> None:
    assert streamed(tokenizer, tokenizer.encode(text)) == text


def test_added_tokens_are_text_and_foreign_control_tokens_are_none(
    tokenizer: ChatTokenizer,
) -> None:
    backend = Tokenizer.from_str(tokenizer.backend.to_str())
    backend.add_tokens([AddedToken("a b\tÄ", normalized=False), AddedToken("Ġx")])
    backend.add_special_tokens([AddedToken("<|tool|>", special=True)])
    more = ChatTokenizer(backend)
    ids = list(range(tokenizer.vocab_size, more.vocab_size))
    assert len(ids) == 3
    assert streamed(more, ids) == more.decode(ids)
    assert "a b\tÄ" in streamed(more, ids)
    assert streamed(more, [more.backend.token_to_id(token) for token in CONTROL_TOKENS]) == ""


def test_another_decoder_is_a_value_error(tokenizer: ChatTokenizer) -> None:
    backend = Tokenizer.from_str(tokenizer.backend.to_str())
    backend.decoder = decoders.WordPiece()
    with pytest.raises(ValueError, match="not that of a byte-level BPE"):
        Vocabulary(ChatTokenizer(backend))
