"""What makes two tokenizer files the same tokenizer, whoever wrote them."""

import hashlib
import json
from pathlib import Path


def vocabulary_sha256(tokenizer_file: Path) -> str:
    """Hex digest of all in a ``tokenizer.json`` that decides ids and text.

    transformers writes the file anew when it saves a model, with the same content in other bytes.
    Raises ValueError when the file has no such content.
    """
    try:
        content = json.loads(tokenizer_file.read_text(encoding="utf-8"))
        merges = [m.split(" ") if isinstance(m, str) else m for m in content["model"]["merges"]]
        added = sorted((token["id"], token["content"]) for token in content["added_tokens"])
        steps = [content[name] for name in ("normalizer", "pre_tokenizer", "decoder")]
        decides = [sorted(content["model"]["vocab"].items()), merges, added, steps]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{tokenizer_file} is not a byte-level BPE tokenizer: {error}") from None
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
