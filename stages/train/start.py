"""What a training begins with: weights drawn by ``model.init``, or those of a model folder."""

from pathlib import Path
from typing import TYPE_CHECKING

from model.config import ModelConfig
from stages.errors import SettingsError
from stages.files import sha256_file
from stages.train.params import DRAWN

if TYPE_CHECKING:
    from model.transformer import Transformer

SHAPE = (
    "d_model",
    "num_layers",
    "num_heads",
    "kv_heads",
    "d_ff",
    "qk_norm",
    "tie_embeddings",
    "rope_theta",
)
# What no key of the section `model` changes.
GIVEN = ("vocab_size", "head_dim", "norm_eps")


def check_start(init_from: str, config: ModelConfig, tokenizer: Path) -> None:
    """Raises SettingsError for a folder whose shape or vocabulary is not that of this training."""
    if init_from == DRAWN:
        return
    from model.reading import load_model
    from model.vocabulary import vocabulary_sha256

    folder = Path(init_from)
    try:
        held = load_model(folder).config
        same = vocabulary_sha256(folder / "tokenizer.json") == vocabulary_sha256(
            tokenizer / "tokenizer.json"
        )
    except (OSError, ValueError) as error:
        raise SettingsError(f"train.init_from: '{init_from}' is no model folder: {error}") from None
    for key in SHAPE:
        mine, theirs = getattr(config, key), getattr(held, key)
        if mine != theirs:
            raise SettingsError(
                f"model.{key} is {mine}, train.init_from '{init_from}' has {theirs}"
            )
    if not same:
        raise SettingsError(
            f"train.init_from: the tokenizer of '{init_from}' is not {tokenizer}: its weights "
            "mean nothing for these tokens"
        )
    for key in GIVEN:
        mine, theirs = getattr(config, key), getattr(held, key)
        if mine != theirs:
            raise SettingsError(
                f"train.init_from: '{init_from}' has {key} {theirs}, this training has {mine}"
            )


def start_weights(model: "Transformer", init_from: str) -> None:
    """Puts the weights of a model folder into ``model``; those drawn stay as they are."""
    if init_from != DRAWN:
        from model.reading import load_model

        model.load_state_dict(load_model(init_from).state_dict())


def start_sum(init_from: str) -> str:
    """What tells one beginning from another: sums of a folder's weights."""
    if init_from == DRAWN:
        return DRAWN
    files = sorted(Path(init_from).glob("*.safetensors"))
    return " ".join(sha256_file(file) for file in files)
