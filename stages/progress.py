"""Progress of long work: a bar on a terminal, a line now and then elsewhere.

Of several processes of one training the first alone speaks.
"""

import sys
import time
from types import TracebackType
from typing import Self

from tqdm import tqdm

from stages.place import speaks

QUIET_SECONDS = 30.0


class Progress:
    """Counts ``unit``s up to ``total`` (None if unknown) on stderr, with rate and time left.

    ``start`` of them are already done: rate and time left go by those that this run adds.
    """

    def __init__(
        self,
        name: str,
        unit: str,
        total: int | None = None,
        scale: bool = True,
        start: int = 0,
    ) -> None:
        self.name, self.unit, self.total = name, unit, total
        self.start = self.count = start
        self._quiet = not sys.stderr.isatty() or not speaks()
        self._bar = tqdm(
            total=total,
            initial=start,
            desc=name,
            unit=f" {unit}",
            unit_scale=scale,
            disable=self._quiet,
            dynamic_ncols=True,
            leave=True,
        )
        self._began = self._last = time.monotonic()
        self._note = ""

    def update(self, count: int = 1, note: str = "") -> None:
        """Adds ``count``; ``note`` is shown beside the bar."""
        self.count += count
        self._note = note
        if not self._quiet:
            if note:
                self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(count)
        elif time.monotonic() - self._last >= QUIET_SECONDS:
            self._last = time.monotonic()
            self._line()

    def _line(self) -> None:
        seconds = max(time.monotonic() - self._began, 1e-9)
        rate = (self.count - self.start) / seconds
        total = f"/{self.total:,}" if self.total else ""
        left = f", {(self.total - self.count) / rate:,.0f} s left" if self.total and rate else ""
        note = f", {self._note}" if self._note else ""
        say(f"{self.name}: {self.count:,}{total} {self.unit}s, {rate:,.1f}/s{left}{note}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.close()
        if self._quiet and kind is None and self.count > self.start:
            self.total = None
            self._line()


def say(line: str) -> None:
    """One line for the user on stderr, kept clear of a bar."""
    if not speaks():
        return
    tqdm.write(line, file=sys.stderr)
    sys.stderr.flush()
