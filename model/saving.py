"""Writing a model folder in the form of Hugging Face.

``config.json``, ``generation_config.json``, ``model.safetensors`` with the names of Llama (Qwen3
with ``qk_norm``) and the tokenizer's two files: what opens such folders opens ours, as transformers
and vLLM; ``model.gguf`` makes of it what llama.cpp opens.
"""

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from model.config import ModelConfig
from model.hugging_face import to_hugging_face
from model.vocabulary import vocabulary_sha256

WEIGHTS_FILE = "model.safetensors"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def save_model(
    folder: Path,
    config: ModelConfig,
    state: Mapping[str, Tensor],
    tokenizer_folder: Path,
    tokenizer_sha256: str,
) -> None:
    """Writes ``config``, the weights ``state`` (float32) and a copy of the tokenizer.

    Raises OSError when the disk can't take them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / WEIGHTS_FILE
    try:
        # With more than one key of metadata the file's bytes differ between processes.
        save_file(to_hugging_face(state, config), path, metadata={"format": "pt"})
    except SafetensorError as error:  # hides the system's error in its text
        if not (found := re.search(r"\(os error (\d+)\)", str(error))):
            raise
        code = int(found[1])
        raise OSError(code, os.strerror(code), str(path)) from None
    _write_json(
        folder / "config.json",
        {
            **config.to_hugging_face(),
            "tokenizer_sha256": tokenizer_sha256,
            "vocabulary_sha256": vocabulary_sha256(tokenizer_folder / "tokenizer.json"),
        },
    )
    _write_json(
        folder / "generation_config.json",
        {
            "bos_token_id": config.bos_id,
            "eos_token_id": config.end_id,
            "pad_token_id": config.pad_id,
        },
    )
    for name in TOKENIZER_FILES:
        shutil.copyfile(tokenizer_folder / name, folder / name)
    shutil.copymode(folder / "config.json", path)  # safetensors lets its owner alone read it


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8", newline="\n")
