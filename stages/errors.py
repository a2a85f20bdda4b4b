"""Failures that a user can mend: one line on stderr and a documented exit code, no traceback."""

import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

from model import cli
from stages.place import launched, speaks


class StageError(Exception):
    """A failure that its one-line message explains; subclasses give the exit code."""

    exit_code = 1


class SettingsError(StageError):
    """A key of params.yaml is unknown, mistyped or impossible for this data."""

    exit_code = 2


class DataError(StageError):
    """The data is malformed, empty, or not what a previous stage wrote."""

    exit_code = 3


class AccessError(StageError):
    """A source cannot be reached: gated, missing or offline."""

    exit_code = 4


class DivergedError(StageError):
    """Training produced a non-finite loss or gradient."""

    exit_code = 5


class BusyError(StageError):
    """Another live run holds what this one needs."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h


# The failures that a process can tell another by their exit codes.
EXIT_CODES: dict[int, type[StageError]] = {
    kind.exit_code: kind for kind in (SettingsError, DataError, AccessError, DivergedError)
}


class Stopped(StageError):
    """A signal ended the stage at a point from which the next run continues."""

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = 128 + signum


DISK_EXIT_CODE, DISK_ERRNOS = cli.DISK_EXIT_CODE, cli.DISK_ERRNOS
PEER_LOST_EXIT_CODE = 69  # EX_UNAVAILABLE: of a process whose peer ended first; that one says why

MEMORY_HINTS = {
    "train": "lower train.micro_batch_size (python -m stages.train.fit finds the largest that "
    "fits), set train.activation_checkpointing to full, or make the model smaller"
}


# Stages of dvc.yaml: what they do is in params.yaml alone.
PIPELINE = ("check", "download", "tokenizer", "shards", "preflight", "train", "evaluate", "report")

OUT_OF_MEMORY = "out of memory"
# What torch and its libraries say besides, in errors that are plain RuntimeErrors.
REFUSALS = (OUT_OF_MEMORY, "allocate memory", "could not create a memory", "alloc_failed")
# How a process ends that the system, or a library that was refused memory, ends.
REFUSED_SIGNALS = (signal.SIGKILL, signal.SIGABRT, signal.SIGSEGV)


def _out_of_memory(error: Exception) -> bool:
    """Whether Python or torch, on any device, could not have the memory that it asked for."""
    name, text = type(error).__name__, str(error).lower()
    told = any(words in text for words in REFUSALS)
    return isinstance(error, MemoryError) or "OutOfMemory" in name or told


def was_out_of_memory(stage: str, code: int, stderr: str) -> bool:
    """Whether a process that ``run`` had as ``stage`` ended for want of memory.

    ``code`` is its exit code as ``subprocess`` has it, negative for a signal.
    """
    said = f"error: {stage}: {OUT_OF_MEMORY}:"
    return -code in REFUSED_SIGNALS or (
        code == 2 and any(line.startswith(said) for line in stderr.splitlines())
    )


def last_line(code: int, stderr: str) -> str:
    """The line that tells why a process failed: its last, or its exit code if it said nothing."""
    return (stderr.strip().splitlines() or [f"exit code {code}"])[-1]


class _Terminated(BaseException):
    """SIGTERM, raised in the main thread so that ``finally`` blocks clean up."""


# What torch says when another process of the training is gone.
PEER_LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "NCCL")


def peer_lost(error: BaseException) -> bool:
    """Whether ``error`` says no more than that another process of this training is gone."""
    return launched() and any(sign in str(error) for sign in PEER_LOST)


def _said_by_first(failure: BaseException) -> bool:
    """Whether the first process of several tells of this failure, so that this one need not."""
    alike = (Stopped, DivergedError, SettingsError, KeyboardInterrupt, _Terminated)
    return not speaks() and (isinstance(failure, alike) or getattr(failure, "told", False))


def _raise_terminated(signum: int, frame: FrameType | None) -> NoReturn:
    raise _Terminated


def end_with_reader() -> None:
    """For commands that only print: `| head` ends them, and is no failure."""
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)


def run(stage: str, main: Callable[[], None]) -> NoReturn:
    """Run a stage's ``main`` and exit: 0 only when it returned, else the code of its failure.

    Of the processes of one training that stop or diverge together the first alone says so.
    """
    signal.signal(signal.SIGTERM, _raise_terminated)
    failure: BaseException | None = None
    message: str | None = None
    try:
        if stage in PIPELINE and sys.argv[1:]:
            raise SettingsError(
                f"{' '.join(sys.argv[1:])}: a stage takes no options; it does what params.yaml "
                "says, and `dvc repro` runs it"
            )
        main()
        code = 0
    except StageError as error:
        code, message, failure = error.exit_code, str(error), error
    except KeyboardInterrupt as error:
        code, message, failure = 128 + signal.SIGINT, "interrupted", error
    except _Terminated as error:
        code, message, failure = 128 + signal.SIGTERM, "terminated", error
    except OSError as error:
        if error.errno not in DISK_ERRNOS:
            raise
        code, failure = DISK_EXIT_CODE, error
        message = f"{error.strerror}: {error.filename or 'writing output'}"
    except (MemoryError, RuntimeError) as error:
        if peer_lost(error):
            code = PEER_LOST_EXIT_CODE
        elif _out_of_memory(error):
            code, message = 2, f"{OUT_OF_MEMORY}: {MEMORY_HINTS.get(stage, error)}"
        else:
            raise
    if launched():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the launcher's, when another has ended
    if message is not None and not (failure is not None and _said_by_first(failure)):
        one_line = " ".join(message.split())
        print(f"error: {stage}: {one_line} (exit code {code})", file=sys.stderr, flush=True)
    if launched():
        # Taking torch's process groups apart can hang (stages/train/processes.py).
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
