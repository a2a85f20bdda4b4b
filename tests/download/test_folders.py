"""Files of a folder, of its splits, and of data sets that `datasets` has saved."""

import json
from pathlib import Path
from typing import Any

import pytest

from stages.download.folders import KINDS, files_below, files_of_split
from stages.download.readers import READERS, read_path
from stages.download.rows import Row
from stages.errors import DataError, SettingsError
from tests.download.test_readers import arrow_bytes


def test_every_kind_has_a_reader() -> None:
    assert tuple(READERS) == KINDS


def make(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(json.dumps({"text": name}) + "\n", encoding="utf-8")
    return root


def texts(root: Path, split: str = "train", validation_split: str | None = None) -> list[str]:
    rows = read_path(root, None, split, validation_split)
    return [row["text"] for _, row in rows]  # type: ignore[index]


@pytest.mark.parametrize(
    ("names", "split", "validation_split", "read"),
    [
        (["a.jsonl", "b.jsonl"], "train", None, ["a.jsonl", "b.jsonl"]),
        (["a.jsonl", "train.jsonl", "test.jsonl"], "train", None, ["train.jsonl"]),
        (["train.jsonl", "test.jsonl"], "test", None, ["test.jsonl"]),
        (["train.jsonl", "test.jsonl"], "train", "test", ["train.jsonl"]),
        (["a.jsonl", "b.jsonl", "held/c.jsonl"], "train", "held", ["a.jsonl", "b.jsonl"]),
        (["a.jsonl", "b.jsonl"], "train", "b", ["a.jsonl"]),
        (["a.jsonl", "b.jsonl"], "b", "b", ["b.jsonl"]),
        (
            ["data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl", "data/x.jsonl"],
            "train",
            None,
            ["data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl"],
        ),
        (["train/a.jsonl", "train/held/b.jsonl"], "train", "held", ["train/a.jsonl"]),
        (
            ["training.jsonl", "trained/a.jsonl"],
            "train",
            None,
            ["trained/a.jsonl", "training.jsonl"],
        ),
    ],
)
def test_a_split_is_what_is_named_after_it(
    tmp_path: Path, names: list[str], split: str, validation_split: str | None, read: list[str]
) -> None:
    make(tmp_path, *names)
    assert texts(tmp_path, split, validation_split) == read


def test_what_is_not_read_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(tmp_path, "train.jsonl", "test/a.jsonl", "notes.md")
    texts(tmp_path)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert "1 files of data.path are none of jsonl" in said[0]
    assert "notes.md" in said[0]
    assert "not of split 'train' and are not read: test/a.jsonl" in said[1]


def test_links_that_are_not_followed_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path, "data/a.jsonl", "real/b.jsonl")
    (tmp_path / "data/linked").symlink_to(tmp_path / "real")
    (tmp_path / "data/gone.jsonl").symlink_to(tmp_path / "none.jsonl")
    (tmp_path / "data/c.jsonl").symlink_to(tmp_path / "real/b.jsonl")
    assert texts(tmp_path / "data") == ["data/a.jsonl", "real/b.jsonl"]
    assert "2 files of data.path" in (said := capsys.readouterr().err)
    assert "gone.jsonl, linked" in said


@pytest.mark.parametrize(
    ("split", "validation_split", "key"),
    [
        ("test", None, "split"),
        ("test", "train", "split"),
        ("dev", "dev", "validation_split"),
        ("a", "a.jsonl", "split"),
    ],
)
def test_a_split_that_is_not_there_is_named(
    tmp_path: Path, split: str, validation_split: str | None, key: str
) -> None:
    files, _ = files_below(make(tmp_path, "b.jsonl", "train.jsonl"))
    with pytest.raises(SettingsError, match=rf"data\.{key}: no data under .* is named '{split}'"):
        files_of_split(files, tmp_path, split, validation_split)


def save(folder: Path, rows: list[dict[str, Any]], shards: int = 1) -> None:
    """A data set as `save_to_disk` leaves it."""
    folder.mkdir(parents=True)
    names = [f"data-{n:05}-of-{shards:05}.arrow" for n in range(shards)]
    for number, name in enumerate(names):
        (folder / name).write_bytes(arrow_bytes(rows[number::shards]))
    (folder / "cache-0123456789abcdef.arrow").write_bytes(arrow_bytes([{"text": "of a map"}]))
    (folder / "dataset_info.json").write_text('{"features": {}}', encoding="utf-8")
    state = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "0"}
    (folder / "state.json").write_text(json.dumps(state), encoding="utf-8")


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A data set of two splits."""
    rows: list[dict[str, Any]] = [{"text": str(number)} for number in range(9)]
    save(tmp_path / "train", rows[:6], shards=2)
    save(tmp_path / "validation", rows[6:])
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "validation"]}')
    return tmp_path


def test_a_saved_data_set_is_read_by_its_splits(saved: Path) -> None:
    assert texts(saved) == ["0", "2", "4", "1", "3", "5"]
    assert texts(saved, "validation", "validation") == ["6", "7", "8"]
    assert texts(saved / "train") == ["0", "2", "4", "1", "3", "5"]
    with pytest.raises(SettingsError, match=r"data\.split: no data under .* is named 'test'"):
        texts(saved, "test")


def test_a_saved_data_set_that_datasets_wrote_is_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    rows: list[Row] = [{"text": str(number)} for number in range(5)]
    whole = datasets.Dataset.from_list(rows)
    parts = datasets.DatasetDict(train=whole, validation=whole.select([4]))
    parts.save_to_disk(str(tmp_path / "parts"))
    assert [row for _, row in read_path(tmp_path / "parts")] == rows
    assert texts(tmp_path / "parts", "validation") == ["4"]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"_data_files": [1]}', "[" * 100_000])
def test_a_saved_data_set_without_its_list_of_files_is_named(saved: Path, content: str) -> None:
    (saved / "train/state.json").write_text(content)
    with pytest.raises(DataError, match=r"state\.json does not list the files"):
        texts(saved)


def test_a_saved_data_set_that_lacks_a_file_is_named(saved: Path) -> None:
    (saved / "train/data-00001-of-00002.arrow").unlink()
    with pytest.raises(DataError, match=r"data-00001-of-00002\.arrow"):
        texts(saved)
