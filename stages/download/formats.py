"""Record formats: one small adapter each turns a row into turns of (role, content).

To add a format, write its adapter and enter it in ``FORMATS`` with the columns that tell it and
those that it reads besides: of a table no other column is read.
An adapter raises ``Malformed`` for a row that does not have the shape its format promises, and
``Unusable`` for a sound row that a documented rule drops.
"""

import functools
import itertools
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from stages.conversations import Role

Turn = tuple[Role, str]


class Malformed(ValueError):
    """The row breaks its format; the message is the reason that the report counts.

    ``detail`` says more of this row.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.detail = detail


class Unusable(ValueError):
    """The row is sound but a rule drops it; the message is the reason that the report counts."""


_ROLES: dict[str, Role] = {
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "system": "system",
    "developer": "system",
}
# Types of the parts of a message that are text; images, sounds, files and others are not.
_TEXT_PARTS = {"text", "input_text", "output_text"}
_CALLS = ("tool_calls", "function_call")


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise Malformed("wrong_type", f"{type(value).__name__} where text is wanted")
    return value


def _items(value: object) -> Iterable[Any]:
    if isinstance(value, list):
        return value
    if isinstance(value, str):  # a csv cell holds the list as JSON
        value = from_json(value)
    if not isinstance(value, Iterable) or isinstance(value, str | Mapping):
        raise Malformed("no_messages")
    return value


def from_json(cell: str) -> object:
    """What the text of a cell means. Raises Malformed."""
    try:
        return json.loads(cell)
    except (ValueError, RecursionError):
        raise Malformed("not_json") from None


def _fields(message: object, first: str, second: str) -> tuple[Any, Any]:
    if not isinstance(message, dict):
        raise Malformed("wrong_type")
    if first not in message or second not in message:
        names = _shown(message)
        raise Malformed("message_without_role_or_content", f"it has {names or 'nothing'}")
    return message[first], message[second]


def _content(value: object) -> str:
    """The text of a message: a string, or a list of parts. Raises Unusable for one of no text."""
    if not isinstance(value, Iterable) or isinstance(value, str | Mapping):
        return _text(value)
    texts: list[str] = []
    for part in value:
        if not isinstance(part, dict):
            raise Malformed("wrong_type")
        if _text(part.get("type")) not in _TEXT_PARTS:
            raise Unusable("not_text")
        texts.append(_text(part.get("text")))
    return "\n".join(texts)


def _messages(value: object) -> list[Turn]:
    """Of messages of {role, content} or of {from, value}: many name the column as the others do."""
    turns: list[Turn] = []
    for message in _items(value):
        if isinstance(message, dict) and "from" in message and "role" not in message:
            name, content = _fields(message, "from", "value")
        else:
            name, content = _fields(message, "role", "content")
        role = _ROLES.get(_text(name)) or _ROLES.get(name.strip().lower())
        if role is None:
            raise Unusable("unknown_role")
        if len(message) > 2 and any(message.get(call) for call in _CALLS):
            raise Unusable("not_text")
        turns.append((role, content if isinstance(content, str) else _content(content)))
    if not turns:
        raise Malformed("no_messages")
    return turns


def conversation(row: Mapping[str, Any]) -> list[Turn]:
    """LMSYS: ``conversation`` is a list of {role, content}."""
    return _messages(row["conversation"])


def messages(row: Mapping[str, Any]) -> list[Turn]:
    """OpenAI: ``messages`` is a list of {role, content}, whose content may be a list of parts."""
    return _messages(row["messages"])


def sharegpt(row: Mapping[str, Any]) -> list[Turn]:
    """ShareGPT: ``conversations`` is a list of {from, value}."""
    return _messages(row["conversations"])


def alpaca(row: Mapping[str, Any]) -> list[Turn]:
    """Alpaca: ``instruction`` and an optional ``input`` ask, ``output`` answers."""
    question = _text(row["instruction"])
    extra = row.get("input")
    if extra is not None and _text(extra).strip():
        question = f"{question}\n\n{extra}"
    return [("user", question), ("assistant", _text(row["output"]))]


_PAIRS = (("prompt", "response"), ("prompt", "completion"), ("question", "answer"))


def pairs(row: Mapping[str, Any]) -> list[Turn]:
    """``prompt`` and ``response`` (or ``completion``), or ``question`` and ``answer``."""
    for ask, answer in _PAIRS:
        if ask in row and answer in row:
            return [("user", _text(row[ask])), ("assistant", _text(row[answer]))]
    raise Malformed("missing_column", _columns_told(row))


def turns(row: Mapping[str, Any]) -> list[Turn]:
    """``turns`` is a list of what the user and the assistant say in turn."""
    roles: tuple[Role, Role] = ("user", "assistant")
    said = [_text(content) for content in _items(row["turns"])]
    if not said:
        raise Malformed("no_messages")
    return [(roles[number % 2], content) for number, content in enumerate(said)]


def text(row: Mapping[str, Any]) -> list[Turn]:
    """Plain text: ``text`` is a document."""
    return [("text", _text(row["text"]))]


def chitchat(row: Mapping[str, Any]) -> list[Turn]:
    """Embedded chats: turns are lists of {sender, text}; who speaks first is the user."""
    turns = [
        [tuple(map(_text, _fields(message, "sender", "text"))) for message in _items(turn)]
        for turn in _items(row["chitchat"])
    ]
    senders = list(dict.fromkeys(sender for turn in turns for sender, _ in turn))
    if len(senders) < 2:
        raise Unusable("single_sender")
    if len(senders) > 2:
        raise Unusable("more_than_two_senders")
    role: dict[str, Role] = {senders[0]: "user", senders[1]: "assistant"}
    return [
        (role[turn[0][0]], "\n".join(text for _, text in turn if text.strip()))
        for turn in turns
        if turn
    ]


class Format(NamedTuple):
    """An adapter, alternatives of columns that tell the format, and what else the adapter reads."""

    adapter: Callable[[Mapping[str, Any]], list[Turn]]
    columns: tuple[frozenset[str], ...]
    optional: frozenset[str] = frozenset()

    @property
    def reads(self) -> frozenset[str]:
        """Every column that the adapter may read."""
        return self.optional.union(*self.columns)


# In order of recognition: the most specific columns first.
FORMATS: dict[str, Format] = {
    "conversation": Format(conversation, (frozenset({"conversation"}),)),
    "messages": Format(messages, (frozenset({"messages"}),)),
    "sharegpt": Format(sharegpt, (frozenset({"conversations"}),)),
    "alpaca": Format(alpaca, (frozenset({"instruction", "output"}),), frozenset({"input"})),
    "pairs": Format(pairs, tuple(frozenset(pair) for pair in _PAIRS)),
    "text": Format(text, (frozenset({"text"}),)),
    "turns": Format(turns, (frozenset({"turns"}),)),
    "chitchat": Format(chitchat, (frozenset({"chitchat"}),)),
}
AUTO = "auto"

# Every column that an adapter reads.
COLUMNS = frozenset[str]().union(*(form.reads for form in FORMATS.values()))


def recognise(row: Mapping[str, Any]) -> str | None:
    """The name of the format that the row's columns tell, or None."""
    return _recognised(tuple(row))


@functools.lru_cache(maxsize=64)
def _recognised(columns: tuple[str, ...]) -> str | None:
    for name, form in FORMATS.items():
        if any(told <= set(columns) for told in form.columns):
            return name
    return None


def renamed(row: Mapping[str, Any], columns: Mapping[str, str]) -> Mapping[str, Any]:
    """The row with its column ``theirs`` under the name ``own``, for ``columns`` {own: theirs}."""
    taken = {*columns, *columns.values()}
    result = {name: value for name, value in row.items() if name not in taken}
    result.update((own, row[theirs]) for own, theirs in columns.items() if theirs in row)
    return result


def adapt(row: Mapping[str, Any], name: str) -> list[Turn]:
    """The row's turns in format ``name`` (``auto`` goes by columns).

    Raises Malformed, Unusable.
    """
    found = recognise(row) if name == AUTO else name
    if found is None:
        raise Malformed("unknown_columns", _columns_told(row))
    try:
        return FORMATS[found].adapter(row)
    except KeyError:
        raise Malformed("missing_column", _columns_told(row)) from None


def _columns_told(row: Mapping[str, Any]) -> str:
    return f"of {_shown(row) or 'no column'}: name the columns with data.columns"


def _shown(names: Iterable[object]) -> str:
    """The first few names, each cut short."""
    listed = [f"'{str(name)[:40]}'" for name in itertools.islice(names, 9)]
    return ", ".join([*listed[:8], *(["…"] if len(listed) > 8 else [])])
