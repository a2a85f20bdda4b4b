"""Progress on a terminal and off it: counts, rate and time left."""

import io
import itertools
import re
import sys

import pytest

from stages import progress
from stages.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that a second passes on each time it is read; a quiet line is due each time."""
    clock = itertools.count()
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.0)


@pytest.mark.usefixtures("seconds")
@pytest.mark.parametrize("start", [0, 1_000])
def test_quiet_lines_leave_what_was_done_before_out_of_the_rate(
    start: int, capsys: pytest.CaptureFixture[str]
) -> None:
    # The clock at the beginning 0; read thrice by an update and once by the last line.
    with Progress("train", "step", start + 100, scale=False, start=start) as bar:
        bar.update(30, "loss 3.0")
        bar.update(30)
    assert capsys.readouterr().err.splitlines() == [
        f"train: {start + 30:,}/{start + 100:,} steps, 10.0/s, 7 s left, loss 3.0",
        f"train: {start + 60:,}/{start + 100:,} steps, 10.0/s, 4 s left",
        f"train: {start + 60:,} steps, 8.6/s",
    ]


@pytest.mark.parametrize("start", [0, 7])
def test_nothing_done_is_no_line(start: int, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("train", "step", 7, start=start):
        pass
    assert capsys.readouterr().err == ""


def test_a_bar_leaves_what_was_done_before_out_of_the_rate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress("train", "step", 1_000_100, scale=False, start=1_000_000) as bar:
        bar._bar.start_t -= 10  # as if it had begun ten seconds ago
        bar._bar.last_print_t -= 10
        bar.update(50)
    shown = terminal.getvalue()
    assert "1000000/1000100 [00:00<?" in shown
    assert re.search(r" 1000050/1000100 \[00:1\d<00:\d\d, +[45]\.\d+ step/s\]", shown), shown
