"""A command on a terminal of its own, as a person would use it."""

import fcntl
import os
import pty
import re
import select
import subprocess
import termios
import time
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType

from tests.model.tiny import ROOT

SOON = 60.0  # seconds after which a test gives up; nothing is judged by it
NUDGE = 1.0  # seconds without an answer after which a key is pressed


class PtySession:
    """Types into a command and reads what it shows."""

    def __init__(self, command: Sequence[str], **environment: str) -> None:
        self._master, terminal = pty.openpty()
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "TERM": "xterm", **environment},
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            start_new_session=True,
            # So that Ctrl-C becomes a signal.
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(terminal)
        self.shown = ""
        self._seen = 0

    def press(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def expect(self, pattern: str, nudge: str = "") -> re.Match[str]:
        """Waits for ``pattern`` in what was shown since the last match.

        ``nudge`` is pressed whenever nothing comes: a signal that reaches CPython just before it
        waits for a key is seen with the next one.
        """
        deadline = time.monotonic() + SOON
        while not (match := re.compile(pattern).search(self.shown, self._seen)):
            left = deadline - time.monotonic()
            assert left > 0, f"no {pattern!r} in {self.shown[self._seen :]!r}"
            if select.select([self._master], [], [], min(left, NUDGE) if nudge else left)[0]:
                self.shown += self._read()
            else:
                self.press(nudge)
        self._seen = match.end()
        return match

    def end(self, nudge: str = "") -> int:
        """Waits for the command's exit code; ``nudge`` as in ``expect``."""
        deadline = time.monotonic() + SOON
        while nudge and time.monotonic() < deadline:
            with suppress(subprocess.TimeoutExpired):
                return self.process.wait(NUDGE)
            self.press(nudge)
        return self.process.wait(SOON)

    def _read(self) -> str:
        try:
            return os.read(self._master, 65536).decode("utf-8", "replace")
        except OSError as error:  # Linux's way to say that the other side is closed
            raise AssertionError(f"ended: {self.shown!r}") from error

    def __enter__(self) -> "PtySession":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._master)
