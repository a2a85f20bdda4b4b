"""The network and its use: ``from model import load, generate_with_cache``.

Names are imported when first used, so that a stage that needs only the template doesn't pay for
torch, and a change in generation is no change of training.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from model.cache import KVCache
    from model.config import ModelConfig
    from model.engine import Engine, Piece, Reply
    from model.generate import generate_with_cache
    from model.loading import load
    from model.reading import load_model
    from model.sampling import Sampling
    from model.saving import save_model
    from model.tokenizer import ChatTokenizer
    from model.transformer import Transformer

_HOMES = {
    "ChatTokenizer": "model.tokenizer",
    "Engine": "model.engine",
    "KVCache": "model.cache",
    "ModelConfig": "model.config",
    "Piece": "model.engine",
    "Reply": "model.engine",
    "Sampling": "model.sampling",
    "Transformer": "model.transformer",
    "generate_with_cache": "model.generate",
    "load": "model.loading",
    "load_model": "model.reading",
    "save_model": "model.saving",
}

__all__ = [
    "ChatTokenizer",
    "Engine",
    "KVCache",
    "ModelConfig",
    "Piece",
    "Reply",
    "Sampling",
    "Transformer",
    "generate_with_cache",
    "load",
    "load_model",
    "save_model",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'model' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)
