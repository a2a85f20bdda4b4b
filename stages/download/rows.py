"""What a source yields: ``(where, row)``, where naming file and line for messages to the user."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class BadRow:
    """A row that could not be read, with the reason; it costs that row alone.

    ``detail`` says more of it where it is told.
    """

    reason: str
    detail: str = field(default="", compare=False)


Row = Mapping[str, Any] | BadRow
Rows = Iterator[tuple[str, Row]]
# Rows of a part of a source, read when it is called; parts can be read apart from one another.
Part = Callable[[], Rows]
