"""Opening a model folder: the network and its tokenizer."""

from pathlib import Path

import torch

from model.config import read_json
from model.reading import load_model
from model.tokenizer import ChatTokenizer
from model.transformer import Transformer
from model.vocabulary import vocabulary_sha256


def load(
    folder: str | Path, device: torch.device | str = "cpu"
) -> tuple[Transformer, ChatTokenizer]:
    """Opens a model folder: the network and its tokenizer.

    Raises FileNotFoundError, and ValueError as ``load_model`` and when the tokenizer is not the one
    that the model was trained with, or not one of Parley's.
    """
    folder = Path(folder)
    model = load_model(folder, device)
    try:
        tokenizer = ChatTokenizer.load(folder)
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(f"{error} (load_model opens the network alone)") from None
    config = read_json(folder / "config.json")
    expected = config.get("tokenizer_sha256")
    if expected not in (None, tokenizer.sha256) and config.get(
        "vocabulary_sha256"
    ) != vocabulary_sha256(folder / "tokenizer.json"):
        raise ValueError(
            f"'{folder}': tokenizer.json is not the one that the model was trained with"
        )
    if tokenizer.vocab_size > model.config.vocab_size:
        raise ValueError(
            f"'{folder}': the tokenizer has {tokenizer.vocab_size} ids, "
            f"the model {model.config.vocab_size}"
        )
    return model, tokenizer
