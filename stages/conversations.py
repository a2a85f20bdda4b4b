"""The contract between download and the stages after it: the folder of conversations.

``train.jsonl`` and ``validation.jsonl`` hold one conversation a line,
``{"messages": [{"role": …, "content": …}, …]}``; ``manifest.json`` holds counts and sums.
Plain text is a single message of role ``text``.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, TypedDict, get_args

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


def read_split(split: Split, folder: Path = CONVERSATIONS) -> Iterator[list[Message]]:
    """The conversations of a split, one at a time. Raises DataError naming file and line."""
    path = folder / f"{split}.jsonl"
    try:
        with path.open(encoding="utf-8", newline="\n") as file:
            for number, line in enumerate(file, 1):
                try:
                    messages: list[Message] = json.loads(line)["messages"]
                    sound = bool(messages) and all(
                        message["role"] in ROLES and isinstance(message["content"], str)
                        for message in messages
                    )
                except (ValueError, KeyError, TypeError):
                    sound = False
                if not sound:
                    raise DataError(
                        f"{path}:{number} is not a conversation: run the download stage again"
                    ) from None
                yield messages
    except FileNotFoundError:
        raise DataError(f"{path} not found: run the download stage first") from None
