"""From a row's turns to a conversation: the house's rules, each counted in the data report.

* surrounding white space of a chat message is removed; plain text keeps its own;
* an empty message is removed;
* messages of the assistant before the user's first are removed;
* neighbouring messages of one role are joined with a newline;
* text that is not Unicode (lone surrogates) makes the row malformed.
"""

import hashlib

from stages.conversations import Message, Role
from stages.download.formats import Malformed, Turn, Unusable


def normalise(turns: list[Turn]) -> tuple[list[Message], dict[str, int]]:
    """The conversation that ``turns`` make, and how many messages each rule changed.

    Raises Malformed, Unusable.
    """
    result: list[Message] = []
    mended: dict[str, int] = {}
    spoken = False
    last: Role | None = None
    for role, content in turns:
        if not content.isascii():
            try:
                content.encode("utf-8")
            except UnicodeEncodeError:
                raise Malformed("not_unicode") from None
        stripped = content.strip()
        if not stripped:
            rule = "empty"
        else:
            if role != "text":
                content = stripped
            spoken = spoken or role in ("user", "text")
            if role == "assistant" and not spoken:
                rule = "leading_assistant"
            elif role == last:
                rule = "joined"
                result[-1]["content"] += "\n" + content
            else:
                result.append({"role": role, "content": content})
                last = role
                continue
        mended[rule] = mended.get(rule, 0) + 1
    if not spoken:
        raise Unusable("empty")
    return result, mended


def content_digest(messages: list[Message]) -> bytes:
    """SHA-256 of roles and contents with white space folded: equal for exact duplicates."""
    # \x1e and \x1f are white space to str.split, so no content can hold them after folding.
    folded = "".join(
        [f"{message['role']}\x1f{_folded(message['content'])}\x1e" for message in messages]
    )
    return hashlib.sha256(folded.encode()).digest()


def _folded(content: str) -> str:
    return " ".join(content.split())


def held_out(digest: bytes, fraction: float) -> bool:
    """Whether a conversation is for validation: its digest alone decides."""
    return int.from_bytes(digest[:8], "big") < fraction * 2**64
