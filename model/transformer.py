"""The network: a pre-norm decoder in the manner of Llama (Touvron et al. 2023).

Grouped-query attention (Ainslie et al. 2023; kv_heads = num_heads is multi-head, kv_heads = 1
multi-query), rotary positions (Su et al. 2021), RMSNorm (Zhang & Sennrich 2019), SwiGLU (Shazeer
2020), optional RMSNorm on queries and keys (Dehghani et al. 2023), no biases. Query, key and value
projections are one matrix, and so are the gate and up projections: fewer, larger products.
``model.hugging_face`` splits them into the names of Hugging Face.

Activations and products have the dtype that the caller asks for; weights are cast to it where they
are used, so that training keeps them in float32 without autocast's cost for each operation.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.config import ModelConfig
from model.init import init_weights

if TYPE_CHECKING:
    from model.cache import KVCache

Rotation = tuple[Tensor, Tensor]
# (q, k, v, mask, causal) -> y; the mask is what a DocumentMask makes of documents, or None.
Attend = Callable[[Tensor, Tensor, Tensor, Any, bool], Tensor]
DocumentMask = Callable[[Tensor], Any]
Normalise = Callable[[Tensor, Tensor, float], Tensor]  # (x, weight, eps) -> y


def fused_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """Attention by torch's fused kernels.

    ``q`` is (batch, num_heads, queries, head_dim), ``k`` and ``v`` are (batch, kv_heads, keys,
    head_dim), the result is like ``q``. A query sees the keys that ``mask`` (batch or 1, 1,
    queries, keys) marks; without one all, or, if ``causal``, those up to its own place.
    """
    if mask is not None and q.device.type == "cuda":
        # A GPU's kernels take a mask or grouped heads: with both, torch would make all scores.
        shared = q.shape[1] // k.shape[1]
        k, v = (x.repeat_interleave(shared, dim=1) for x in (k, v))
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=q.shape[1] != k.shape[1]
    )


def document_mask(documents: Tensor) -> Tensor:
    """What ``fused_attention`` takes for ``documents`` (batch, length): up to a query's own place,
    the keys of its own document."""
    return (documents.unsqueeze(-1) == documents.unsqueeze(-2)).tril().unsqueeze(1)


class Linear(nn.Linear):
    """A product in the dtype of its input."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``x`` (…, width) by its root mean square, times ``weight`` (width)."""
    return F.rms_norm(x, x.shape[-1:], weight.to(x.dtype), eps)


class RMSNorm(nn.Module):
    """Normalisation by the root mean square, in the dtype of its input."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))
        self.normalise: Normalise = rms_norm

    def forward(self, x: Tensor) -> Tensor:
        return self.normalise(x, self.weight, self.eps)


class Attention(nn.Module):
    """Causal self-attention with kv_heads shared by groups of query heads."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.attend: Attend = fused_attention
        self.num_heads, self.kv_heads = config.num_heads, config.kv_heads
        self.head_dim = config.head_dim
        q_width, kv_width = self.num_heads * self.head_dim, self.kv_heads * self.head_dim
        self.qkv = Linear(config.d_model, q_width + 2 * kv_width, bias=False)
        self.out = Linear(q_width, config.d_model, bias=False)
        norm = RMSNorm if config.qk_norm else nn.Identity
        self.q_norm = norm(self.head_dim, eps=config.norm_eps)
        self.k_norm = norm(self.head_dim, eps=config.norm_eps)

    def forward(self, x: Tensor, rotation: Rotation, mask: Any, cache: "KVCache | None") -> Tensor:
        batch, length, _ = x.shape
        heads = self.qkv(x).view(batch, length, self.num_heads + 2 * self.kv_heads, self.head_dim)
        q, k, v = heads.transpose(1, 2).split([self.num_heads, self.kv_heads, self.kv_heads], dim=1)
        q, k = rotate(self.q_norm(q), rotation), rotate(self.k_norm(k), rotation)
        if cache is not None:
            k, v = cache.append(self.layer, k, v)
            k, v = k.to(q.dtype), v.to(q.dtype)
        y = self.attend(q, k, v, mask, mask is None and length > 1)
        return self.out(y.transpose(1, 2).reshape(batch, length, -1))


class FeedForward(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_up = Linear(config.d_model, 2 * config.d_ff, bias=False)
        self.down = Linear(config.d_ff, config.d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class Block(nn.Module):
    """Attention and feed-forward, each normalised before and added back after."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.d_model, eps=config.norm_eps)
        self.attention = Attention(config, layer)
        self.feed_forward_norm = RMSNorm(config.d_model, eps=config.norm_eps)
        self.feed_forward = FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, rotation: Rotation, mask: Any, cache: "KVCache | None") -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x), rotation, mask, cache))
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))


class Transformer(nn.Module):
    """Token ids in, logits out. ``model.init`` draws the weights from torch's global generator."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.document_mask: DocumentMask = document_mask  # what the blocks' `attend` takes
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.norm = RMSNorm(config.d_model, eps=config.norm_eps)
        self.head = Linear(config.d_model, config.vocab_size, bias=False)
        self.tie()
        cos, sin = rotary_tables(config)
        self.cos: Tensor
        self.sin: Tensor
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        init_weights(self, config)

    def forward(
        self,
        ids: Tensor,
        cache: "KVCache | None" = None,
        documents: Tensor | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Logits of shape (batch, length, vocab_size) for ids of shape (batch, length).

        With a cache, ``ids`` follow the ``cache.length`` tokens already in it, and their keys and
        values are added. ``documents`` (batch, length) numbers the document of each token; tokens
        then see only those of their own. ``dtype`` is that of all activations (default: that of
        the weights). Raises ValueError for more tokens than ``seq_len`` (or the cache) holds.
        """
        return self.head(self.features(ids, cache, documents, dtype))

    def features(
        self,
        ids: Tensor,
        cache: "KVCache | None" = None,
        documents: Tensor | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """What the head reads: normalised hidden states of shape (batch, length, d_model)."""
        length = ids.shape[1]
        past = cache.length if cache is not None else 0
        capacity = cache.capacity if cache is not None else self.config.seq_len
        if past + length > capacity:
            raise ValueError(
                f"{past + length} tokens are more than the {capacity} there is room for"
            )
        rotation = (self.cos[past : past + length], self.sin[past : past + length])
        mask = None
        if past and length > 1:
            # Query i stands at position past + i and sees the keys up to there.
            mask = torch.ones(length, past + length, dtype=torch.bool, device=ids.device).tril(past)
        if documents is not None:
            mask = self.document_mask(documents)
        x = self.embedding(ids)
        x = self.dropout(x if dtype is None else x.to(dtype))
        for block in self.blocks:
            x = block(x, rotation, mask, cache)
        if cache is not None:
            cache.advance(length)
        return self.norm(x)

    def tie(self) -> None:
        """Makes the head share the embedding's matrix, if the config says so."""
        if self.config.tie_embeddings:
            self.head.weight = self.embedding.weight

    def attend_by(self, attend: Attend, document_mask: DocumentMask) -> None:
        """Has all blocks attend so, given what ``document_mask`` makes of documents."""
        self.document_mask = document_mask
        for module in self.modules():
            if isinstance(module, Attention):
                module.attend = attend

    def num_parameters(self) -> int:
        """Number of weights; tied ones count once."""
        return sum(parameter.numel() for parameter in self.parameters())


def rotary_tables(config: ModelConfig) -> Rotation:
    """Cosines and sines (seq_len, head_dim) in float32; the two halves hold the same angles."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    frequencies = 1.0 / config.rope_theta**exponents
    angles = torch.outer(torch.arange(config.seq_len, dtype=torch.float32), frequencies)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Turns pairs (i, i + head_dim / 2) of x (batch, heads, length, head_dim) by their angles."""
    cos, sin = (table.to(x.dtype) for table in rotation)
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin
