"""What becomes of each row, before it is known which conversations there are besides."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from stages.conversations import to_line
from stages.download.formats import Malformed, Unusable
from stages.download.normalise import content_digest
from stages.download.rows import Rows
from stages.download.selection import Selection


class Kept(NamedTuple):
    """A conversation: its digest, its line, and what the reports say of it."""

    digest: bytes
    line: bytes
    messages: int
    characters: int
    bytes: int
    mended: Mapping[str, int]
    language: str | None


class Dropped(NamedTuple):
    """A row that a filter or a rule drops."""

    reason: str


class Bad(NamedTuple):
    """A malformed row, where it stands, and what more there is to say of it."""

    where: str
    reason: str
    detail: str = ""


Outcome = Kept | Dropped | Bad
Outcomes = Iterator[Outcome]


def outcomes(rows: Rows, selection: Selection) -> Outcomes:
    """What becomes of each of ``rows`` by itself."""
    for where, row in rows:
        try:
            chosen = selection.conversation(row)
        except Malformed as error:
            yield Bad(where, str(error), error.detail)
        except Unusable as error:
            yield Dropped(str(error))
        else:
            messages = chosen.messages
            yield Kept(
                content_digest(messages),
                to_line(messages),
                len(messages),
                chosen.characters,
                sum([_length(message["content"]) for message in messages]),
                chosen.mended,
                chosen.language,
            )


def _length(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())
