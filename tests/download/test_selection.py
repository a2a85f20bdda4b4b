"""Which rows are chosen: names of columns, bounds, redacted and flagged rows, own splits."""

import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.conversations import Message
from stages.download.collect import collect
from stages.download.rows import Row
from stages.errors import DataError, SettingsError
from tests.download.conftest import (
    Collect,
    Collected,
    chat,
    chats,
    data_params,
    read_collected,
)


def said(result: Collected) -> list[str]:
    return sorted(conversation[0]["content"] for conversation in result.all)


# --- names of columns ---

HELLO = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi!"}]


@pytest.mark.parametrize(
    ("columns", "row", "format_"),
    [
        ({"prompt": "frage", "response": "antwort"}, {"frage": "Hello", "antwort": "Hi!"}, "auto"),
        ({"prompt": "frage", "response": "antwort"}, {"frage": "Hello", "antwort": "Hi!"}, "pairs"),
        ({"prompt": "frage"}, {"frage": "Hello", "response": "Hi!", "prompt": "no"}, "auto"),
        (
            {"prompt": "answer", "response": "question"},
            {"answer": "Hello", "question": "Hi!"},
            "auto",
        ),
        ({"messages": "dialog"}, {"dialog": chat("Hello", "Hi!"), "text": "no"}, "auto"),
        ({"turns": "messages"}, {"messages": ["Hello", "Hi!"]}, "auto"),
        ({"turns": "messages"}, {"messages": '["Hello", "Hi!"]', "text": "no"}, "turns"),
        (
            {"instruction": "q", "input": "more", "output": "a"},
            {"q": "Hello", "a": "Hi!"} | {"more": ""},
            "auto",
        ),
    ],
)
def test_columns_may_have_other_names(
    collected: Collect, columns: dict[str, str], row: dict[str, Any], format_: str
) -> None:
    assert collected([row], columns=columns, format=format_).all == [HELLO]


def test_a_filter_goes_by_the_names_that_the_data_have(collected: Collect) -> None:
    rows = [{"a": word, "text": "English" if word == "x" else "German"} for word in "xyz"]
    result = collected(rows, columns={"text": "a", "language": "text"}, filter={"text": "English"})
    assert said(result) == ["x"]
    assert result.report["languages"] == {"English": 1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"columns": {"prompt": "text", "response": "antwort"}}, "columns: no row .*'antwort'"),
        ({"columns": {"prompt": "text", "response": "b"}, "max_bad_fraction": 0.0}, "row .*'b'"),
        ({"drop_redacted": True}, "data.drop_redacted: no row has a column 'redacted'"),
        ({"drop_flagged": True}, "data.drop_flagged: no row has a column 'openai_moderation'"),
        (
            {"drop_redacted": True, "columns": {"redacted": "private"}},
            "no row has a column 'private'",
        ),
    ],
)
def test_a_column_that_no_row_has_is_named(
    collected: Collect, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        collected([{"text": "a"}, {"text": "b"}], **{"max_bad_fraction": 1.0, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"columns": {"promt": "a"}}, "columns: no format reads 'promt': did you mean 'prompt'"),
        ({"columns": {"prompt": "a", "output": "b"}}, "no format reads 'prompt' and 'output'"),
        ({"columns": {"prompt": "a"}, "format": "text"}, "'text' does not read 'prompt'"),
        ({"columns": {"prompt": "a", "response": "a"}}, "one column of the data is given for two"),
        ({"columns": {"redacted": "a"}}, "no format reads 'redacted'"),
        ({"columns": {"text": ""}}, "columns"),
        ({"format": "pair"}, "no format 'pair': did you mean 'pairs'"),
        ({"min_turns": 3, "max_turns": 2}, "min_turns: 3 is above max_turns 2"),
        ({"min_chars": 9, "max_chars": 8}, "min_chars: 9 is above max_chars 8"),
        ({"validation_split": "train"}, "validation_split: 'train' is data.split too"),
        ({"min_chars": 0}, "min_chars"),
        ({"max_turns": 0}, "max_turns"),
    ],
)
def test_settings_that_cannot_be_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        data_params(**changes)


# --- bounds ---


@pytest.mark.parametrize(
    ("changes", "kept", "dropped"),
    [
        ({"max_turns": 2}, ["aaaa", "bb", "text"], {"max_turns": 1}),
        ({"max_turns": 4}, ["aaaa", "bb", "c", "text"], {}),
        ({"min_chars": 5}, ["aaaa", "c"], {"min_chars": 2}),
        ({"max_chars": 4}, ["bb", "text"], {"max_chars": 2}),
        ({"min_chars": 4, "max_chars": 4}, ["text"], {"min_chars": 1, "max_chars": 2}),
        ({"min_turns": 3, "max_turns": 3}, ["text"], {"min_turns": 2, "max_turns": 1}),
    ],
)
def test_bounds_drop_and_are_counted(
    collected: Collect, changes: dict[str, Any], kept: list[str], dropped: dict[str, int]
) -> None:
    rows: list[Row] = [
        {"messages": chat("  aaaa", "aa")},
        {"messages": chat("bb", "b \n")},
        {"messages": chat("c", "cc", "c", "cc")},
        {"text": "text"},
    ]
    result = collected(rows, **changes)
    assert said(result) == kept
    assert result.report["rows"]["dropped"] == dropped


# --- redacted and flagged rows ---


@pytest.mark.parametrize(
    ("cell", "kept"),
    [(True, False), ("True", False), ("true", False), (False, True), (None, True), ("", True)],
)
def test_redacted_rows_are_dropped_when_asked(collected: Collect, cell: object, kept: bool) -> None:
    rows: list[Row] = [{"text": "a", "redacted": cell}, {"text": "b", "redacted": False}]
    result = collected(rows, drop_redacted=True)
    assert said(result) == (["a", "b"] if kept else ["b"])
    assert result.report["rows"]["dropped"] == ({} if kept else {"redacted": 1})
    assert said(collected(rows)) == ["a", "b"]


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        ([{"flagged": False}, {"flagged": True}], "flagged"),
        ('[{"flagged": true}]', "flagged"),
        ([{"flagged": False, "categories": {"hate": True}}], ""),
        ([], ""),
        (None, ""),
        ("", ""),
        ("no", "not_json"),
        ([{}], "no_verdict"),
        ([True], "no_verdict"),
        (3, "no_verdict"),
        ({"flagged": True}, "no_verdict"),
    ],
)
def test_flagged_rows_are_dropped_when_asked(collected: Collect, cell: object, reason: str) -> None:
    rows: list[Row] = [{"text": "a", "openai_moderation": cell}, {"text": "b"}]
    result = collected(rows, drop_flagged=True, max_bad_fraction=1.0)
    assert said(result) == (["b"] if reason else ["a", "b"])
    assert result.report["rows"]["dropped"] == ({reason: 1} if reason else {})
    assert result.report["rows"]["malformed"] == (reason not in ("", "flagged"))


# --- a validation split of its own ---


def own(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[dict[str, Any]],
    validation: list[dict[str, Any]],
    **changes: Any,
) -> Collected:
    folder = tmp_path_factory.mktemp("own")
    sources = (((f"{n}", row) for n, row in enumerate(part)) for part in (rows, validation))
    params = data_params(validation_split="held", name="acme/chats", **changes)
    return read_collected(folder, collect(next(sources), params, folder, next(sources)))


Factory = pytest.TempPathFactory


def test_a_validation_split_of_its_own_keeps_what_stands_in_both(
    tmp_path_factory: Factory,
) -> None:
    result = own(tmp_path_factory, chats(50) + chats(9), chats(60)[40:] + chats(60)[40:45])
    assert [n[0]["content"] for n in result.train] == [f"What is {n}?" for n in range(40)]
    assert len(result.validation) == 20
    assert result.report["rows"] == {
        "read": 84,
        "kept": 60,
        "malformed": 0,
        "dropped": {"duplicate": 14, "in_validation": 10},
    }


def test_a_validation_split_of_its_own_is_in_order_of_hash_and_whole(
    tmp_path_factory: Factory,
) -> None:
    rows, held = chats(90)[:30], chats(90)[30:]
    one = own(tmp_path_factory, rows, held)
    other = own(tmp_path_factory, rows, held[::-1], subset=7)
    assert one.validation == other.validation
    assert len(one.validation) == 60
    assert other.train == one.train[:7]


@pytest.mark.parametrize(
    ("rows", "validation", "message"),
    [
        (chats(3), [], r"left of 0 rows of data\.validation_split 'held' .the source is empty"),
        (chats(3), [{"messages": chat("a")}], r"of data\.validation_split 'held' .1 min_turns"),
        ([], chats(3), r"left of 3 rows .the source is empty"),
        (chats(3), chats(3), r"left of 6 rows .3 in_validation"),
    ],
)
def test_a_side_without_a_conversation_is_named(
    tmp_path_factory: Factory,
    rows: list[dict[str, Any]],
    validation: list[dict[str, Any]],
    message: str,
) -> None:
    with pytest.raises(DataError, match=message):
        own(tmp_path_factory, rows, validation)


# --- never on both sides ---

_SPACES = [" ", "\n", "\t", "\u2003", "  "]
_words = st.lists(st.sampled_from(["a", "b", "c", "é", "<|end|>"]), min_size=1, max_size=4)


@settings(max_examples=60)
@given(
    conversations=st.lists(st.lists(_words, min_size=2, max_size=3), min_size=2, max_size=25),
    randomly=st.randoms(use_true_random=False),
    split=st.booleans(),
)
def test_no_conversation_stands_on_both_sides_whatever_its_white_space(
    tmp_path_factory: Factory,
    conversations: list[list[list[str]]],
    randomly: random.Random,
    split: bool,
) -> None:
    def spaced(words: list[str]) -> str:
        return randomly.choice(_SPACES).join(["", *words, ""])

    again = randomly.choices(conversations, k=max(1, len(conversations) * 3 // 10))
    rows: list[dict[str, Any]] = [
        {"messages": chat(*map(spaced, conversation))} for conversation in conversations + again
    ]
    randomly.shuffle(rows)
    if split:
        middle = len(rows) // 2
        try:
            result = own(tmp_path_factory, rows[:middle], rows[middle:])
        except DataError:  # all for training are in validation
            return
    else:
        folder = tmp_path_factory.mktemp("both")
        numbered = ((str(number), row) for number, row in enumerate(rows))
        params = data_params(val_fraction=0.5)
        result = read_collected(folder, collect(numbered, params, folder))

    def key(conversation: list[Message]) -> str:
        return json.dumps([(m["role"], m["content"].split()) for m in conversation])

    train, validation = ([key(c) for c in side] for side in (result.train, result.validation))
    assert not set(train) & set(validation)
    assert len(set(train)) == len(train)
    assert len(set(validation)) == len(validation)
    assert len(train) + len(validation) == len({json.dumps(c) for c in conversations})


# --- the report ---


def test_the_report_tells_what_the_conversations_are_like(collected: Collect) -> None:
    rows: list[Row] = [
        {"messages": chat("ab", "c"), "language": "English"},
        {"messages": chat("éé", "dd", "ee", "ff"), "language": "German"},
        {"text": "one two", "language": None},
        {"text": "dropped", "language": "French", "keep": False},
    ]
    rows = [{"keep": True, **row} for row in rows]  # type: ignore[dict-item]
    report = collected(rows, filter={"keep": True}).report
    assert report["turns"] == {"mean": 2.333, "median": 2, "max": 4}
    assert report["characters"] == {"mean": 6.0, "median": 7, "max": 8}
    assert report["languages"] == {"English": 1, "German": 1, "(unknown)": 1}


def test_a_source_without_languages_has_none_in_its_report(collected: Collect) -> None:
    rows: list[Row] = [{"text": "a"}, {"text": "b", "language": 3}]
    assert "languages" not in collected(rows).report
