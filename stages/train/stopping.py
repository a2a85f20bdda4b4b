"""When to stop early: SIGTERM, SIGINT, or the death of the DVC (or launcher) above.

A signal only asks: the loop finishes its step, saves, and stops. A second one stops at once; of
several processes, which are told twice, it is their launcher that a second one stops.
"""

import os
import signal
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Self

from stages.place import launched, orphaned

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """Listens while it is entered; ``signum`` is what asked to stop, or None."""

    def __init__(self) -> None:
        self._asked: int | None = None
        self._before: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}
        # DVC that is killed leaves its stage running; the next `dvc repro` would start a second.
        # So does a launcher that is killed.
        self._watched = "DVC_STAGE" in os.environ or launched()

    @property
    def signum(self) -> int | None:
        """The signal that asked to stop; SIGTERM when the DVC above has died."""
        if self._asked is None and self._watched and orphaned():
            self._asked = signal.SIGTERM
        return self._asked

    def _ask(self, signum: int, frame: FrameType | None) -> None:
        self._asked = signum
        if not launched():
            self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def __enter__(self) -> Self:
        for number in SIGNALS:
            self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if launched() and self._asked is not None:
            # When the first of several ends, the launcher asks the others to; they are at it.
            for number in SIGNALS:
                signal.signal(number, signal.SIG_IGN)
        else:
            self._restore()
