"""What the terminal is shown, and what a person does there."""

import contextlib
import os
import re
import signal
import sys
from collections.abc import Iterator
from types import FrameType
from typing import TextIO

# C0 and C1 but for tab and newline, and delete: with them a text could move the cursor, set the
# window's title or type for the reader.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def clean(text: str) -> str:
    """``text`` without the characters that a terminal takes as commands."""
    return _CONTROLS.sub("", text)


def dim(text: str, stream: TextIO) -> str:
    """``text`` in a fainter colour, where the stream is a terminal with colours."""
    plain = "NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb" or not stream.isatty()
    return text if plain else f"\x1b[2m{text}\x1b[0m"


def show(text: str) -> None:
    """Writes a piece of a reply at once."""
    sys.stdout.write(clean(text))
    sys.stdout.flush()


def tell(text: str) -> None:
    """Writes a line about the chat itself."""
    print(dim(clean(text), sys.stdout), flush=True)


class Stop:
    """Whether a person has asked to stop."""

    asked = False


@contextlib.contextmanager
def interruptible() -> Iterator[Stop]:
    """Within, Ctrl-C asks to stop, and interrupts nothing: a token is made whole or not at all."""
    stop = Stop()

    def ask(signum: int, frame: FrameType | None) -> None:
        stop.asked = True

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


def ask_line(prompt: str) -> str | None:
    """A line that a person types; None at the end of input (Ctrl-D).

    Ctrl-C throws away what was typed; a second one at once is the end too.
    """
    interrupted = False
    while True:
        try:
            return input(prompt)
        except EOFError:
            print()
            return None
        except KeyboardInterrupt:
            print()
            if interrupted:
                return None
            interrupted = True
            tell("Ctrl-C again or Ctrl-D leaves")
