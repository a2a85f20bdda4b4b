"""Rows become conversations: filtered, counted by reason, deduplicated, split by content."""

import itertools
import json
import random
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.conversations import Message
from stages.download import collect as collecting
from stages.download.rows import BadRow, Row, Rows
from stages.errors import DataError, SettingsError
from tests.download.conftest import (
    Collect,
    Collected,
    chat,
    chats,
    data_params,
    read_collected,
)


def key(conversation: list[Message]) -> str:
    """What makes two conversations the same: all but white space."""
    return json.dumps([(m["role"], m["content"].split()) for m in conversation])


def sides(result: Collected) -> dict[str, str]:
    """The side of the split of each conversation."""
    return {
        **{key(conversation): "train" for conversation in result.train},
        **{key(conversation): "validation" for conversation in result.validation},
    }


def contents(conversations: list[list[Message]]) -> list[str]:
    return [conversation[0]["content"] for conversation in conversations]


def texts(*documents: str) -> list[dict[str, Any]]:
    return [{"text": document} for document in documents]


# --- the split ---

_rows = st.lists(st.integers(0, 60), min_size=1, max_size=40).map(
    lambda numbers: [{"text": f"document {number}"} for number in numbers]
)


@settings(max_examples=60)
@given(rows=_rows, more=_rows, shuffle=st.randoms(use_true_random=False), data=st.data())
def test_no_other_row_moves_a_conversation_across_the_split(
    collected: Collect,
    rows: list[dict[str, Any]],
    more: list[dict[str, Any]],
    shuffle: random.Random,
    data: st.DataObject,
) -> None:
    before = sides(collected(rows))
    grown = rows + more
    shuffle.shuffle(grown)
    after = sides(collected(grown))
    assert {conversation: after[conversation] for conversation in before} == before
    part = data.draw(st.lists(st.sampled_from(rows), min_size=1))
    assert sides(collected(part)).items() <= before.items()


def test_the_order_of_rows_decides_the_order_of_training_alone(collected: Collect) -> None:
    rows = chats(200)
    one, other = collected(rows), collected(reversed(rows))
    assert one.train == other.train[::-1]
    assert one.validation == other.validation
    assert one.report == other.report


def test_validation_is_in_order_of_hash_so_that_a_prefix_is_a_fair_sample(
    collected: Collect,
) -> None:
    small, large = (collected(chats(n)).validation for n in (300, 600))
    assert small == [conversation for conversation in large if conversation in small]
    numbers = [int(question.split()[-1][:-1]) for question in contents(large)]
    assert numbers != sorted(numbers)


def test_duplicates_stand_on_one_side_and_are_counted(collected: Collect) -> None:
    rows = chats(700)
    randomly = random.Random(1)
    spaced = [
        {"messages": [{**m, "content": f"\n {m['content']} "} for m in row["messages"]]}
        for row in randomly.sample(rows, 300)
    ]
    mixed = rows + spaced
    randomly.shuffle(mixed)
    result = collected(mixed)
    train, validation = set(map(key, result.train)), set(map(key, result.validation))
    assert not train & validation
    assert (len(train), len(validation)) == (len(result.train), len(result.validation))
    assert result.report["rows"] == {
        "read": 1000,
        "kept": 700,
        "malformed": 0,
        "dropped": {"duplicate": 300},
    }


@pytest.mark.parametrize("fraction", [0.05, 0.3])
def test_about_val_fraction_is_held_out(collected: Collect, fraction: float) -> None:
    result = collected(chats(2000), val_fraction=fraction)
    assert len(result.validation) / 2000 == pytest.approx(fraction, abs=0.05)


# --- which rows are kept ---


def test_subset_takes_the_first_that_survive_and_reads_no_further(collected: Collect) -> None:
    def rows() -> Iterator[Row]:
        yield from chats(2)
        yield from chats(2)  # again
        yield {"messages": chat("alone")}
        for number in itertools.count(2):
            yield {"messages": chat(f"{number}", "yes")}

    result = collected(rows(), subset=5)
    assert sorted(contents(result.all)) == ["2", "3", "4", "What is 0?", "What is 1?"]
    assert result.report["rows"] == {
        "read": 8,
        "kept": 5,
        "malformed": 0,
        "dropped": {"duplicate": 2, "min_turns": 1},
    }


def test_a_subset_larger_than_the_source_keeps_all(collected: Collect) -> None:
    assert collected(chats(7), subset=100).report["rows"]["kept"] == 7


@pytest.mark.parametrize(("fewest", "kept"), [(1, 4), (2, 3), (3, 2), (4, 1)])
def test_min_turns_counts_the_messages_that_are_left(
    collected: Collect, fewest: int, kept: int
) -> None:
    rows = [
        {"messages": chat("one", "", "one more")},
        {"messages": chat("two", "b")},
        {"messages": [{"role": "system", "content": "three"}, *chat("a", "b")]},
        {"messages": chat("four", "b", "c", "d")},
    ]
    result = collected(rows, min_turns=fewest)
    assert result.report["rows"]["kept"] == kept
    assert result.report["rows"]["dropped"] == ({"min_turns": 4 - kept} if kept < 4 else {})


def test_min_turns_does_not_apply_to_plain_text(collected: Collect) -> None:
    assert collected(texts("a", "b"), min_turns=10).report["rows"]["kept"] == 2


@pytest.mark.parametrize(
    ("wanted", "kept"),
    [
        ({"language": "English"}, "ab"),
        ({"language": ["English", "German"]}, "abc"),
        ({"language": None}, "d"),
        ({"language": ["German", None]}, "cd"),
        ({"turn": 2}, "ac"),
        ({"turn": [1, 2]}, "abcd"),
        ({"redacted": True}, "c"),
        ({"score": 0.5}, "b"),
        ({"language": "English", "turn": 2}, "a"),
        ({"optional": 1}, "e"),
        ({}, "abcde"),
    ],
)
def test_a_filter_keeps_rows_whose_columns_equal_the_value_or_one_of_the_list(
    collected: Collect, wanted: dict[str, Any], kept: str
) -> None:
    columns: list[dict[str, Any]] = [
        {"text": "a", "language": "English", "turn": 2, "redacted": False, "score": 1.0},
        {"text": "b", "language": "English", "turn": 1, "redacted": False, "score": 0.5},
        {"text": "c", "language": "German", "turn": 2, "redacted": True, "score": None},
        {"text": "d", "language": None, "turn": 1, "redacted": None, "score": [0.5]},
        {"text": "e", "optional": 1},
    ]
    result = collected(columns, filter=wanted)
    assert "".join(sorted(contents(result.all))) == kept
    dropped = 5 - len(kept)
    assert result.report["rows"]["dropped"] == ({"filter": dropped} if dropped else {})


@pytest.mark.parametrize(
    ("cell", "wanted", "matches"),
    [
        ("1", 1, True),
        ("1", [3, 1], True),
        ("01", 1, False),
        ("0.5", 0.5, True),
        ("true", True, True),
        ("True", True, True),
        ("FALSE", False, True),
        ("true", False, False),
        ("1", True, False),
        ("true", 1, False),
        ("", None, False),
        ("None", None, False),
        (None, None, True),
        (True, 1, False),
        (False, 0, False),
        (1, True, False),
        (True, [0, 1], False),
        (True, True, True),
        (1, 1.0, True),
        (1, "1", False),
        ([1], 1, False),
    ],
)
def test_a_filter_compares_text_as_written_and_truth_values_among_themselves(
    collected: Collect, cell: object, wanted: object, matches: bool
) -> None:
    rows: list[Row] = [{"text": "a", "column": cell}, {"text": "b", "column": "other"}]
    wanted = wanted if isinstance(wanted, list) else [wanted]
    result = collected(rows, filter={"column": [*wanted, "other"]})
    assert ("a" in contents(result.all)) == matches


def test_rows_that_the_filter_leaves_out_are_not_judged(collected: Collect) -> None:
    rows = [{"text": "a", "language": "English"}, {"text": None, "language": "German"}]
    result = collected(rows, filter={"language": "English"}, max_bad_fraction=0.0)
    assert result.report["rows"]["dropped"] == {"filter": 1}


@pytest.mark.parametrize("rows", [texts("a", "b"), [*texts("a"), BadRow("not_json")]])
def test_a_filter_of_a_column_that_no_row_has_names_it(collected: Collect, rows: list[Row]) -> None:
    with pytest.raises(SettingsError, match=r"data\.filter.*'langauge'"):
        collected(rows, filter={"langauge": "English"}, max_bad_fraction=0.5)


# --- malformed rows ---

BROKEN: list[tuple[Row, str]] = [
    (BadRow("not_json"), "not_json"),
    (BadRow("not_utf8"), "not_utf8"),
    ({}, "unknown_columns"),
    ({"messages": None}, "no_messages"),
    ({"messages": []}, "no_messages"),
    ({"text": None}, "wrong_type"),
    ({"text": "\ud800"}, "not_unicode"),
]


def test_a_malformed_row_costs_itself_and_is_named_with_its_reason(collected: Collect) -> None:
    rows = [
        row for good, (bad, _) in zip(texts(*"abcdefg"), BROKEN, strict=True) for row in (good, bad)
    ]
    result = collected(rows, max_bad_fraction=0.5)
    assert result.report["rows"] == {
        "read": 14,
        "kept": 7,
        "malformed": 7,
        "dropped": {
            "no_messages": 2,
            "not_json": 1,
            "not_unicode": 1,
            "not_utf8": 1,
            "unknown_columns": 1,
            "wrong_type": 1,
        },
    }
    assert result.rejected == [
        {"where": f"rows:{2 * number}", "reason": reason}
        for number, (_, reason) in enumerate(BROKEN, 1)
    ]


def test_rows_that_a_rule_drops_are_not_malformed(collected: Collect) -> None:
    rows: list[Row] = [
        *chats(1),
        *chats(1),
        {"messages": chat("alone")},
        {"messages": chat(" ", " ")},
        {"messages": [{"role": "tool", "content": "x"}]},
        {"messages": chat("German", "yes"), "language": "German"},
        {"chitchat": [[{"sender": "a", "text": "Hello?"}]]},
    ]
    rows = [{"language": "English", **row} for row in rows if not isinstance(row, BadRow)]
    result = collected(rows, max_bad_fraction=0.0, filter={"language": "English"})
    assert result.rejected == []
    assert result.report["rows"] == {
        "read": 7,
        "kept": 1,
        "malformed": 0,
        "dropped": {
            "duplicate": 1,
            "empty": 1,
            "filter": 1,
            "min_turns": 1,
            "single_sender": 1,
            "unknown_role": 1,
        },
    }


@pytest.mark.parametrize(
    ("bad", "good", "fraction", "stops"),
    [
        (1, 99, 0.01, False),
        (1, 98, 0.01, True),
        (29, 71, 0.29, False),  # 0.29 * 100 is less than 29
        (0, 5, 0.0, False),
        (1, 9999, 0.0, True),
        (5, 5, 0.5, False),
        (6, 4, 0.5, True),
        (99, 1, 1.0, False),
    ],
)
def test_more_malformed_rows_than_max_bad_fraction_stop_the_stage(
    collected: Collect, bad: int, good: int, fraction: float, stops: bool
) -> None:
    rows: list[Row] = [*texts(*map(str, range(good))), *([BadRow("not_json")] * bad)]
    if not stops:
        assert collected(rows, max_bad_fraction=fraction).report["rows"]["malformed"] == bad
        return
    with pytest.raises(DataError, match=rf"data\.max_bad_fraction.*rows:{good + 1}: not_json$"):
        collected(rows, max_bad_fraction=fraction)


def test_a_source_that_is_not_what_it_says_is_not_read_to_its_end(
    collected: Collect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collecting, "HOPELESS_ROWS", 50)
    endless: Iterator[Row] = itertools.repeat(BadRow("not_json"))
    with pytest.raises(DataError, match="50 of 50 rows are malformed"):
        collected(endless)


def test_rows_that_max_bad_fraction_allows_never_end_the_reading(
    collected: Collect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collecting, "HOPELESS_ROWS", 50)
    rows: list[Row] = [
        BadRow("not_json") if number % 10 < 6 else {"text": str(number)} for number in range(200)
    ]
    assert collected(rows, max_bad_fraction=0.7).report["rows"]["read"] == 200


# --- what is left, and the report ---


@pytest.mark.parametrize(
    ("rows", "wanted", "reason"),
    [
        ([], {}, "the source is empty"),
        ([], {"language": "English"}, "the source is empty"),
        ([{"messages": chat("alone")}] * 2, {}, "2 min_turns"),
        ([{"text": "a", "language": "German"}], {"language": "English"}, "1 filter"),
        ([*[{"text": " "}] * 3, {"messages": chat("alone")}], {}, "3 empty, 1 min_turns"),
    ],
)
def test_nothing_left_is_a_failure_that_says_why(
    collected: Collect, rows: list[Row], wanted: dict[str, Any], reason: str
) -> None:
    with pytest.raises(DataError, match=f"no conversation is left of {len(rows)} rows .{reason}"):
        collected(rows, filter=wanted)


_anything: st.SearchStrategy[Row] = st.one_of(
    st.integers(0, 5).map(lambda n: {"text": f"document {n}"}),
    st.integers(0, 5).map(lambda n: {"messages": chat(f"{n}", "yes")}),
    st.sampled_from([row for row, _ in BROKEN]),
    st.sampled_from(
        [
            {"messages": chat("alone")},
            {"messages": chat("hm", "yes", first="assistant")},
            {"messages": [{"role": "tool", "content": "x"}]},
            {"text": ""},
        ]
    ),
)


@settings(max_examples=60)
@given(rows=st.lists(_anything, max_size=30), subset=st.none() | st.integers(1, 10))
def test_the_report_accounts_for_every_row(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Row], subset: int | None
) -> None:
    folder = tmp_path_factory.mktemp("report")
    taken = 0

    def source() -> Rows:
        nonlocal taken
        for row in rows:
            taken += 1
            yield f"rows:{taken}", row

    params = data_params(max_bad_fraction=1.0, subset=subset)
    try:
        report = collecting.collect(source(), params, folder)
    except DataError:
        return
    result = read_collected(folder, report)
    counts = report["rows"]
    assert counts["read"] == taken
    assert counts["read"] == counts["kept"] + sum(counts["dropped"].values())
    assert counts["malformed"] == len(result.rejected)
    assert counts["kept"] == len(result.all)
    for split, conversations in (("train", result.train), ("validation", result.validation)):
        said = [message["content"] for conversation in conversations for message in conversation]
        totals = {
            "conversations": len(conversations),
            "messages": len(said),
            "characters": sum(map(len, said)),
            "bytes": sum(len(content.encode()) for content in said),
        }
        assert report[split] == totals
        assert result.manifest["splits"][split].items() >= totals.items()


def test_messages_mended_are_counted_of_kept_conversations_alone(collected: Collect) -> None:
    rows = [
        {"messages": chat("Hi!", "a", "", "b", first="assistant")},
        {"messages": chat("", "dropped")},
        *chats(1),
    ]
    assert collected(rows, min_turns=1).report["messages_mended"] == {
        "empty": 1,
        "joined": 1,
        "leading_assistant": 1,
    }


def test_control_tokens_and_any_unicode_are_kept_as_text(collected: Collect) -> None:
    said = '<|user|> \u2028\x00\x85 "quoted" \\n 🙂 é e\u0301'
    result = collected([{"messages": chat(said, "yes")}])
    assert result.all[0][0]["content"] == said
