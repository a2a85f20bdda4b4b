"""A failure that a user can mend is one line on stderr and its documented exit code."""

import errno
import os
import signal
from collections.abc import Callable, Iterator

import pytest
import torch

from stages.errors import (
    AccessError,
    DataError,
    DivergedError,
    SettingsError,
    StageError,
    run,
    was_out_of_memory,
)


@pytest.fixture(autouse=True)
def _signals_kept() -> Iterator[None]:
    """``run`` takes over SIGTERM."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def raising(error: BaseException) -> Callable[[], None]:
    def main() -> None:
        raise error

    return main


def outcome(main: Callable[[], None], capsys: pytest.CaptureFixture[str]) -> tuple[object, str]:
    """The exit code of ``run`` and what it wrote to stderr."""
    with pytest.raises(SystemExit) as exit_:
        run("stage", main)
    out, err = capsys.readouterr()
    assert out == ""
    return exit_.value.code, err


def test_success_is_0_and_silent(capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome(lambda: None, capsys) == (0, "")


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (StageError, 1),
        (SettingsError, 2),
        (DataError, 3),
        (AccessError, 4),
        (DivergedError, 5),
    ],
)
def test_each_kind_of_failure_has_its_code(
    capsys: pytest.CaptureFixture[str], kind: type[StageError], code: int
) -> None:
    expected = f"error: stage: what to do (exit code {code})\n"
    assert outcome(raising(kind("what to do")), capsys) == (code, expected)


def test_a_stage_takes_no_options(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would run, where `--help` was asked for."""
    monkeypatch.setattr("sys.argv", ["stage", "--help"])
    with pytest.raises(SystemExit) as end:
        run("download", raising(AssertionError("it ran")))
    assert end.value.code == 2
    assert "--help: a stage takes no options" in capsys.readouterr().err
    with pytest.raises(SystemExit) as end:
        run("plan", lambda: None)
    assert end.value.code == 0


def test_a_message_of_several_lines_becomes_one(capsys: pytest.CaptureFixture[str]) -> None:
    code, err = outcome(raising(DataError("first\n  second\r\nthird\n")), capsys)
    assert (code, err) == (3, "error: stage: first second third (exit code 3)\n")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
@pytest.mark.parametrize("name", [None, "data/shards/train-00000.bin"])
def test_a_disk_that_fails_is_74(
    capsys: pytest.CaptureFixture[str], number: int, name: str | None
) -> None:
    error = OSError(number, os.strerror(number), name)
    code, err = outcome(raising(error), capsys)
    assert code == 74
    assert err.count("\n") == 1
    assert os.strerror(number) in err
    assert (name or "writing output") in err


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried …"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("MPS backend out of memory (MPS allocated: 1.00 GB, max allowed: 1.10 GB)."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_too_little_memory_is_a_matter_of_settings(
    capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    code, err = outcome(raising(error), capsys)
    assert code == 2
    assert err.startswith("error: stage: out of memory")
    assert err.count("\n") == 1
    assert was_out_of_memory("stage", 2, "a warning\n" + err)
    assert not was_out_of_memory("stage", 1, err)
    assert not was_out_of_memory("other", 2, err)


LOST = "[pair.cc:553] Connection closed by peer [127.0.0.1]:59520"


def test_a_lost_peer_is_an_end_without_a_word_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    ends: list[int] = []
    monkeypatch.setattr(os, "_exit", ends.append)
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(SystemExit):
        run("stage", raising(RuntimeError(LOST)))
    assert ends == [69]


def test_words_of_a_lost_peer_mean_nothing_to_a_process_alone() -> None:
    with pytest.raises(RuntimeError, match="closed by peer"):
        run("stage", raising(RuntimeError(LOST)))


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOENT, "missing", "x"), KeyError("x"), ZeroDivisionError()]
)
def test_a_bug_keeps_its_traceback(error: Exception) -> None:
    with pytest.raises(type(error)):
        run("stage", raising(error))


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")],
)
def test_a_signal_cleans_up_and_is_128_and_its_number(
    capsys: pytest.CaptureFixture[str], number: signal.Signals, code: int, word: str
) -> None:
    cleaned: list[str] = []

    def main() -> None:
        try:
            try:
                os.kill(os.getpid(), number)
                signal.pause()  # never reached after the handler has run
            except Exception:
                cleaned.append("swallowed")
        finally:
            cleaned.append("finally")

    expected = f"error: stage: {word} (exit code {code})\n"
    assert outcome(main, capsys) == (code, expected)
    assert cleaned == ["finally"]
