"""Reading shards: any stretch of the stream, whose turn a token is, what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages import corpus
from stages.corpus import TokenStream, read_manifest, token_dtype
from stages.errors import DataError
from tests.builders import (
    CONTROL_IDS,
    Turn,
    build_data,
    document_stream,
    documents,
    joined,
    make_stream,
    render,
)


@pytest.mark.parametrize(
    ("vocab_size", "name"),
    [(263, "uint16"), (2**16, "uint16"), (2**16 + 1, "uint32"), (2**31, "uint32")],
)
def test_dtype_is_the_smaller_that_holds_every_id(vocab_size: int, name: str) -> None:
    dtype = token_dtype(vocab_size)
    assert dtype == np.dtype(name)
    assert vocab_size - 1 <= np.iinfo(dtype).max


@settings(max_examples=60)
@given(st.data(), documents(), st.integers(1, 30))
def test_any_stretch_reads_as_if_the_files_were_one(
    tmp_path_factory: pytest.TempPathFactory,
    data: st.DataObject,
    turns: list[list[Turn]],
    tokens_per_shard: int,
) -> None:
    stream = document_stream(tmp_path_factory.mktemp("stream"), turns, tokens_per_shard)
    whole = joined(render(document)[0] for document in turns)
    assert len(stream) == len(whole)
    for _ in range(5):
        start = data.draw(st.integers(0, len(whole)))
        stop = data.draw(st.integers(start, len(whole)))
        part = stream.read(start, stop)
        assert part.dtype == np.int64
        assert part.tolist() == whole[start:stop]


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts descriptors in /proc")
def test_any_number_of_shards_needs_few_file_descriptors(tmp_path: Path) -> None:
    stream = make_stream(tmp_path, [[7, 8]] * 500, tokens_per_shard=2)
    before = len(list(Path("/proc/self/fd").iterdir()))
    assert stream.read(0, 1000).tolist() == [7, 8] * 500
    assert len(list(Path("/proc/self/fd").iterdir())) - before <= corpus.OPEN_FILES


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (0, 5), (3, 2)])
def test_reading_outside_the_stream_raises(tmp_path: Path, start: int, stop: int) -> None:
    with pytest.raises(IndexError):
        make_stream(tmp_path, [[1, 2, 3, 4]]).read(start, stop)


def test_an_empty_split_is_an_empty_stream(tmp_path: Path) -> None:
    stream = make_stream(tmp_path, [])
    assert len(stream) == 0
    assert stream.read(0, 0).tolist() == []


@settings(max_examples=150)
@given(st.data(), documents(longest=12), st.integers(1, 30), st.integers(1, 9))
def test_assistant_mask_is_that_of_a_scan_from_the_beginning(
    tmp_path_factory: pytest.TempPathFactory,
    data: st.DataObject,
    turns: list[list[Turn]],
    tokens_per_shard: int,
    look_back: int,
) -> None:
    stream = document_stream(tmp_path_factory.mktemp("stream"), turns, tokens_per_shard)
    spoken = joined(render(document)[1] for document in turns)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "LOOK_BACK", look_back)
        for _ in range(4):
            start = data.draw(st.integers(0, len(spoken)))
            stop = data.draw(st.integers(start, len(spoken)))
            mask = stream.assistant_mask(start, stream.read(start, stop))
            assert mask.tolist() == spoken[start:stop]


@pytest.mark.parametrize("role", ["assistant", "user"])
def test_a_turn_much_longer_than_the_look_back_keeps_its_role(tmp_path: Path, role: str) -> None:
    words = [7] * (3 * corpus.LOOK_BACK)
    stream = document_stream(tmp_path, [[("system", [8]), (role, words), ("user", [9])]])
    start = len(words)
    mask = stream.assistant_mask(start, stream.read(start, start + 5))
    assert mask.tolist() == [role == "assistant"] * 5


def test_a_new_document_is_nobodys_turn_even_if_the_last_was_cut_short(tmp_path: Path) -> None:
    bos, assistant = CONTROL_IDS["bos"], CONTROL_IDS["assistant"]
    stream = make_stream(tmp_path, [[bos, assistant, 8, 9], [bos, 10, 11]])
    mask = stream.assistant_mask(3, stream.read(3, 7))
    assert mask.tolist() == [True, False, False, False]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_data(tmp_path_factory.mktemp("built"))


@pytest.fixture
def copy(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built / "data", tmp_path / "data"))


def open_stream(data: Path) -> TokenStream:
    manifest = read_manifest(data / "shards", data / "tokenizer")
    return TokenStream(manifest, "train", data / "shards")


def test_what_the_stage_wrote_opens(copy: Path) -> None:
    assert len(open_stream(copy)) > 1000


def test_another_tokenizer_is_refused(copy: Path) -> None:
    file = copy / "tokenizer/tokenizer.json"
    values: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(DataError, match="another tokenizer"):
        open_stream(copy)


def test_a_missing_tokenizer_is_refused(copy: Path) -> None:
    (copy / "tokenizer/tokenizer.json").unlink()
    with pytest.raises(DataError, match="tokenizer"):
        open_stream(copy)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "not found"),
        ("", "damaged"),
        ('{"dtype"', "damaged"),
        ("[]", "damaged"),
        ("{}", "damaged"),
    ],
)
def test_a_missing_or_damaged_manifest_is_one_line(
    copy: Path, content: str | None, reason: str
) -> None:
    path = copy / "shards/manifest.json"
    path.unlink()
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=f"manifest.json.*{reason}"):
        open_stream(copy)


@pytest.mark.parametrize("change", ["shorter", "longer", "empty", "missing"])
def test_a_shard_of_another_length_is_refused(copy: Path, change: str) -> None:
    path = copy / "shards/train-00001.bin"
    content = path.read_bytes()
    path.unlink()
    if change != "missing":
        path.write_bytes({"shorter": content[:-1], "longer": content + b"\0", "empty": b""}[change])
    with pytest.raises(DataError, match=path.name):
        open_stream(copy)
