"""Data stages in slices: the bytes of one machine, whatever the number of slices."""

import gzip
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from stages.conversations import Message
from stages.download import slices as download_slices
from stages.download.params import DataParams
from stages.errors import DataError, SettingsError, StageError
from stages.params import read
from stages.shards import slices as shards_slices
from stages.shards.params import ShardsParams
from tests.builders import (
    call_stage,
    chats,
    contents,
    error_lines,
    run_stage,
    stage_environment,
    tiny_params,
    write_params,
)


def rows(corpus: list[list[Message]]) -> list[dict[str, Any]]:
    return [{"messages": chat, "language": "English" if n % 3 else "German"}
            for n, chat in enumerate(corpus)]  # fmt: skip


def jsonl(corpus: list[list[Message]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows(corpus))


def write_source(folder: Path) -> None:
    """Five files with duplicates within and between them, and rows that are broken."""
    folder.mkdir(parents=True)
    (folder / "a.jsonl").write_bytes(jsonl(chats(60, 1)) + b"{broken\n" + jsonl(chats(9, 1)))
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(jsonl(chats(50, 2) + chats(30, 1))))
    (folder / "c.json").write_text(json.dumps(rows(chats(40, 3))), encoding="utf-8")
    table = pyarrow.Table.from_pylist(rows(chats(40, 4) + chats(5, 2)))
    pyarrow.parquet.write_table(table, folder / "d.parquet")
    (folder / "validation.jsonl").write_bytes(jsonl(chats(15, 5) + chats(5, 1)) + b"[]\n")


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "subset": {"data.subset": 83},
    "validation": {"data.validation_split": "validation"},
    "filter": {"data.filter": {"language": "English"}, "data.max_chars": 150},
}


def prepare(root: Path, changes: dict[str, Any]) -> Path:
    root.mkdir(exist_ok=True)
    write_source(root / "source")
    local = {"data.name": "local", "data.path": "source", "data.max_bad_fraction": 0.1}
    write_params(root, tiny_params({**local, "data.val_fraction": 0.2, **changes}))
    return root


def outputs(root: Path) -> dict[str, bytes]:
    return contents(root / "data") | {f"metrics/{k}": v for k, v in
                                      contents(root / "metrics").items()}  # fmt: skip


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("slices", [1, 2, 7])
def test_slices_give_the_bytes_of_one_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, slices: int
) -> None:
    root = prepare(tmp_path, SETTINGS[name])
    for stage in ("download", "tokenizer", "shards"):
        call_stage(stage, root)
    wanted = outputs(root)
    monkeypatch.chdir(root)
    for stage in ("conversations", "shards"):
        shutil.rmtree(root / "data" / stage)
    params, work = read("data", DataParams), tmp_path / "work"
    for rank in reversed(range(slices)):
        download_slices.write_slice(params, work / "download", rank, slices)
    download_slices.join_slices(params, work / "download")
    for rank in range(slices):
        shards_slices.write_slice(work / "shards", rank, slices)
    shards_slices.join_slices(read("shards", ShardsParams), work / "shards", slices)
    assert outputs(root) == wanted
    assert json.loads(wanted["metrics/data.json"])["rows"]["dropped"]["duplicate"] > 5


def cluster(root: Path, *options: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "stages.cluster", *options],
        cwd=root, env=stage_environment(root), capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stderr


def test_two_workers_and_two_machines_give_the_bytes_of_one(tmp_path: Path) -> None:
    root = prepare(tmp_path, {})
    for stage in ("download", "tokenizer", "shards"):
        call_stage(stage, root)
    wanted = outputs(root)
    for stage in ("conversations", "shards"):
        shutil.rmtree(root / "data" / stage)

    code, stderr = cluster(root, "download", "--tasks", "3", "--workers", "2")
    assert code == 0, stderr
    assert "dvc commit --force download" in stderr

    share = ("shards", "--tasks", "4", "--workers", "2")
    code, stderr = cluster(root, *share, "--share", "2/2")
    assert code == 0, stderr
    code, stderr = cluster(root, *share, "--join")
    assert code == 3
    assert "train-00000 is not there yet" in error_lines(stderr)[-1]
    assert not (root / "data/shards").exists()
    for options in (["--share", "1/2"], ["--join"]):
        code, stderr = cluster(root, *share, *options)
        assert code == 0, stderr
    assert outputs(root) == wanted
    assert not list((root / "data/.slices").iterdir())


def test_a_damaged_file_is_told_as_one_machine_tells_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = prepare(tmp_path, {})
    content = (root / "source/d.parquet").read_bytes()
    (root / "source/d.parquet").write_bytes(content[: len(content) // 2])
    code, stderr = run_stage("download", root)
    assert code == 3
    monkeypatch.chdir(root)
    params = read("data", DataParams)
    for rank in range(2):
        download_slices.write_slice(params, tmp_path / "work", rank, 2)
    with pytest.raises(DataError) as raised:
        download_slices.join_slices(params, tmp_path / "work")
    assert str(raised.value) in error_lines(stderr)[0]
    assert not (root / "data/conversations").exists()
    # Where the subset is full before, no machine comes so far.
    few = params.model_copy(update={"subset": 20})
    assert download_slices.join_slices(few, tmp_path / "work")["rows"]["kept"] == 20


def test_a_column_that_no_row_has_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(prepare(tmp_path, {"data.filter": {"tongue": "English"}}))
    params = read("data", DataParams)
    download_slices.write_slice(params, tmp_path / "work", 0, 1)
    with pytest.raises(SettingsError, match="no row has a column 'tongue'"):
        download_slices.join_slices(params, tmp_path / "work")


def test_what_a_killed_slice_left_is_written_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(prepare(tmp_path, {}))
    params, work = read("data", DataParams), tmp_path / "work"

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(download_slices, "_write_part", killed)
        with pytest.raises(KeyboardInterrupt):
            download_slices.write_slice(params, work, 0, 1)
    with pytest.raises(StageError, match="is not there yet"):
        download_slices.join_slices(params, work)
    download_slices.write_slice(params, work, 0, 1)
    with monkeypatch.context() as patch:
        patch.setattr(download_slices, "_write_part", killed)
        download_slices.write_slice(params, work, 0, 1)  # nothing is left to do
    assert download_slices.join_slices(params, work)["rows"]["read"] > 100


@pytest.mark.parametrize("share", ["3/2", "0/2", "1", "a/b", "1/9"])
def test_a_share_that_cannot_be_is_one_line(tmp_path: Path, share: str) -> None:
    root = prepare(tmp_path, {})
    code, stderr = cluster(root, "download", "--tasks", "4", "--share", share)
    assert code == 2
    assert f"--share {share}" in error_lines(stderr)[0]
