"""The contract between download and the stages after it: the folder of conversations.

``train.jsonl`` and ``validation.jsonl`` hold one conversation a line,
``{"messages": [{"role": …, "content": …}, …]}``; ``manifest.json`` holds counts and sums.
Plain text is a single message of role ``text``.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Literal, TypedDict, get_args

import orjson

from stages.errors import DataError

CONVERSATIONS = Path("data/conversations")

Role = Literal["system", "user", "assistant", "text"]
Split = Literal["train", "validation"]
ROLES: tuple[Role, ...] = get_args(Role)
SPLITS: tuple[Split, ...] = get_args(Split)


class Message(TypedDict):
    role: Role
    content: str


def to_line(messages: list[Message]) -> bytes:
    """A conversation as its line of JSON, in UTF-8 and with the newline."""
    return orjson.dumps({"messages": messages}, option=orjson.OPT_APPEND_NEWLINE)


def read_split(
    split: Split,
    folder: Path = CONVERSATIONS,
    chosen: Callable[[bytes], bool] | None = None,
    start: int = 0,
    stop: int | None = None,
) -> Iterator[list[Message]]:
    """The conversations of a split, one at a time; those of ``chosen`` lines, if it is given.

    Of lines that begin at the bytes from ``start`` to ``stop`` of the file alone. Raises DataError
    naming file and line (from ``start`` on).
    """
    path = folder / f"{split}.jsonl"
    try:
        with path.open("rb") as file:
            for number, line in enumerate(_lines(file, start, stop), 1):
                if chosen is not None and not chosen(line):
                    continue
                try:
                    messages: list[Message] = orjson.loads(line)["messages"]
                    sound = bool(messages) and all(
                        message["role"] in ROLES and isinstance(message["content"], str)
                        for message in messages
                    )
                except (ValueError, KeyError, TypeError):
                    sound = False
                if not sound:
                    after = f" after byte {start}" if start else ""
                    raise DataError(
                        f"{path}:{number}{after} is not a conversation: run the download stage "
                        "again"
                    ) from None
                yield messages
    except FileNotFoundError:
        raise DataError(f"{path} not found: run the download stage first") from None


def _lines(file: BinaryIO, start: int, stop: int | None) -> Iterator[bytes]:
    if start:  # that line begins before which the end of another stands
        file.seek(start - 1)
        file.readline()
    if stop is None:
        yield from file
        return
    place = file.tell()
    while place < stop and (line := file.readline()):
        place += len(line)
        yield line
