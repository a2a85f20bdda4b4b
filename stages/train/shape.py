"""Whether a training that begins with a model folder has its shape. Needs no torch."""

from dataclasses import replace
from pathlib import Path

from model.config import DRAWN, ModelConfig, read_config
from stages.errors import SettingsError
from stages.train.params import ModelParams

SHAPE = (
    "d_model",
    "num_layers",
    "num_heads",
    "kv_heads",
    "d_ff",
    "rope_theta",
    "qk_norm",
    "tie_embeddings",
)
# What no key of the section `model` says: a training takes it from the folder.
GIVEN = ("head_dim", "norm_eps")


def check_shape(init_from: str, model: ModelParams) -> None:
    """Raises SettingsError with every key of ``model`` that the folder has otherwise."""
    if init_from == DRAWN:
        return
    held = _held(init_from)
    others = {key: getattr(held, key) for key in SHAPE if getattr(model, key) != getattr(held, key)}
    if others:
        settings = " ".join(f"-S model.{key}={_yaml(value)}" for key, value in others.items())
        raise SettingsError(
            f"train.init_from: '{init_from}' has another shape than the section model: {settings}"
        )


def config_of_start(config: ModelConfig, init_from: str) -> ModelConfig:
    """``config`` with what only the folder that a training begins with can say.

    Raises SettingsError when it is no model folder.
    """
    if init_from == DRAWN:
        return config
    held = _held(init_from)
    return replace(config, **{key: getattr(held, key) for key in GIVEN})


def _held(init_from: str) -> ModelConfig:
    try:
        return read_config(Path(init_from))
    except (OSError, ValueError) as error:
        raise SettingsError(f"train.init_from: '{init_from}' is no model folder: {error}") from None


def _yaml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
