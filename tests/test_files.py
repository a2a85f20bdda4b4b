"""Outputs are complete or absent, whatever happens while they are written."""

import errno
import hashlib
import json
import math
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages import files
from stages.files import output_folder, rounded, sha256_file, write_json, write_text


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class Killed(BaseException):
    """As the exception that a signal raises."""


FAILURES = [ValueError("x"), OSError(errno.ENOSPC, "full"), KeyboardInterrupt(), Killed()]


def test_a_folder_appears_whole_and_replaces_the_one_before(tmp_path: Path) -> None:
    target = tmp_path / "a/b/out"
    for number in range(2):
        with output_folder(target) as folder:
            assert list(folder.iterdir()) == []
            (folder / f"{number}").write_text("x")
            (folder / "below").mkdir()
            (folder / "below/file").write_text("y")
            assert target.exists() == bool(number)
        assert names(target) == [f"{number}", "below"]
    assert names(target.parent) == ["out"]


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
@pytest.mark.parametrize("existing", [False, True])
def test_a_failure_leaves_what_was_there(
    tmp_path: Path, failure: BaseException, existing: bool
) -> None:
    target = tmp_path / "out"
    if existing:
        target.mkdir()
        (target / "old").write_text("old")

    def write_half() -> None:
        with output_folder(target) as folder:
            (folder / "new").write_text("new")
            raise failure

    with pytest.raises(type(failure)):
        write_half()
    assert names(tmp_path) == (["out"] if existing else [])
    if existing:
        assert names(target) == ["old"]


def test_a_disk_that_fills_at_the_last_moment_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="full"), output_folder(tmp_path / "out") as folder:
        (folder / "new").write_text("new")
    assert names(tmp_path) == []


def test_what_a_killed_run_left_is_not_part_of_the_next(tmp_path: Path) -> None:
    with pytest.raises(Killed), output_folder(tmp_path / "out") as folder:
        raise Killed
    folder.mkdir()
    (folder / "half").write_text("ha")  # as `kill -9` leaves it
    with output_folder(tmp_path / "out") as folder:
        (folder / "whole").write_text("whole")
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["whole"]


def test_every_file_of_a_folder_is_on_disk_before_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []

    def record(path: Path) -> None:
        synced.append(path)
        assert (tmp_path / "out").exists() == (path == tmp_path)

    monkeypatch.setattr(files, "_fsync", record)
    with output_folder(tmp_path / "out") as folder:
        (folder / "below").mkdir()
        for name in ("a", "below/b"):
            (folder / name).write_text(name)
    assert {path.name for path in synced} == {"a", "b", tmp_path.name}


def test_text_is_utf8_with_unix_line_ends_and_its_folder_is_made(tmp_path: Path) -> None:
    path = tmp_path / "x/y/text"
    write_text(path, "naïve\n🙂\n")
    assert path.read_bytes() == "naïve\n🙂\n".encode()
    write_text(path, "shorter")
    assert path.read_bytes() == b"shorter"
    assert names(path.parent) == ["text"]


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
@pytest.mark.parametrize("existing", [False, True])
def test_text_is_replaced_in_one_step_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException, existing: bool
) -> None:
    def fail(descriptor: int) -> None:
        raise failure

    path = tmp_path / "text"
    if existing:
        path.write_text("old")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(type(failure)):
        write_text(path, "new")
    assert names(tmp_path) == (["text"] if existing else [])
    if existing:
        assert path.read_text() == "old"


def test_text_is_complete_on_disk_before_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def record_fsync(descriptor: int) -> None:
        fsync(descriptor)
        events.append("fsync")

    def record_replace(self: Path, target: Path) -> Path:
        events.append(f"rename {self.read_text()}")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(Path, "replace", record_replace)
    write_text(tmp_path / "text", "all of it")
    assert events == ["fsync", "rename all of it"]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_json_refuses_what_is_not_json_and_keeps_the_old(tmp_path: Path, value: float) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"loss": 1.5, "text": "naïve"})
    before = path.read_bytes()
    assert json.loads(before) == {"loss": 1.5, "text": "naïve"}
    assert before.endswith(b"}\n")
    assert "naïve".encode() in before
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"loss": value})
    assert path.read_bytes() == before


@pytest.mark.parametrize("size", [0, 1, files.CHUNK, files.CHUNK + 1])
def test_sha256_is_that_of_all_bytes(tmp_path: Path, size: int) -> None:
    content = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    (tmp_path / "file").write_bytes(content)
    assert sha256_file(tmp_path / "file") == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(
    ("value", "digits", "expected"),
    [
        (1234567.0, 5, 1234600.0),
        (0.000123456789, 5, 0.00012346),
        (-9.99999, 5, -10.0),
        (1.5, 5, 1.5),
        (123456, 3, 123000),
        (0.0, 5, 0.0),
    ],
)
def test_rounded_keeps_significant_digits(value: float, digits: int, expected: float) -> None:
    assert rounded(value, digits) == expected


@given(st.floats(min_value=1e-300, max_value=1e300), st.sampled_from([-1, 1]))
def test_rounded_is_near_idempotent_and_short(value: float, sign: int) -> None:
    result = rounded(sign * value)
    assert abs(result - sign * value) <= 0.5001 * 10 ** (math.floor(math.log10(value)) - 4)
    assert rounded(result) == result
    assert float(f"{result:.4e}") == result


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_rounded_passes_on_what_is_not_finite(value: float) -> None:
    assert str(rounded(value)) == str(value)
