"""What makes two tokenizer files one tokenizer, whoever wrote them, or one grown from another."""

import hashlib
import json
from pathlib import Path
from typing import Any


def vocabulary_sha256(tokenizer_file: Path) -> str:
    """Hex digest of all in a ``tokenizer.json`` that decides ids and text.

    transformers writes the file anew when it saves a model, with the same content in other bytes.
    Raises ValueError when the file has no such content.
    """
    content = _read(tokenizer_file)
    added = sorted((token["id"], token["content"]) for token in content["added_tokens"])
    steps = [content[name] for name in ("normalizer", "pre_tokenizer", "decoder")]
    decides = [sorted(content["model"]["vocab"].items()), _merges(content), added, steps]
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


def number_of_ids(tokenizer_file: Path) -> int:
    """How many ids a ``tokenizer.json`` has; a model may have more rows. Raises ValueError."""
    return max(_words(_read(tokenizer_file)), default=-1) + 1


def check_grown(tokenizer_file: Path, grown_file: Path) -> None:
    """Raises ValueError unless every id of ``tokenizer_file`` means the same in ``grown_file``.

    The grown one may have more ids after those, and leave out what changes a text before it is cut
    into words: a normaliser, a space put before it, text that is read as a special token.
    """
    content, grown = _read(tokenizer_file), _read(grown_file)
    theirs, ours = _words(content), _words(grown)
    for number, word in sorted(theirs.items()):
        # A special token may stand there with a space, so that no text is encoded as it.
        if ours.get(number) not in (word, f" {word}"):
            raise ValueError(f"id {number} is {word!r} there, {ours.get(number)!r} here")
    if _merges(content) != _merges(grown):
        raise ValueError("its merges are others")
    if _cut(content) != _cut(grown):
        raise ValueError("it cuts text into other words")


def _read(file: Path) -> dict[str, Any]:
    """A ``tokenizer.json`` of the kind that is known here. Raises ValueError."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        _merges(content), _words(content)
        for name in ("normalizer", "pre_tokenizer", "decoder"):
            content[name]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{file} is not a byte-level BPE tokenizer: {error}") from None
    return dict(content)


def _merges(content: dict[str, Any]) -> list[list[str]]:
    # Newer files have pairs, older ones text with a space between.
    return [m.split(" ") if isinstance(m, str) else m for m in content["model"]["merges"]]


def _words(content: dict[str, Any]) -> dict[int, str]:
    """Id -> token."""
    words = {number: word for word, number in content["model"]["vocab"].items()}
    for token in content["added_tokens"]:
        words.setdefault(token["id"], token["content"])
    return words


def _cut(content: dict[str, Any]) -> list[Any]:
    """What decides how text is cut into words, and those into tokens."""
    steps = content["pre_tokenizer"] or {}
    parts = steps.get("pretokenizers", [steps])
    # trim_offsets changes no id; a space before the text is a change of the text. Files of before
    # use_regex mean true.
    without = ("add_prefix_space", "trim_offsets")
    old = {"use_regex": True}
    parts = [{**(old if part.get("type") == "ByteLevel" else {}), **part} for part in parts]
    parts = [{k: v for k, v in part.items() if k not in without} for part in parts]
    return [parts, bool(content["model"].get("ignore_merges"))]
