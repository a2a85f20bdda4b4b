"""Starting the processes of one training under torchrun's elastic agent.

The stage that DVC started becomes the agent's home and starts ``runtime.processes`` copies of
itself, each told its place through the environment (as an outer torchrun would). It passes on
SIGTERM and SIGINT (a second one as SIGKILL), waits as long as the copies take to save, and ends
with the exit code of the first that failed. When one dies the agent ends the others. There are no
restarts: the next ``dvc repro`` resumes from the last save.
"""

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterable
from types import FrameType
from typing import TYPE_CHECKING

import psutil

from stages.errors import PEER_LOST_EXIT_CODE, StageError
from stages.place import LAUNCHER
from stages.train.stopping import SIGNALS, StopRequest

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

POLL_SECONDS = 0.5
UNEXPLAINED = 1  # an exit code that says no more than "a process ended"
# How a process ends that another has taken with it: the loss noticed, or the agent's own signal.
TAKEN = (PEER_LOST_EXIT_CODE, 128 + signal.SIGTERM)


def launch(count: int) -> None:
    """Runs ``python -m stages.train`` in ``count`` processes until all have ended.

    Exits with the code of the process that failed first, or 128 + a signal that was passed on;
    raises StageError with it where no process could say why.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        run_id=f"parley-{os.getpid()}",
        max_restarts=0,
        signals_to_handle="SIGHUP",  # the others are passed on below
    )
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    asked: list[int] = []

    def pass_on(signum: int, frame: FrameType | None = None) -> None:
        asked.append(signum)
        processes = psutil.Process().children()
        if not processes:  # none has been started yet
            sys.exit(128 + signum)
        for process in processes:
            if process.is_running():
                process.send_signal(signum if len(asked) == 1 else signal.SIGKILL)

    os.environ[LAUNCHER] = str(os.getpid())
    before = {number: signal.signal(number, pass_on) for number in SIGNALS}
    ended = threading.Event()
    watch = threading.Thread(target=_watch_parent, args=(ended,), daemon=True)
    watch.start()
    try:
        elastic_launch(config, sys.executable)("-m", "stages.train")
    except ChildFailedError as error:
        if asked:
            sys.exit(128 + asked[0])  # a process has said where it stopped
        first = first_to_end(error.failures.values())
        code = _exit_code(first.exitcode)
        if _blame(code) == 0:
            sys.exit(code)  # as above
        failed = StageError(
            f"process {first.local_rank} of {count} has ended with exit code {code}, "
            "and so have all: the next run resumes from the last save"
        )
        failed.exit_code = code
        raise failed from None
    finally:
        ended.set()
        os.environ.pop(LAUNCHER, None)
        for number, handler in before.items():
            signal.signal(number, handler)


def first_to_end(failures: "Iterable[ProcessFailure]") -> "ProcessFailure":
    """The one of the processes that took the others with it.

    Ends that the agent sees together, a tenth of a second apart, are told apart by their codes.
    """
    return min(failures, key=lambda one: (_blame(_exit_code(one.exitcode)), one.timestamp))


def _blame(code: int) -> int:
    """The lower, the likelier that the end of this process took the others with it."""
    if code in TAKEN:
        return 3
    if UNEXPLAINED < code < 128:
        return 0  # a code of the stage's own, and a line that says why
    return 2 if code == UNEXPLAINED else 1


def _exit_code(code: int) -> int:
    """As a shell reports it: 128 + signal for a process that a signal ended."""
    return 128 - code if code < 0 else code


def _watch_parent(ended: threading.Event) -> None:
    """Ends this process as a signal would, when the DVC that started it has died."""
    request = StopRequest()
    while not ended.wait(POLL_SECONDS):
        if request.signum is not None:
            os.kill(os.getpid(), request.signum)
            return
