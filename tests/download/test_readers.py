"""Local files of every kind: what is broken costs as little as it can, and is named."""

import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.download import readers, tables
from stages.download.collect import collect
from stages.download.formats import adapt
from stages.download.readers import DOCUMENT_CHARS, READERS, read_path
from stages.download.rows import BadRow, Row
from stages.download.sources import open_source
from stages.errors import AccessError, DataError
from tests.download.conftest import chat, chats, data_params, jsonl


def csv_bytes(rows: list[dict[str, Any]], separator: str = ",") -> bytes:
    """A csv file whose lists are cells of JSON."""
    text = io.StringIO(newline="")
    table = csv.writer(text, delimiter=separator)
    table.writerow(rows[0])
    for row in rows:
        table.writerow(json.dumps(v) if isinstance(v, list) else v for v in row.values())
    return text.getvalue().encode()


def parquet_bytes(rows: list[dict[str, Any]], **options: Any) -> bytes:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), buffer, **options)
    return buffer.getvalue()


def arrow_bytes(rows: list[dict[str, Any]]) -> bytes:
    """A stream of Arrow, as `datasets` saves it."""
    table = pa.Table.from_pylist(rows)
    buffer = io.BytesIO()
    with pa.ipc.new_stream(buffer, table.schema) as writer:
        writer.write_table(table, max_chunksize=3)
    return buffer.getvalue()


def zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as packed:
        packed.write(content)
    return bytes(sink.getvalue())


PACKERS: dict[str, Callable[[bytes], bytes]] = {"gz": gzip.compress, "zst": zstd}


WRITERS: dict[str, Callable[[list[dict[str, Any]]], bytes]] = {
    "jsonl": jsonl,
    "ndjson": jsonl,
    "json": lambda rows: json.dumps(rows).encode(),
    "csv": csv_bytes,
    "tsv": lambda rows: csv_bytes(rows, separator="\t"),
    "parquet": parquet_bytes,
    "arrow": arrow_bytes,
    "txt": lambda rows: b"\n".join(str(row["text"]).encode() for row in rows),
}


@pytest.fixture
def rows_of(tmp_path: Path) -> Callable[[str, bytes], list[tuple[str, Row]]]:
    """Reads a file of that name and content."""

    def read(name: str, content: bytes) -> list[tuple[str, Row]]:
        (tmp_path / name).write_bytes(content)
        return list(read_path(tmp_path / name))

    return read


RowsOf = Callable[[str, bytes], list[tuple[str, Row]]]


# --- one record a line ---


def test_a_broken_line_costs_that_line_alone(rows_of: RowsOf) -> None:
    lines = [
        b'{"text": "a"}',
        b"",
        b'{"text": ',
        b"   \t",
        b"[1]",
        b"null",
        b'"text"',
        b"3",
        b'{"text": "caf\xe9"}',
        b'{"text": "\xed\xa0\x80"}',
        b"[" * 100_000,
        b'{"text": ' + b"9" * 5_000 + b"}",
        b'{"text": "z"}',
    ]
    assert rows_of("a.jsonl", b"\n".join(lines)) == [
        ("a.jsonl:1", {"text": "a"}),
        ("a.jsonl:3", BadRow("not_json")),
        ("a.jsonl:5", BadRow("not_an_object")),
        ("a.jsonl:6", BadRow("not_an_object")),
        ("a.jsonl:7", BadRow("not_an_object")),
        ("a.jsonl:8", BadRow("not_an_object")),
        ("a.jsonl:9", BadRow("not_utf8")),
        ("a.jsonl:10", BadRow("not_utf8")),
        ("a.jsonl:11", BadRow("not_json")),
        ("a.jsonl:12", BadRow("not_json")),
        ("a.jsonl:13", {"text": "z"}),
    ]


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("last", [b"", b"\n", b"\r\n\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_lines_end_as_on_any_system(rows_of: RowsOf, mark: bytes, end: bytes, last: bytes) -> None:
    content = mark + end.join([b'{"text": "a\\r\\n"}', b'{"text": "b"}']) + last
    assert [row for _, row in rows_of("a.jsonl", content)] == [{"text": "a\r\n"}, {"text": "b"}]


@pytest.mark.parametrize("character", list("\x85\u2028\u2029\x0b\x0c\x1c\x1e\ufeff\x7f"))
@pytest.mark.parametrize("kind", [kind for kind in WRITERS if kind != "txt"])
def test_no_other_character_ends_a_line(rows_of: RowsOf, kind: str, character: str) -> None:
    rows = [{"text": f"a{character}b"}, {"text": "c"}]
    content = WRITERS[kind](rows)
    assert [row for _, row in rows_of(f"a.{kind}", content)] == rows


def test_half_of_a_surrogate_pair_makes_its_row_malformed(tmp_path: Path, rows_of: RowsOf) -> None:
    rows = rows_of("a.jsonl", b'{"text": "\\ud83d\\ude42"}\n{"text": "\\ud83d"}\n{"text": "b"}\n')
    report = collect(iter(rows), data_params(max_bad_fraction=0.5), tmp_path)
    assert report["rows"] == {
        "read": 3,
        "kept": 2,
        "malformed": 1,
        "dropped": {"not_unicode": 1},
    }


# --- json ---


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        ('[{"text": "a"}, {"text": "b"}]', [{"text": "a"}, {"text": "b"}]),
        ('\ufeff[{"text": "a"}]', [{"text": "a"}]),
        ('{"data": [{"text": "a"}], "version": 1}', [{"text": "a"}]),
        ('{"text": "a"}', [{"text": "a"}]),
        ('{"text": "a", "tags": ["b"]}', [{"text": "a", "tags": ["b"]}]),
        ('{"prompt": "a", "response": "b", "n": []}', [{"prompt": "a", "response": "b", "n": []}]),
        ('{"messages": [{"role": "user"}]}', [{"messages": [{"role": "user"}]}]),
        ('{"conversations": []}', [{"conversations": []}]),
        ('{"a": [1], "b": [2]}', [{"a": [1], "b": [2]}]),
        ("[]", []),
        ('{"data": []}', []),
        (
            '[null, "a", [], 3, {"text": "b"}]',
            [*[BadRow("not_an_object")] * 4, {"text": "b"}],
        ),
    ],
)
def test_a_json_file_holds_an_array_or_one_record(
    rows_of: RowsOf, content: str, rows: list[Row]
) -> None:
    found = rows_of("a.json", content.encode())
    assert found == [(f"a.json:{number}", row) for number, row in enumerate(rows, 1)]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'[{"text": "a"}, {"text": "b',
        b'{"text": "a"} {"text": "b"}',
        b"[" * 100_000,
        b"3",
        b"null",
        b'"text"',
    ],
)
def test_a_json_file_that_cannot_be_parsed_is_named(rows_of: RowsOf, content: bytes) -> None:
    with pytest.raises(DataError, match=r"a\.json"):
        rows_of("a.json", content)


# --- csv ---


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_a_csv_row_costs_itself_and_is_named_by_its_first_line(
    rows_of: RowsOf, mark: bytes, end: bytes
) -> None:
    lines = [
        b"",
        b"prompt,response",
        b'"quoted, with\nnew\r\nlines and ""quotes""",b',
        b"too,many,values",
        b"",
        b"too few",
        b"caf\xe9,b",
        b'"stray" quote,b',
        b'plain "quote",b',
        b",",
        b"last,b",
    ]
    assert rows_of("a.csv", mark + end.join(lines)) == [
        ("a.csv:3", {"prompt": 'quoted, with\nnew\r\nlines and "quotes"', "response": "b"}),
        ("a.csv:6", BadRow("wrong_number_of_columns")),
        ("a.csv:8", BadRow("wrong_number_of_columns")),
        ("a.csv:9", BadRow("not_utf8")),
        ("a.csv:10", BadRow("not_csv")),
        ("a.csv:11", {"prompt": 'plain "quote"', "response": "b"}),
        ("a.csv:12", {"prompt": "", "response": ""}),
        ("a.csv:13", {"prompt": "last", "response": "b"}),
    ]


def test_a_csv_field_may_be_huge(rows_of: RowsOf) -> None:
    text = "many words\n" * 100_000
    assert rows_of("a.csv", csv_bytes([{"text": text}])) == [("a.csv:2", {"text": text})]


def test_a_stray_quote_of_csv_costs_its_line_though_it_takes_in_those_up_to_the_next(
    rows_of: RowsOf,
) -> None:
    lines = [b"question,answer", *(b"question %d ok,answer %d ok" % (i, i) for i in range(2, 61))]
    lines[10] = b'"stray quote here,answer'
    lines[20] = b""
    lines[30] = b"caf\xe9,answer"
    lines[40] = b'"good, of\ntwo lines",answer q'
    rows = dict(rows_of("a.csv", b"\n".join(lines)))
    assert len(rows) == 58
    bad = {where: row for where, row in rows.items() if isinstance(row, BadRow)}
    assert bad == {"a.csv:11": BadRow("not_csv"), "a.csv:31": BadRow("not_utf8")}
    assert rows["a.csv:12"] == {"question": "question 12 ok", "answer": "answer 12 ok"}
    assert rows["a.csv:41"] == {"question": "good, of\ntwo lines", "answer": "answer q"}
    assert rows["a.csv:43"] == {"question": "question 42 ok", "answer": "answer 42 ok"}


@pytest.mark.parametrize("last", [b"", b'"d\n', b'"d" e\n'])
def test_a_csv_quote_that_is_never_closed_costs_its_line(rows_of: RowsOf, last: bytes) -> None:
    content = b"text\n" + b"a\n" * 1000 + b'"b\n' + b"c\n" * 1000 + last
    rows = rows_of("a.csv", content)
    bad = [where for where, row in rows if row == BadRow("not_csv")]
    assert bad == ["a.csv:1002", *(["a.csv:2003"] if last else [])]
    assert [row for where, row in rows if where not in bad] == [{"text": "a"}] * 1000 + [
        {"text": "c"}
    ] * 1000


def test_a_csv_file_of_stray_quotes_is_read_in_one_go(rows_of: RowsOf) -> None:
    """Each quote takes in all that follows: looked for anew from every line, this took hours."""
    content = b"question,answer\n" + b'many words","more words\n' * 100_000
    rows = [row for _, row in rows_of("a.csv", content)]
    assert rows == [BadRow("not_csv")] * 100_000


def test_a_csv_header_with_an_open_quote_is_named(rows_of: RowsOf) -> None:
    with pytest.raises(DataError, match=r"a\.csv:2: .*quote"):
        rows_of("a.csv", b'\n"question,answer\na,b\n')


@pytest.mark.parametrize("rows", [b"", b"a,b,c\n"])
def test_a_csv_column_that_is_there_twice_is_named(rows_of: RowsOf, rows: bytes) -> None:
    with pytest.raises(DataError, match=r"a\.csv:2: .*column 'text' twice"):
        rows_of("a.csv", b"\ntext,id,text\n" + rows)


def test_csv_columns_without_a_name_may_be_several(rows_of: RowsOf) -> None:
    assert rows_of("a.csv", b"text,,\na,,\n") == [("a.csv:2", {"text": "a", "": ""})]


@pytest.mark.parametrize("content", [b"", b"\n\n", b"text,id\n", b"text,id"])
def test_a_csv_file_without_rows_has_none(rows_of: RowsOf, content: bytes) -> None:
    assert rows_of("a.csv", content) == []


# --- parquet ---


def test_nested_values_of_parquet_are_plain(rows_of: RowsOf) -> None:
    rows: list[dict[str, Any]] = [
        {"conversation": chat("a", "b"), "turn": 1},
        {"conversation": None, "turn": None},
        {"conversation": [None], "turn": 2},
        {"conversation": [{"role": None, "content": None}], "turn": 3},
        {"conversation": [], "turn": 4},
    ]
    read = [row for _, row in rows_of("a.parquet", parquet_bytes(rows))]
    assert read == rows
    assert not isinstance(read[0], BadRow)
    assert adapt(read[0], "auto") == [("user", "a"), ("assistant", "b")]


def test_a_list_of_another_arrow_type_is_a_list_too(tmp_path: Path) -> None:
    words = pa.array(["user", "assistant"] * 2).dictionary_encode()
    contents = pa.array(["a", "b", "c", "d"], pa.large_string())
    said = pa.StructArray.from_arrays([words, contents], names=["role", "content"])
    column = pa.LargeListArray.from_arrays(pa.array([0, 2, 4], pa.int64()), said)
    pyarrow.parquet.write_table(pa.table({"messages": column}), tmp_path / "a.parquet")
    rows = [row for _, row in read_path(tmp_path / "a.parquet")]
    assert rows == [{"messages": chat("a", "b")}, {"messages": chat("c", "d")}]


def test_a_parquet_value_that_python_cannot_hold_costs_its_row(tmp_path: Path) -> None:
    offsets = pa.array([0, 1, 2, 3, 4], pa.int32()).buffers()[1]
    text = pa.StringArray.from_buffers(4, offsets, pa.py_buffer(b"a\xffcd"))
    times = pa.array([0, 0, 2**62, 0], pa.timestamp("us"))
    pyarrow.parquet.write_table(pa.table({"text": text, "t": times}), tmp_path / "a.parquet")
    rows = [row if isinstance(row, BadRow) else row["text"] for _, row in read_path(tmp_path)]
    assert rows == ["a", BadRow("not_utf8"), BadRow("unreadable_value"), "d"]


def test_a_parquet_value_in_a_column_that_nobody_reads_costs_nothing(tmp_path: Path) -> None:
    times = pa.array([0, 2**62], pa.timestamp("us"))
    table = pa.table({"text": ["a", "b"], "language": ["en", "en"], "id": [1, 2], "time": times})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    params = data_params(path=str(tmp_path / "a.parquet"), filter={"language": "en"})
    rows = [row for _, row in open_source(params)]
    assert rows == [{"text": "a", "language": "en"}, {"text": "b", "language": "en"}]
    params = data_params(path=str(tmp_path / "a.parquet"), filter={"time": None})
    assert [row for _, row in open_source(params)][1] == BadRow("unreadable_value")


_nested = st.recursive(
    st.sampled_from([pa.int32(), pa.string(), pa.bool_(), pa.large_string()]),
    lambda inner: st.one_of(
        inner.map(pa.list_),
        inner.map(pa.large_list),
        st.lists(inner, max_size=3).map(
            lambda kinds: pa.struct([(f"f{i}", kind) for i, kind in enumerate(kinds)])
        ),
    ),
    max_leaves=4,
)


def _of(kind: pa.DataType) -> st.SearchStrategy[Any]:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        value: st.SearchStrategy[Any] = st.lists(_of(kind.value_type), max_size=3)
    elif pa.types.is_struct(kind):
        value = st.fixed_dictionaries({field.name: _of(field.type) for field in kind})
    elif pa.types.is_integer(kind):
        value = st.integers(-9, 9)
    else:
        value = st.booleans() if pa.types.is_boolean(kind) else st.text(max_size=3)
    return st.none() | value


@settings(max_examples=60)
@given(st.data())
def test_a_table_has_the_values_that_arrow_gives(tmp_path: Path, data: st.DataObject) -> None:
    kind = data.draw(_nested)
    values = data.draw(st.lists(_of(kind), max_size=8))
    table = pa.table({"a": pa.array(values, kind), "b": pa.array(range(len(values)), pa.int8())})
    file = tmp_path / "a.arrow"
    with pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=3)
    assert [row for _, row in read_path(file)] == table.to_pylist()
    cut = table.slice(1).to_batches()
    assert [row for batch in cut for row in tables._rows(batch)] == table.to_pylist()[1:]


@pytest.mark.parametrize("suffix", ["arrow", "parquet"])
def test_a_column_that_a_table_has_twice_is_named(tmp_path: Path, suffix: str) -> None:
    table = pa.table([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    file = tmp_path / f"a.{suffix}"
    if suffix == "arrow":
        with pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
    else:
        pyarrow.parquet.write_table(table, file)
    with pytest.raises(DataError, match=rf"a\.{suffix} has column 'text' twice"):
        list(read_path(file))


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[: len(content) // 2],
        lambda content: content[:-8],
        lambda content: content[:600] + bytes(b ^ 255 for b in content[600:700]) + content[700:],
        lambda content: b"ARROW1" + content[6:],
    ],
)
def test_a_damaged_arrow_file_is_named(rows_of: RowsOf, damage: Callable[[bytes], bytes]) -> None:
    content = arrow_bytes([{"text": "some words " * 20}] * 20)
    with pytest.raises(DataError, match=r"a\.arrow is a damaged Arrow file"):
        rows_of("a.arrow", damage(content))


def test_a_parquet_file_without_a_column_to_read_has_its_rows_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(parquet_bytes([{"words": "a"}, {"words": "b"}]))
    params = data_params(path=str(tmp_path / "a.parquet"))
    assert [row for _, row in open_source(params)] == [{}, {}]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:-20],
        lambda content: content[20:],
        lambda content: b"text\nnot parquet at all\n",
        lambda content: content[:10] + b"\0" * 20 + content[30:],
    ],
)
def test_a_damaged_parquet_file_is_named(rows_of: RowsOf, damage: Callable[[bytes], bytes]) -> None:
    content = parquet_bytes([{"text": "some words " * 20}])
    with pytest.raises(DataError, match=r"a\.parquet is a damaged parquet file"):
        rows_of("a.parquet", damage(content))


# --- plain text ---

_lines = st.lists(
    st.one_of(
        st.just(""),
        st.just(" \t"),
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n"), max_size=20),
        st.integers(1, 2 * DOCUMENT_CHARS - 1).map(lambda length: "x" * length),
    ),
    max_size=20,
)


@settings(max_examples=60)
@given(_lines, st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_every_line_of_text_is_in_one_document(
    tmp_path: Path, lines: list[str], end: str, ended: bool
) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes((end.join(lines) + (end if ended else "")).encode())
    found: list[str] = []
    for where, row in read_path(file):
        assert not isinstance(row, BadRow)
        document = row["text"].split("\n")
        start = int(where.rpartition(":")[2])
        assert lines[start - 1].removeprefix("\ufeff") == document[0]
        assert len(row["text"]) < 2 * DOCUMENT_CHARS + max(map(len, document))
        found += [line for line in document if line.strip()]
    if lines:
        lines = [lines[0].removeprefix("\ufeff"), *lines[1:]]
    assert found == [line for line in lines if line.strip()]


def test_text_is_cut_at_a_blank_line_once_a_document_is_long_enough(rows_of: RowsOf) -> None:
    paragraph = "\n".join(["some words"] * 50)  # four of them are longer than a document
    content = "\n\n".join([paragraph] * 20).encode()
    documents = [row["text"] for _, row in rows_of("a.txt", content) if not isinstance(row, BadRow)]
    assert documents == ["\n\n".join([paragraph] * 4)] * 5


@pytest.mark.parametrize("word", ["word ", "x"])
def test_text_in_one_long_line_is_cut_too(rows_of: RowsOf, word: str) -> None:
    whole = (word * 5_000_000)[:5_000_000].strip()
    texts = [row["text"] for _, row in rows_of("a.txt", whole.encode())]
    assert len(texts) > 10
    assert max(map(len, texts)) <= 2 * readers.DOCUMENT_CHARS
    assert (" " if " " in word else "").join(texts) == whole


def test_a_line_of_text_that_is_not_utf8_costs_that_line(rows_of: RowsOf) -> None:
    assert rows_of("a.txt", b"\xef\xbb\xbfone\ncaf\xe9\ntwo\n") == [
        ("a.txt:2", BadRow("not_utf8")),
        ("a.txt:1", {"text": "one\ntwo"}),
    ]


# --- files and folders ---


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "txt"])
@pytest.mark.parametrize("coding", ["utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("packing", ["", "gz"])
def test_a_file_of_utf_16_is_named(rows_of: RowsOf, kind: str, coding: str, packing: str) -> None:
    content = WRITERS[kind]([{"text": "Hello"}]).decode().encode(coding)
    name = f"a.{kind}.{packing}".rstrip(".")
    with pytest.raises(DataError, match=rf"{name} is UTF-16: save it as UTF-8"):
        rows_of(name, PACKERS[packing](content) if packing else content)


def test_zero_bytes_are_no_json_and_are_text_where_they_are_written_as_text(
    rows_of: RowsOf,
) -> None:
    lines = b'{"text": "a"}\n\0\0\0\n{"text": "\0"}\n{"text": "\\u0000"}\n'
    assert [row for _, row in rows_of("a.jsonl", lines)] == [
        {"text": "a"},
        BadRow("not_json"),
        BadRow("not_json"),
        {"text": "\0"},
    ]


def test_a_line_may_be_json_for_python_alone(rows_of: RowsOf) -> None:
    lines = b'{"text": "a", "n": NaN, "m": -Infinity}\n{"text": "b", "text": "c"}\n'
    rows = [row for _, row in rows_of("a.jsonl", lines)]
    assert [row["text"] for row in rows if not isinstance(row, BadRow)] == ["a", "c"]


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet", "arrow"])
def test_a_row_may_be_millions_of_characters(rows_of: RowsOf, kind: str) -> None:
    text = ('"quoted" \\ Grüße\n' * 300_000)[:5_000_000]
    rows = [{"text": "a"}, {"text": text}, {"text": "b"}]
    assert [row for _, row in rows_of(f"a.{kind}", WRITERS[kind](rows))] == rows


def test_columns_may_be_of_other_types_in_other_files(tmp_path: Path) -> None:
    source, folder = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    folder.mkdir()
    (source / "1.parquet").write_bytes(parquet_bytes([{"text": "a", "n": 1}]))
    (source / "2.parquet").write_bytes(parquet_bytes([{"n": "x", "text": 3}]))
    (source / "3.jsonl").write_bytes(jsonl([{"text": {"a": 1}}, {"text": "b"}, {"text": ["c"]}]))
    (source / "4.csv").write_bytes(b"text\n5\n")
    report = collect(read_path(source), data_params(max_bad_fraction=1.0), folder)
    assert report["rows"]["kept"] == 3
    assert report["rows"]["dropped"] == {"wrong_type": 3}


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize("packing", ["", *PACKERS])
def test_every_kind_of_file_is_read_plain_and_compressed(
    rows_of: RowsOf, kind: str, packing: str
) -> None:
    content = WRITERS[kind]([{"text": "Hello"}])
    packed = PACKERS[packing](content) if packing else content
    name = f"a.{kind}.{packing}".rstrip(".")
    for found in (name, name.upper()):
        assert [row for _, row in rows_of(found, packed)] == [{"text": "Hello"}]


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize(
    "damage",
    [
        lambda packed: packed[: len(packed) // 2],
        lambda packed: packed[:-4],
        lambda packed: packed[:40] + bytes(byte ^ 255 for byte in packed[40:60]) + packed[60:],
        lambda packed: b"not compressed",
    ],
)
@pytest.mark.parametrize("packing", PACKERS)
def test_a_damaged_compressed_file_is_named(
    rows_of: RowsOf, kind: str, packing: str, damage: Callable[[bytes], bytes]
) -> None:
    content = WRITERS[kind]([{"text": str(n**7)} for n in range(1000)])
    packed = PACKERS[packing](content)
    if packing == "zst" and damage(packed)[40:60] != packed[40:60] and len(damage(packed)) > 60:
        pytest.skip("what pyarrow packs has no checksum")
    with pytest.raises(DataError, match=rf"a\.{kind}\.{packing} is (a damaged|not JSON)"):
        rows_of(f"a.{kind}.{packing}", damage(packed))


@pytest.mark.parametrize("kind", ["jsonl", "ndjson", "csv", "txt"])
@pytest.mark.parametrize("packing", ["", *PACKERS])
def test_an_empty_file_has_no_rows(rows_of: RowsOf, kind: str, packing: str) -> None:
    name = f"a.{kind}.{packing}".rstrip(".")
    assert rows_of(name, PACKERS[packing](b"") if packing else b"") == []


def test_a_folder_is_read_in_order_of_name_without_what_is_hidden(tmp_path: Path) -> None:
    for name in (
        "b.jsonl",
        "a/z.jsonl.gz",
        "a/b.txt",
        "B.json",
        ".hidden.jsonl",
        ".git/a.jsonl",
        "a/.cache/b.txt",
        "README.md",
        "notes",
    ):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        content = name.encode() if name.endswith("txt") else jsonl([{"text": name}])
        file.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert list(read_path(tmp_path)) == [
        (f"{name}:1", {"text": name}) for name in ("B.json", "a/b.txt", "a/z.jsonl.gz", "b.jsonl")
    ]


@pytest.mark.parametrize("names", [[], ["README.md", "a.pdf"], [".hidden.jsonl"]])
def test_a_folder_without_a_file_to_read_is_named(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        (tmp_path / name).write_bytes(b"{}\n")
    with pytest.raises(DataError, match=rf"no jsonl.* file under '{tmp_path}'"):
        list(read_path(tmp_path))


@pytest.mark.parametrize("name", ["a.xlsx", "a", "a.jsonl.bak", "a.gz", "a.zip"])
def test_a_file_of_another_kind_is_named(rows_of: RowsOf, name: str) -> None:
    with pytest.raises(DataError, match=rf"data\.path: .*/{name}' is none of jsonl"):
        rows_of(name, b"{}\n")


@pytest.mark.parametrize("kind", READERS)
def test_a_file_that_may_not_be_read_is_named(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"a.{kind}").write_bytes(b"")

    def refuse(file: Path, *_: object) -> io.BufferedReader:
        raise PermissionError(13, "Permission denied", str(file))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(AccessError, match=rf"a\.{kind}"):
        list(read_path(tmp_path / f"a.{kind}"))


CORPUS: list[dict[str, Any]] = [
    *({"id": n, **row} for n, row in enumerate(chats(60))),
    {"id": 60, "messages": chat('  "Quoted", \r\n spaced  ', "<|end|>\tä\u2028🙂\x00")},
    {"id": 61, "messages": chat("What is 0?", "It is 0.")},
    {"id": 62, "messages": chat("alone")},
]


def test_the_same_corpus_in_any_kind_of_file_gives_the_same_bytes(tmp_path: Path) -> None:
    outputs = {}
    kinds = ("jsonl", "json", "csv", "parquet", "arrow")
    sources: dict[str, dict[str, bytes]] = {
        **{f"a.{kind}": {"": WRITERS[kind](CORPUS)} for kind in kinds},
        **{
            f"a.{kind}.{packing}": {"": pack(WRITERS[kind](CORPUS))}
            for kind in kinds
            for packing, pack in PACKERS.items()
        },
        "7-rows-a-group.parquet": {"": parquet_bytes(CORPUS, row_group_size=7)},
        "folder": {
            "1.csv": csv_bytes(CORPUS[:20]),
            "2.json": WRITERS["json"](CORPUS[20:40]),
            "3/a.parquet": parquet_bytes(CORPUS[40:50]),
            "3/b.jsonl.zst": zstd(jsonl(CORPUS[50:])),
        },
    }
    for name, contents in sources.items():
        source = tmp_path / name
        for part, content in contents.items():
            (source / part).parent.mkdir(parents=True, exist_ok=True)
            (source / part).write_bytes(content)
        folder = tmp_path / f"{name}.out"
        folder.mkdir()
        report = collect(read_path(source), data_params(), folder)
        written = {file.name: file.read_bytes() for file in folder.iterdir()}
        outputs[name] = (report, written)
    first = outputs["a.jsonl"]
    assert sorted(first[1]) == [
        "manifest.json",
        "rejected.jsonl",
        "train.jsonl",
        "validation.jsonl",
    ]
    assert first[0]["rows"]["kept"] == 61
    assert first[0]["validation"]["conversations"] > 0
    assert all(output == first for output in outputs.values())


# --- what users have, and what the last line of an error says of it ---


@pytest.mark.parametrize(("name", "separator"), [("a.csv", ";"), ("a.csv", "\t"), ("a.tsv", "\t")])
def test_a_table_of_semicolons_or_tabs_is_read(rows_of: RowsOf, name: str, separator: str) -> None:
    lines = [["prompt", "response"], ["a, b", '"c\nd"'], ["", "e"]]
    content = "\n" + "\n".join(separator.join(line) for line in lines)
    assert rows_of(name, content.encode()) == [
        (f"{name}:3", {"prompt": "a, b", "response": "c\nd"}),
        (f"{name}:5", {"prompt": "", "response": "e"}),
    ]


def test_commas_of_a_header_win_and_one_column_has_no_separator(rows_of: RowsOf) -> None:
    assert rows_of("a.csv", b"a;b,c\n1;2,3\n") == [("a.csv:2", {"a;b": "1;2", "c": "3"})]
    assert rows_of("b.csv", b"text\nx;y\n") == [("b.csv:2", {"text": "x;y"})]


def test_json_lines_in_a_file_called_json_are_read(rows_of: RowsOf) -> None:
    assert rows_of("a.json", b'\n{"text": "a"}\n{"text": \n{"text": "b"}\n') == [
        ("a.json:2", {"text": "a"}),
        ("a.json:3", BadRow("not_json")),
        ("a.json:4", {"text": "b"}),
    ]


def test_a_long_line_of_json_is_not_held_whole_to_see_what_it_is(
    rows_of: RowsOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.download.json_file.LONGEST_LINE", 9)
    assert rows_of("a.json", b'{"data": [{"text": "a"}]}\n\n') == [("a.json:1", {"text": "a"})]


@pytest.mark.parametrize(
    ("content", "suffix"),
    [
        pytest.param(gzip.compress(b'{"text": "a"}'), ".gz", id="gz"),  # bytes that hold the time
        pytest.param(zstd(b'{"text": "a"}'), ".zst", id="zst"),
        pytest.param(parquet_bytes([{"text": "a"}]), ".parquet", id="parquet"),
    ],
)
def test_a_file_whose_name_hides_what_it_is_is_named(
    rows_of: RowsOf, content: bytes, suffix: str
) -> None:
    with pytest.raises(DataError, match=rf"a\.jsonl holds a \{suffix} file"):
        rows_of("a.jsonl", content)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.csv", b"Frage|Antwort\n1|2\n", r"a\.csv:2: unknown_columns .of 'Frage.Antwort': name"),
        ("a.jsonl", b'{"prompt": "x"}\n', r"a\.jsonl:1: unknown_columns .of 'prompt': name the"),
        ("a.jsonl", b'[\n{"text": "x"}\n]', r"not_json .an array of records\? name it \.json"),
        ("a.jsonl", b'[{"text": "x"}]', r"not_an_object .an array of records\? name it \.json"),
        ("a.jsonl", b'{"text": "x"},\n', r"a\.jsonl:1: not_json .Extra data, column 14"),
        ("a.jsonl", b'{"text": 3}\n', r"wrong_type .int where text is wanted"),
        ("a.jsonl", b'{"messages": [{"who": "x"}]}\n', r"_or_content .it has 'who'"),
        ("a.txt", b"caf\xe9\n", r"a\.txt:1: not_utf8 .save the file as UTF-8"),
        ("a.csv", b"a,text\n1\n", r"wrong_number_of_columns .1, the header 2"),
    ],
)
def test_the_first_malformed_row_is_told_with_what_is_wrong(
    tmp_path: Path, name: str, content: bytes, told: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=told):
        collect(read_path(tmp_path / name), data_params(), tmp_path)
