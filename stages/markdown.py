"""Text of the users' data on a page of Markdown: seen as it was typed, and never at work there."""

import re

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_MARKS = re.compile(r"[\\`*_\[\]<>#|&~$]")
_BACKTICKS = re.compile("`+")


def named(text: str) -> str:
    """``text`` with control characters, which would steer a terminal and make a file binary for
    git, and those that turn the direction of writing named by their numbers."""
    return _CONTROL.sub(lambda found: f"[U+{ord(found[0]):04X}]", text)


def inline(text: str) -> str:
    """``text`` on one line, its special characters shown as they are."""
    return _MARKS.sub(lambda found: f"\\{found[0]}", named(" ".join(text.split())))


def code(text: str) -> str:
    """``text`` on one line as code, with more backticks around it than any that it holds."""
    text = named(" ".join(text.split()))
    fence = "`" * (1 + max(map(len, _BACKTICKS.findall(text)), default=0))
    space = " " if len(fence) > 1 else ""
    return f"{fence}{space}{text}{space}{fence}"
