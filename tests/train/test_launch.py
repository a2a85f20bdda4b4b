"""Of processes that end together, the one that took the others with it is named."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from stages.errors import PEER_LOST_EXIT_CODE
from stages.place import LAUNCHER
from stages.train.launch import first_to_end, launch
from tests.builders import run_stage
from tests.train.worlds import prepare


def failures(*codes: int) -> list[ProcessFailure]:
    made = [ProcessFailure(rank, 1000 + rank, code, "") for rank, code in enumerate(codes)]
    for failure in made:
        failure.timestamp = 0
    return made


@pytest.mark.parametrize(
    ("codes", "rank"),
    [
        ((69, -9), 1),  # the first lost its peer, which was killed
        ((1, -9), 1),
        ((-15, 1), 1),  # the agent ended the first, after the second had failed
        ((143, 1), 1),
        ((69, 69, 2), 2),  # a code of the stage's own
        ((-9, 5), 1),
        ((69, 143), 0),
    ],
)
def test_the_end_that_explains_most_comes_first(codes: tuple[int, ...], rank: int) -> None:
    assert first_to_end(failures(*codes)).local_rank == rank


def test_of_ends_that_explain_as_much_the_earlier_comes_first() -> None:
    late, early = failures(-9, -9)
    late.timestamp = 1
    assert first_to_end([late, early]) is early


@pytest.fixture
def _handlers() -> Any:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    assert before == {number: signal.getsignal(number) for number in before}


def agent(monkeypatch: pytest.MonkeyPatch, work: Callable[[], None], started: list[Any]) -> None:
    """Stands for torchrun's agent, which has ``started`` processes and does ``work``."""
    place = "torch.distributed.launcher.api.elastic_launch"
    monkeypatch.setattr(place, lambda config, entry: lambda *arguments: work())
    monkeypatch.setattr(psutil.Process, "children", lambda self: started)


@pytest.mark.usefixtures("_handlers")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_before_any_process_is_there_ends_the_launch(
    monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    agent(monkeypatch, lambda: os.kill(os.getpid(), number), [])
    with pytest.raises(SystemExit) as ended:
        launch(2)
    assert ended.value.code == 128 + number


@pytest.mark.usefixtures("_handlers")
def test_a_second_signal_during_the_launch_kills(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []

    class Started:
        is_running = staticmethod(lambda: True)
        send_signal = staticmethod(told.append)

    def work() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)

    agent(monkeypatch, work, [Started, Started])
    launch(2)
    assert told == [signal.SIGTERM] * 2 + [signal.SIGKILL] * 2


def test_a_process_whose_launcher_is_killed_before_all_have_met_ends(
    data: Path, tmp_path: Path
) -> None:
    """It waited for half an hour for one who knows where the others are."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    place = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", LAUNCHER: str(gone.pid)}
    nobody = {"MASTER_ADDR": "localhost", "MASTER_PORT": "9"}
    root = prepare(data, tmp_path / "root", {"runtime.processes": 2})
    code, stderr = run_stage("train", root, environment={**place, **nobody}, seconds=120)
    assert code == PEER_LOST_EXIT_CODE, stderr
    assert "Traceback" not in stderr
