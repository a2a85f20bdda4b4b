"""JSON files: any array, whatever its size and wherever what is read at once ends."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.download import json_file
from stages.download.json_file import read_json
from stages.download.rows import BadRow, Row
from stages.errors import DataError


@pytest.fixture(params=[1, 7, 64])
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Reads so many bytes at once."""
    monkeypatch.setattr(json_file, "CHUNK", request.param)
    return request.param


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=12,
)
_records = st.lists(st.dictionaries(st.text(max_size=5), _values, max_size=4) | _values, max_size=6)


def wanted(records: list[Any]) -> list[tuple[int, Row]]:
    return [
        (number, record if isinstance(record, dict) else BadRow("not_an_object"))
        for number, record in enumerate(records, 1)
    ]


@settings(max_examples=60)
@given(
    records=_records,
    indent=st.sampled_from([None, 0, 3]),
    ascii_=st.booleans(),
    around=st.sampled_from(["", " \n\t"]),
)
def test_an_array_gives_its_records(
    tmp_path: Path, chunk: int, records: list[Any], indent: int | None, ascii_: bool, around: str
) -> None:
    text = around + json.dumps(records, indent=indent, ensure_ascii=ascii_) + around
    (tmp_path / "a.json").write_text(text, encoding="utf-8")
    assert list(read_json(tmp_path / "a.json")) == wanted(records)


@settings(max_examples=60)
@given(records=_records, before=_values, after=_values)
def test_an_object_with_one_list_gives_the_records_of_the_list(
    tmp_path: Path, chunk: int, records: list[Any], before: Any, after: Any
) -> None:
    whole = {"a": {"not": before}, "data": records, "z": {"not": after}}
    (tmp_path / "a.json").write_text(json.dumps(whole), encoding="utf-8")
    assert list(read_json(tmp_path / "a.json")) == wanted(records)


@settings(max_examples=60)
@given(records=_records, data=st.data())
def test_an_array_that_is_cut_is_named_with_the_place(
    tmp_path: Path, chunk: int, records: list[Any], data: st.DataObject
) -> None:
    whole = json.dumps(records, indent=1, ensure_ascii=False).encode()
    cut = whole[: data.draw(st.integers(0, len(whole) - 1))]
    (tmp_path / "a.json").write_bytes(cut)
    with pytest.raises(DataError, match=r"a\.json is not JSON: (item \d+, )?line \d+: "):
        list(read_json(tmp_path / "a.json"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "line 1: Expecting value, and the file ends: is it cut off"),
        (b'[{"text": "a"},\n{"text": "b', "item 2, line 2: a string that does not end"),
        (b'[{"text": "a"},\n{"text": "b"}', "item 2, line 2: Expecting ']', and the file ends"),
        (b'[{"text": "a"}\n\n {"text": "b"}]', "item 1, line 3: Expecting ']'$"),
        (b'[{"text": "a"}, {text: "b"}, {"text": "' + b"c" * 99 + b'"}]', "item 2, line 1: Expect"),
        (b'[{"text": "a"}, ' + b"[" * 200_000, "item 2, line 1: nested too deeply"),
        (b'{"data": [{"text": "a"},\n{"text": ', "item 2, line 2: Expecting value"),
        (b'{"data": [], 3: 4}', "line 1: a key is no string"),
        (b'{"data" []}', "line 1: Expecting ':'"),
        (b'{"text": "a"}\n{"text": "b"}\n', r"line 2: more .*name it \.jsonl"),
        (b'[{"text": "a"}]]', "line 1: more after its end"),
        (b"tru", "line 1: Expecting value"),
    ],
)
def test_what_is_no_json_is_named_with_the_place(
    tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(read_json(tmp_path / "a.json"))


def test_a_record_that_cannot_be_read_costs_itself(tmp_path: Path, chunk: int) -> None:
    records = [
        b'{"text": "a", "n": NaN}',
        b'{"text": "b", "n": ' + b"9" * 6_000 + b"}",
        b'{"text": "caf\xe9"}',
        b'{"text": "\\ud83d\\ude42"}',
        b"9" * 6_000,
        b'{"text": "c"}',
    ]
    (tmp_path / "a.json").write_bytes(b"[" + b",\n".join(records) + b"]")
    rows = [row for _, row in read_json(tmp_path / "a.json")]
    assert [row if isinstance(row, BadRow) else row["text"] for row in rows] == [
        "a",
        BadRow("not_json"),
        BadRow("not_utf8"),
        "🙂",
        BadRow("not_json"),
        "c",
    ]
