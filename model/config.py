"""The shape of a model, and its form as a Hugging Face ``config.json``."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# ``train.init_from`` of weights that are drawn: the module that draws them.
DRAWN = "model/init.py"


class ShapeError(ValueError):
    """An impossible shape; ``key`` is the parameter at fault."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(f"{key}: {reason}")
        self.key = key


def check_heads(d_model: int, num_heads: int, kv_heads: int) -> None:
    """Raises ShapeError when the heads don't divide the width or each other."""
    if d_model % num_heads:
        raise ShapeError("d_model", f"{d_model} is not divisible by num_heads {num_heads}")
    if num_heads % kv_heads:
        raise ShapeError("num_heads", f"{num_heads} is not divisible by kv_heads {kv_heads}")
    if d_model // num_heads % 2:
        raise ShapeError(
            "d_model", f"{d_model} / num_heads {num_heads} is odd: rotary positions need pairs"
        )


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a decoder. ``head_dim`` is d_model / num_heads unless a loaded folder differs."""

    vocab_size: int
    d_model: int
    num_layers: int
    num_heads: int
    kv_heads: int
    d_ff: int
    seq_len: int
    dropout: float = 0.0
    rope_theta: float = 10_000.0
    qk_norm: bool = False
    tie_embeddings: bool = True
    norm_eps: float = 1e-5
    head_dim: int = 0
    bos_id: int | None = None
    end_id: int | None = None
    pad_id: int | None = None
    # Trained with attention kept within each document of a sequence; one document is as ever.
    document_mask: bool = False

    def __post_init__(self) -> None:
        """Raises ShapeError."""
        for key in (
            "vocab_size",
            "d_model",
            "num_layers",
            "num_heads",
            "kv_heads",
            "d_ff",
            "seq_len",
            "head_dim",
        ):
            value = getattr(self, key)
            if not isinstance(value, int):
                raise ShapeError(key, f"{value!r} is not a whole number")
            if value < 1 and (key, value) != ("head_dim", 0):
                raise ShapeError(key, f"{value} is not positive")
        if not self.head_dim:
            check_heads(self.d_model, self.num_heads, self.kv_heads)
            object.__setattr__(self, "head_dim", self.d_model // self.num_heads)
        elif self.num_heads % self.kv_heads:
            raise ShapeError(
                "num_heads", f"{self.num_heads} is not divisible by kv_heads {self.kv_heads}"
            )
        elif self.head_dim % 2:
            raise ShapeError("head_dim", f"{self.head_dim} is odd: rotary positions need pairs")

    def num_parameters(self) -> int:
        """Number of weights; tied ones count once."""
        heads = (2 * self.num_heads + 2 * self.kv_heads) * self.head_dim * self.d_model
        norms = 2 * self.d_model + (2 * self.head_dim if self.qk_norm else 0)
        block = heads + 3 * self.d_model * self.d_ff + norms
        embeddings = self.vocab_size * self.d_model * (1 if self.tie_embeddings else 2)
        return embeddings + self.num_layers * block + self.d_model

    def to_hugging_face(self) -> dict[str, Any]:
        """The content of ``config.json``: Llama, or Qwen3 with ``qk_norm``.

        Dropout belongs to training and is not part of these architectures, so it is not written.
        """
        return {
            "architectures": ["Qwen3ForCausalLM" if self.qk_norm else "LlamaForCausalLM"],
            "model_type": "qwen3" if self.qk_norm else "llama",
            "vocab_size": self.vocab_size,
            "hidden_size": self.d_model,
            "intermediate_size": self.d_ff,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "max_position_embeddings": self.seq_len,
            "hidden_act": "silu",
            "rms_norm_eps": self.norm_eps,
            # Older readers take rope_theta, newer ones rope_parameters.
            "rope_theta": self.rope_theta,
            "rope_parameters": {"rope_type": "default", "rope_theta": self.rope_theta},
            "tie_word_embeddings": self.tie_embeddings,
            "attention_bias": False,
            "attention_dropout": 0.0,
            **({"use_sliding_window": False} if self.qk_norm else {"mlp_bias": False}),
            "bos_token_id": self.bos_id,
            "eos_token_id": self.end_id,
            "pad_token_id": self.pad_id,
            "torch_dtype": "float32",
            "use_cache": True,
            **({"document_mask": True} if self.document_mask else {}),
        }

    @classmethod
    def from_hugging_face(cls, values: Mapping[str, Any]) -> "ModelConfig":
        """Reads ``config.json`` of a Llama or Qwen3 folder.

        Raises ValueError naming the key for anything that this network does not compute alike.
        """
        kind = values.get("model_type")
        if kind not in ("llama", "qwen3"):
            raise ValueError(f"model_type '{kind}' is neither llama nor qwen3")
        for key in ("attention_bias", "mlp_bias", "use_sliding_window"):
            if values.get(key):
                raise ValueError(f"{key} is set: this network has no such part")
        if values.get("quantization_config"):
            raise ValueError("quantization_config is set: quantised weights are not read here")
        if values.get("hidden_act", "silu") != "silu":
            raise ValueError(f"hidden_act '{values['hidden_act']}' is not silu")
        for layer in values.get("layer_types") or ():
            if layer != "full_attention":
                raise ValueError(f"layer_types: '{layer}' is not full_attention")
        try:
            heads = values["num_attention_heads"]
            return cls(
                vocab_size=values["vocab_size"],
                d_model=values["hidden_size"],
                num_layers=values["num_hidden_layers"],
                num_heads=heads,
                kv_heads=values.get("num_key_value_heads") or heads,
                d_ff=values["intermediate_size"],
                seq_len=values["max_position_embeddings"],
                rope_theta=_rope_theta(values),
                qk_norm=kind == "qwen3",
                tie_embeddings=bool(values.get("tie_word_embeddings", False)),
                norm_eps=_number("rms_norm_eps", values.get("rms_norm_eps", 1e-6)),
                # What transformers takes where a config does not say.
                head_dim=values.get("head_dim", 128 if kind == "qwen3" else 0) or 0,
                bos_id=_first(values.get("bos_token_id")),
                end_id=_first(values.get("eos_token_id")),
                pad_id=_first(values.get("pad_token_id")),
                document_mask=bool(values.get("document_mask", False)),
            )
        except KeyError as error:
            raise ValueError(f"config.json has no {error}") from None


def _rope_theta(values: Mapping[str, Any]) -> float:
    """The base of plain rotary positions. Raises ValueError for positions of another kind."""
    # rope_scaling, the older key, wins in transformers when both are there.
    key = "rope_scaling" if values.get("rope_scaling") else "rope_parameters"
    rope = values.get(key) or {}
    if not isinstance(rope, Mapping):
        raise ValueError(f"{key}: {rope!r} is no mapping")
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    if rope_type != "default":
        raise ValueError(f"{key}: rope_type '{rope_type}': only default rotary positions are known")
    for place in (rope, values):
        if place.get("partial_rotary_factor", 1.0) not in (1.0, None):
            raise ValueError("partial_rotary_factor is set: only whole heads are rotated here")
    return _number("rope_theta", rope.get("rope_theta", values.get("rope_theta", 10_000.0)))


def _number(key: str, value: object) -> float:
    if not isinstance(value, int | float) or not value > 0:
        raise ValueError(f"{key}: {value!r} is not a positive number")
    return float(value)


def _first(value: int | list[int] | None) -> int | None:
    if isinstance(value, list):
        return value[0] if value else None
    return value


def read_config(folder: str | Path) -> ModelConfig:
    """The shape of a Llama or Qwen3 folder. Raises FileNotFoundError and ValueError."""
    values = read_json(Path(folder) / "config.json")
    try:
        return ModelConfig.from_hugging_face(values)
    except ValueError as error:
        raise ValueError(f"'{folder}': {error}") from None


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a model folder. Raises FileNotFoundError and ValueError."""
    if not path.is_file():
        raise FileNotFoundError(f"no {path.name} in '{path.parent}'")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} is not a JSON object")
    return value
