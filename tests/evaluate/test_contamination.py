"""Substrings are found where they are, and nowhere else, whatever the blocks."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.conversations import Message
from stages.evaluate import contamination as module
from stages.evaluate.contamination import LENGTH, contamination, normalised


def chat(*contents: str) -> list[Message]:
    return [
        {"role": "assistant" if turn % 2 else "user", "content": text}
        for turn, text in enumerate(contents)
    ]


def test_letters_and_digits_in_lower_case_are_compared() -> None:
    assert normalised(chat("Hi, YOU!\n", " It's 7 — né 東")) == "hiyouits7—né東".encode()


def test_a_text_that_training_holds_is_found_through_case_and_marks() -> None:
    text = "The quick brown fox jumps over the lazy dog, and then the dog wakes."
    found = contamination([chat("Well.", text.upper() + "!!")], [chat(text), chat("other " * 20)])
    assert found.conversations == 0.5
    assert found.clean.tolist() == [False, True]
    own, other = (len(normalised(c)) - LENGTH + 1 for c in (chat(text), chat("other " * 20)))
    assert found.ngrams == own / (own + other)


def test_what_two_conversations_have_only_together_is_not_found() -> None:
    words = "abcdefghij" * 10
    train = [chat(words[:30]), chat(words[30:60])]
    assert contamination(train, [chat(words[:60])]).ngrams == 0.0
    assert contamination([chat(words[:30], words[30:60])], [chat(words[:60])]).ngrams == 1.0


def test_short_conversations_have_nothing_to_look_for_and_are_clean() -> None:
    found = contamination([chat("hello there")], [chat("hello there"), chat("hi")])
    assert (found.ngrams, found.conversations) == (None, None)
    assert found.clean.tolist() == [True, True]


def test_only_the_beginning_of_a_large_validation_set_is_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MOST_BYTES", 150)
    texts = [chat(f"{number:03d}" * 20) for number in range(10)]
    assert len(contamination(texts, texts).clean) == 3


letters = st.text("abAB, é東", max_size=24)
conversations = st.lists(st.lists(letters, min_size=1, max_size=3), max_size=6)


@settings(max_examples=150)
@given(train=conversations, validation=conversations, block=st.sampled_from([1, 20, 2**21]))
def test_shares_are_those_of_looking_at_every_substring(
    train: list[list[str]], validation: list[list[str]], block: int
) -> None:
    length = 7  # short enough to be met by chance
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "LENGTH", length)
        patch.setattr(module, "BLOCK", block)
        found = contamination([chat(*t) for t in train], [chat(*v) for v in validation])

    def substrings(contents: list[str]) -> list[bytes]:
        text = normalised(chat(*contents))
        return [text[i : i + length] for i in range(len(text) - length + 1)]

    seen = {run for contents in train for run in substrings(contents)}
    hits = [[run in seen for run in substrings(contents)] for contents in validation]
    every = [hit for one in hits for hit in one]
    assert found.ngrams == (pytest.approx(sum(every) / len(every)) if every else None)
    long_enough = [any(one) for one in hits if one]
    assert found.conversations == (
        pytest.approx(sum(long_enough) / len(long_enough)) if long_enough else None
    )
    assert found.clean.tolist() == [not any(one) for one in hits]
