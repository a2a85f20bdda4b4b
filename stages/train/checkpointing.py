"""Activation checkpointing: less memory for a second forward pass (Chen et al. 2016)."""

from functools import partial
from typing import Any

import torch
from torch._higher_order_ops.flex_attention import flex_attention
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from model.transformer import Transformer

# Costly to compute again, and small: what `selective` keeps. All else in a block is recomputed.
KEPT = [
    torch.ops.aten.mm.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    flex_attention,
]


def checkpoint_activations(model: Transformer, how: str) -> None:
    """Makes each block keep its input alone (``full``), its products too (``selective``), or all
    (``none``). The gradients are the same to the bit."""
    if how == "none":
        return
    options: dict[str, Any] = {}
    if how == "selective":
        options["context_fn"] = partial(create_selective_checkpoint_contexts, KEPT)
    for block in model.blocks:
        # `forward` and not the call, so that hooks of FSDP stay outside.
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, **options)
