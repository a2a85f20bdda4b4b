"""The names and matrices of Hugging Face's Llama and Qwen3 for our fused parameters."""

from collections.abc import Mapping

import torch
from torch import Tensor

from model.config import ModelConfig

# Ours -> Hugging Face, within a block. A fused matrix becomes several, in the order of its rows.
_BLOCK_NAMES: dict[str, tuple[str, ...]] = {
    "attention_norm.weight": ("input_layernorm.weight",),
    "attention.qkv.weight": tuple(f"self_attn.{part}_proj.weight" for part in "qkv"),
    "attention.out.weight": ("self_attn.o_proj.weight",),
    "attention.q_norm.weight": ("self_attn.q_norm.weight",),
    "attention.k_norm.weight": ("self_attn.k_norm.weight",),
    "feed_forward_norm.weight": ("post_attention_layernorm.weight",),
    "feed_forward.gate_up.weight": ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
    "feed_forward.down.weight": ("mlp.down_proj.weight",),
}
_TOP_NAMES = {
    "embedding.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
}


def _names(name: str) -> tuple[str, ...]:
    if name in _TOP_NAMES:
        return (_TOP_NAMES[name],)
    _, layer, rest = name.split(".", 2)
    return tuple(f"model.layers.{layer}.{part}" for part in _BLOCK_NAMES[rest])


def _rows(name: str, config: ModelConfig) -> list[int]:
    """How the rows of a fused matrix divide."""
    if name.endswith("qkv.weight"):
        return [
            heads * config.head_dim
            for heads in (config.num_heads, config.kv_heads, config.kv_heads)
        ]
    return [config.d_ff, config.d_ff]


def parts_of(name: str, tensor: Tensor, config: ModelConfig) -> dict[str, Tensor]:
    """One of our parameters as those of Hugging Face, in the order of their rows."""
    names = _names(name)
    parts = [tensor] if len(names) == 1 else tensor.split(_rows(name, config))
    return dict(zip(names, parts, strict=True))


def to_hugging_face(state: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Our state dict with the names and matrices of Hugging Face; a tied head is left out."""
    result = {}
    for name, tensor in state.items():
        if name == "head.weight" and config.tie_embeddings:
            continue
        for part_name, part in parts_of(name, tensor, config).items():
            result[part_name] = part.detach().to("cpu", torch.float32).contiguous()
    return result
