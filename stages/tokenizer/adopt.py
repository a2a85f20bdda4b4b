"""Taking over a byte-level BPE tokenizer that was learnt elsewhere, as that of GPT-2 or Llama 3.

Its tokens keep their ids, so a model that knows them goes on with them. What is changed is what
Parley promises of a tokenizer: every text comes back as it was, and only the chat template gives
control tokens.

* Control tokens, and bytes without a token, get the ids after its own.
* Its own special tokens (``<|endoftext|>``, …) keep their ids, but no text is encoded as one.
* Normalisation, a space put before the text, truncation and padding are left out.
"""

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers

from model.template import CONTROL_TOKENS
from model.tokenizer import TOKENIZER_FILE, ChatTokenizer, unescaping
from stages.errors import SettingsError
from stages.progress import say

# Comes back only from a tokenizer that keeps all of a text.
_PROBE = "".join(map(chr, range(1, 0x250))) + "  a\r\n\tnaïve e\u0301 ﬁ Å 東京 🙂\u200d \u3000\n\n "


def adopt(path: Path) -> ChatTokenizer:
    """The tokenizer of a ``tokenizer.json``, or of a folder with one.

    Raises SettingsError for one that is not a byte-level BPE, or that would lose text.
    """
    file = path / TOKENIZER_FILE if path.is_dir() else path
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        Tokenizer.from_str(json.dumps(content))
    except Exception as error:  # `tokenizers` raises bare Exception
        raise SettingsError(f"tokenizer.path: {file} is not a tokenizer: {error}") from None
    model, words = content["model"], content.get("pre_tokenizer") or {}
    if "merges" not in model or not any(part["type"] == "ByteLevel" for part in _parts(words)):
        raise SettingsError(f"tokenizer.path: {file} is not a byte-level BPE tokenizer")
    _complete(model, content["added_tokens"])
    content["added_tokens"] = [
        {**token, "lstrip": False, "rstrip": False}
        for token in content["added_tokens"]
        if token["content"] in CONTROL_TOKENS or not token["special"]
    ]
    for part in _parts(words):
        if part["type"] == "ByteLevel":
            part["add_prefix_space"] = False
    left_out = content.get("normalizer")
    for name in ("normalizer", "truncation", "padding", "post_processor"):
        content[name] = None
    backend = Tokenizer.from_str(json.dumps(content))
    backend.normalizer = unescaping()
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in CONTROL_TOKENS]
    )
    if left_out and left_out != json.loads(backend.to_str())["normalizer"]:
        say(f"tokenizer: the normaliser of {file} is left out, since it changes text")
    tokenizer = ChatTokenizer(backend)
    _check(tokenizer, file)
    return tokenizer


def _parts(step: dict[str, Any]) -> list[dict[str, Any]]:
    """A pre-tokenizer, or the parts of a sequence of them."""
    return step["pretokenizers"] if step.get("type") == "Sequence" else [step] if step else []


def _complete(model: dict[str, Any], added: list[dict[str, Any]]) -> None:
    """Gives ``model`` a token for every byte, and added tokens as words that no merge makes."""
    vocabulary: dict[str, int] = model["vocab"]
    ids = {*vocabulary.values(), *(token["id"] for token in added)}
    for byte in sorted(pre_tokenizers.ByteLevel.alphabet()):
        if byte not in vocabulary:
            vocabulary[byte] = max(ids) + 1
            ids.add(vocabulary[byte])
    for token in added:
        name = token["content"]
        vocabulary[name] = token["id"]  # where it is not, `tokenizers` gives another id
        if model.get("ignore_merges") and token["special"] and name not in CONTROL_TOKENS:
            # With a space, which stands for no byte, not even a whole word can be it.
            vocabulary[f" {name}"] = vocabulary.pop(name)


def _check(tokenizer: ChatTokenizer, file: Path) -> None:
    ids = sorted(tokenizer.backend.get_vocab(with_added_tokens=True).values())
    if ids != list(range(len(ids))):
        gap = next(wanted for wanted, found in enumerate(ids) if wanted != found)
        raise SettingsError(f"tokenizer.path: {file} has no token of id {gap}, or two")
    added = tokenizer.backend.get_added_tokens_decoder().values()
    for text in (*(token.content for token in added), _PROBE):
        if tokenizer.decode(tokenizer.encode(text)) != text:
            raise SettingsError(
                f"tokenizer.path: {file} would lose text: {text[:40]!r} does not come back from it"
            )
