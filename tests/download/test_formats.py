"""Record formats: recognised by their columns, and what breaks them is named."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.download.formats import COLUMNS, FORMATS, Malformed, Turn, Unusable, adapt, recognise
from tests.download.conftest import chat

HELLO: list[Turn] = [("user", "Hello"), ("assistant", "Hi!")]
SHAREGPT = [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hi!"}]

# Format, a row of it with the columns that its data sets also have, its turns.
ROWS: list[tuple[str, dict[str, Any], list[Turn]]] = [
    (
        "conversation",
        {"conversation_id": "a", "model": "m", "conversation": chat("Hello", "Hi!"), "turn": 1},
        HELLO,
    ),
    ("messages", {"messages": chat("Hello", "Hi!"), "prompt": "Hello", "text": "other"}, HELLO),
    ("sharegpt", {"id": "a", "conversations": SHAREGPT}, HELLO),
    ("alpaca", {"instruction": "Hello", "input": "", "output": "Hi!", "text": "other"}, HELLO),
    ("alpaca", {"instruction": "Hello", "input": " \n", "output": "Hi!"}, HELLO),
    ("alpaca", {"instruction": "Hello", "input": None, "output": "Hi!"}, HELLO),
    ("alpaca", {"instruction": "Hello", "output": "Hi!"}, HELLO),
    (
        "alpaca",
        {"instruction": "Add.", "input": "1, 2", "output": "3"},
        [("user", "Add.\n\n1, 2"), ("assistant", "3")],
    ),
    ("pairs", {"prompt": "Hello", "response": "Hi!", "text": "other"}, HELLO),
    ("pairs", {"prompt": "Hello", "completion": "Hi!"}, HELLO),
    ("pairs", {"question": "Hello", "answer": "Hi!", "prompt": "other"}, HELLO),
    ("text", {"text": " A page.\n", "meta": {}, "turns": 3}, [("text", " A page.\n")]),
]


@pytest.mark.parametrize(("name", "row", "turns"), ROWS)
def test_a_row_is_recognised_by_its_columns(
    name: str, row: dict[str, Any], turns: list[Turn]
) -> None:
    assert recognise(row) == name
    assert adapt(row, "auto") == turns


@pytest.mark.parametrize(("name", "row", "turns"), ROWS)
def test_a_forced_format_reads_its_rows_whatever_else_they_hold(
    name: str, row: dict[str, Any], turns: list[Turn]
) -> None:
    everything = {"messages": 1, "conversation": 1, "conversations": 1, "text": 1, **row}
    assert adapt(everything, name) == turns


@pytest.mark.parametrize(("name", "row", "turns"), ROWS)
def test_the_columns_that_are_entered_are_all_that_is_read(
    name: str, row: dict[str, Any], turns: list[Turn]
) -> None:
    assert adapt({k: v for k, v in row.items() if k in COLUMNS}, name) == turns


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_a_forced_format_misses_its_columns(name: str) -> None:
    with pytest.raises(Malformed, match=r"^missing_column$"):
        adapt({"unrelated": "x"}, name)


@pytest.mark.parametrize("row", [{}, {"id": 1, "title": "x"}, {"instruction": "x"}])
def test_columns_of_no_format_are_named_so(row: dict[str, Any]) -> None:
    with pytest.raises(Malformed, match=r"^unknown_columns$"):
        adapt(row, "auto")


@pytest.mark.parametrize(
    ("role", "meant"),
    [
        ("user", "user"),
        ("human", "user"),
        ("prompter", "user"),
        ("assistant", "assistant"),
        ("gpt", "assistant"),
        ("chatgpt", "assistant"),
        ("bot", "assistant"),
        ("model", "assistant"),
        ("system", "system"),
        (" Human\n", "user"),
        ("ASSISTANT", "assistant"),
    ],
)
def test_names_of_roles_are_those_of_the_formats(role: str, meant: str) -> None:
    for row in (
        {"messages": [{"role": role, "content": "x"}]},
        {"conversations": [{"from": role, "value": "x"}]},
    ):
        assert adapt(row, "auto") == [(meant, "x")]


LISTS = ["conversation", "messages", "conversations"]


@pytest.mark.parametrize("column", LISTS)
def test_a_list_of_messages_may_have_the_keys_of_another_format(column: str) -> None:
    assert adapt({column: chat("Hello", "Hi!")}, "auto") == HELLO
    assert adapt({column: SHAREGPT}, "auto") == HELLO


def _list_of(column: str, *messages: object) -> dict[str, Any]:
    """A row whose messages, written with role and content, have the column's own keys."""
    names = {"role": "from", "content": "value"} if column == "conversations" else {}
    return {
        column: [
            {names.get(key, key): value for key, value in message.items()}
            if isinstance(message, dict)
            else message
            for message in messages
        ]
    }


@pytest.mark.parametrize("column", LISTS)
@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "no_messages"),
        ([None], "wrong_type"),
        (["Hello"], "wrong_type"),
        ([["user", "Hello"]], "wrong_type"),
        ([{"role": "user"}], "message_without_role_or_content"),
        ([{"content": "Hello"}], "message_without_role_or_content"),
        ([{}], "message_without_role_or_content"),
        ([{"role": "user", "content": None}], "wrong_type"),
        ([{"role": "user", "content": 1}], "wrong_type"),
        ([{"role": "user", "content": ["Hello"]}], "wrong_type"),
        ([{"role": None, "content": "Hello"}], "wrong_type"),
        ([{"role": 0, "content": "Hello"}], "wrong_type"),
        ([{"role": "user", "content": "Hello"}, None], "wrong_type"),
    ],
)
def test_a_broken_list_of_messages_is_malformed(
    column: str, messages: list[object], reason: str
) -> None:
    with pytest.raises(Malformed, match=f"^{reason}$"):
        adapt(_list_of(column, *messages), "auto")


@pytest.mark.parametrize("column", LISTS)
@pytest.mark.parametrize("value", [None, 3, 1.5, True, {}, {"role": "user", "content": "x"}])
def test_what_is_no_list_of_messages_is_malformed(column: str, value: object) -> None:
    with pytest.raises(Malformed, match=r"^no_messages$"):
        adapt({column: value}, "auto")


@pytest.mark.parametrize("column", LISTS)
@pytest.mark.parametrize("content", ["x", None])
def test_a_role_that_no_chat_has_is_dropped_by_rule(column: str, content: str | None) -> None:
    row = _list_of(column, {"role": "user", "content": "x"}, {"role": "tool", "content": content})
    with pytest.raises(Unusable, match=r"^unknown_role$"):
        adapt(row, "auto")


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": None, "output": "x"},
        {"instruction": "x", "output": None},
        {"instruction": "x", "input": 3, "output": "x"},
        {"prompt": None, "response": "x"},
        {"prompt": "x", "completion": 7},
        {"question": ["x"], "answer": "x"},
        {"text": None},
        {"text": b"bytes"},
        {"text": ["x"]},
    ],
)
def test_a_column_of_another_type_is_malformed(row: dict[str, Any]) -> None:
    with pytest.raises(Malformed, match=r"^wrong_type$"):
        adapt(row, "auto")


@pytest.mark.parametrize("column", LISTS)
@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        ("", "not_json"),
        ("Hello", "not_json"),
        ("[{'role': 'user', 'content': 'Hello'}]", "not_json"),
        ("[" * 100_000, "not_json"),
        ("null", "no_messages"),
        ("3", "no_messages"),
        ('"Hello"', "no_messages"),
        ("[]", "no_messages"),
        ('[{"role": "user", "from": "user"}]', "message_without_role_or_content"),
    ],
)
def test_a_cell_that_holds_no_list_as_json_is_malformed(
    column: str, cell: str, reason: str
) -> None:
    with pytest.raises(Malformed, match=f"^{reason}$"):
        adapt({column: cell}, "auto")


def test_a_cell_may_hold_the_list_as_json() -> None:
    cell = '[{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi!"}]'
    assert adapt({"messages": cell}, "auto") == HELLO


@pytest.mark.parametrize("make", [list, tuple, lambda m: np.array(m, dtype=object)])
def test_lists_may_be_of_another_library(make: Any) -> None:
    assert adapt({"messages": make(chat("Hello", "Hi!"))}, "auto") == HELLO
    words = [{"role": np.str_("user"), "content": np.str_("Hello")}]
    assert adapt({"messages": make(words)}, "auto") == HELLO[:1]


def _said(*turns: list[str]) -> dict[str, Any]:
    """A row of the embedded set: messages written ``a:text``, by turn."""
    return {
        "chitchat": [
            [dict(zip(("sender", "text"), said.split(":"), strict=True)) for said in turn]
            for turn in turns
        ]
    }


def test_who_speaks_first_in_an_embedded_chat_is_the_user() -> None:
    row = _said(["b:Hello", "b:", "b:there"], ["a:Hi!"], ["b:Bye."])
    assert adapt(row, "auto") == [
        ("user", "Hello\nthere"),
        ("assistant", "Hi!"),
        ("user", "Bye."),
    ]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (_said(["a:Hello"], ["a:Hello?"]), "single_sender"),
        (_said(["a:Hello"], ["b:Hi!"], ["c:Me too."]), "more_than_two_senders"),
        (_said(), "single_sender"),
        (_said([]), "single_sender"),
    ],
)
def test_an_embedded_chat_that_is_not_of_two_is_dropped_by_rule(
    row: dict[str, Any], reason: str
) -> None:
    with pytest.raises(Unusable, match=f"^{reason}$"):
        adapt(row, "auto")


_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=3)
    | st.binary(max_size=3)
    | st.sampled_from(["user", "assistant", "tool"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "from", "value", "sender", "text"]), inner
        )
    ),
    max_leaves=8,
)
_columns = sorted({column for form in FORMATS.values() for some in form.columns for column in some})


@settings(max_examples=300)
@given(
    row=st.dictionaries(st.sampled_from([*_columns, "input"]), _values, max_size=4),
    name=st.sampled_from(["auto", *FORMATS]),
)
def test_no_row_breaks_an_adapter(row: Mapping[str, Any], name: str) -> None:
    try:
        turns = adapt(row, name)
    except (Malformed, Unusable):
        return
    assert turns
    assert all(isinstance(content, str) for _, content in turns)
