"""From a row's turns to a conversation: the house's rules, each counted in the data report.

* surrounding white space of a chat message is removed; plain text keeps its own;
* an empty message is removed;
* messages of the assistant before the user's first are removed;
* neighbouring messages of one role are joined with a newline;
* what then has no message of the user's (nor plain text) is no conversation;
* text that is not Unicode (lone surrogates) makes the row malformed.
"""

import hashlib

from stages.conversations import Message, Role
from stages.download.formats import Malformed, Turn, Unusable

_SPACES = b"\t\n\x0b\x0c\r\x1c\x1d\x1e\x1f"  # of ASCII, those that str.split takes for such
_TO_SPACE = bytes.maketrans(_SPACES, b" " * len(_SPACES))


def normalise(turns: list[Turn]) -> tuple[list[Message], dict[str, int]]:
    """The conversation that ``turns`` make, and how many messages each rule changed.

    Raises Malformed, Unusable.
    """
    said: list[tuple[Role, list[str]]] = []
    mended: dict[str, int] = {}
    spoken = False
    for role, content in turns:
        if not content.isascii():
            try:
                content.encode("utf-8")
            except UnicodeEncodeError:
                raise Malformed("not_unicode") from None
        stripped = content.strip()
        if role != "text":
            content = stripped
        if not stripped:
            rule = "empty"
        elif role == "assistant" and not spoken:
            rule = "leading_assistant"
        elif said and said[-1][0] == role:
            rule = "joined"
            said[-1][1].append(content)
        else:
            spoken = spoken or role != "system"
            said.append((role, [content]))
            continue
        mended[rule] = mended.get(rule, 0) + 1
    if not spoken:
        raise Unusable("no_user" if any(content.strip() for _, content in turns) else "empty")
    return [{"role": role, "content": "\n".join(contents)} for role, contents in said], mended


def content_digest(messages: list[Message]) -> bytes:
    """SHA-256 of roles and contents with white space folded: equal for exact duplicates."""
    digest = hashlib.sha256()
    for message in messages:
        # \x1e and \x1f are white space to str.split, so no content can hold them after folding.
        folded = _folded(message["content"])
        digest.update(b"%b\x1f%b\x1e" % (message["role"].encode(), folded))
    return digest.digest()


def _folded(content: str) -> bytes:
    """``" ".join(content.split())`` in UTF-8; for ASCII several times as fast."""
    if not content.isascii():
        return " ".join(content.split()).encode()
    folded = content.encode().translate(_TO_SPACE)
    while b"  " in folded:
        folded = folded.replace(b"  ", b" ")
    return folded.strip(b" ")


def held_out(digest: bytes, fraction: float) -> bool:
    """Whether a conversation is for validation: its digest alone decides."""
    return int.from_bytes(digest[:8], "big") < fraction * 2**64
