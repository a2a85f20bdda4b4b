"""From a row's turns to a conversation: the house's rules, each counted in the data report.

* surrounding white space of a chat message is removed; plain text keeps its own;
* an empty message is removed;
* messages of the assistant before the user's first are removed;
* neighbouring messages of one role are joined with a newline;
* text that is not Unicode (lone surrogates) makes the row malformed.
"""

import hashlib
from collections import Counter

from stages.conversations import Message
from stages.download.formats import Malformed, Turn, Unusable


def normalise(turns: list[Turn]) -> tuple[list[Message], Counter[str]]:
    """The conversation that ``turns`` make, and how many messages each rule changed.

    Raises Malformed, Unusable.
    """
    result: list[Message] = []
    mended: Counter[str] = Counter()
    spoken = False
    for role, content in turns:
        try:
            content.encode("utf-8")
        except UnicodeEncodeError:
            raise Malformed("not_unicode") from None
        if not content.strip():
            mended["empty"] += 1
            continue
        if role != "text":
            content = content.strip()
        spoken = spoken or role in ("user", "text")
        if role == "assistant" and not spoken:
            mended["leading_assistant"] += 1
        elif result and result[-1]["role"] == role:
            mended["joined"] += 1
            result[-1]["content"] += "\n" + content
        else:
            result.append({"role": role, "content": content})
    if not spoken:
        raise Unusable("empty")
    return result, mended


def content_digest(messages: list[Message]) -> bytes:
    """SHA-256 of roles and contents with white space folded: equal for exact duplicates."""
    digest = hashlib.sha256()
    for message in messages:
        # \x1e and \x1f are white space to str.split, so no content can hold them after folding.
        folded = " ".join(message["content"].split())
        digest.update(f"{message['role']}\x1f{folded}\x1e".encode())
    return digest.digest()


def held_out(digest: bytes, fraction: float) -> bool:
    """Whether a conversation is for validation: its digest alone decides."""
    return int.from_bytes(digest[:8], "big") < fraction * 2**64
