"""What the commands of this package have in common: a failure is one line and an exit code.

2 is for options and settings, 3 for a model folder, 74 for a disk that is full or failing, 128 +
signal for one that was interrupted.
"""

import argparse
import errno
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

DISK_EXIT_CODE = 74  # EX_IOERR of sysexits.h
DISK_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}


class Failure(Exception):
    """A failure that its message explains to the user."""

    def __init__(self, message: str, exit_code: int = 2) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def run(command: str, main: Callable[[], None]) -> NoReturn:
    """Runs ``main`` and exits: 0 when it returned, else the code of its failure."""
    try:
        main()
        sys.stdout.flush()
        code = 0
    except Failure as failure:
        code = failure.exit_code
        _say(command, str(failure), code)
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    except BrokenPipeError:
        # Whoever read the output has gone, as `head` does; nothing more can be said there.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 128 + signal.SIGPIPE
    except OSError as error:
        if error.errno not in DISK_ERRNOS:
            raise
        code = DISK_EXIT_CODE
        written = error.filename2 or error.filename or "writing output"
        _say(command, f"{error.strerror}: {written}", code)
    sys.exit(code)


def _say(command: str, message: str, code: int) -> None:
    line = " ".join(message.split())
    print(f"error: {command}: {line} (exit code {code})", file=sys.stderr, flush=True)


def unwritable(path: Path, error: OSError) -> Failure:
    """The failure to write ``path`` for another reason than the disk, which is raised again."""
    if error.errno in DISK_ERRNOS:
        raise error
    return Failure(f"'{path}' can't be written: {error.strerror or error}")


def cannot_open(folder: str | Path, error: Exception) -> Failure:
    """The failure of a model folder that could not be opened."""
    hint = "" if Path(folder).exists() else "; `dvc repro` trains models/chat"
    return Failure(f"{error}{hint}", 3)


def positive(text: str) -> int:
    """A whole number above 0, for argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is below 1")
    return number


def port(text: str) -> int:
    """A TCP port, for argparse."""
    number = int(text)
    if not 0 <= number < 1 << 16:
        raise argparse.ArgumentTypeError(f"{number} is not in 0 to 65535")
    return number
