"""The network on preallocated slots of keys and values, by torch's own operations: any device.

Each slot holds one sequence, as long as it is. Prompts are computed one by one and products of
decoding always have one row for each slot, whether it is used or not, so that no row's sums depend
on what is in the others.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from model.quantise import rounded_to_int8
from model.sampling import Sampling, choose, uniform
from model.transformer import Rotation, Transformer, rotary_tables, rotate

# (layer, q, k, v) -> y, each (rows, heads, head_dim)
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.float32}


@dataclass(frozen=True)
class Layer:
    """Weights of one block, in the dtype of the products."""

    attention_norm: Tensor
    qkv: Tensor
    q_norm: Tensor | None
    k_norm: Tensor | None
    out: Tensor
    feed_forward_norm: Tensor
    gate_up: Tensor
    down: Tensor


@dataclass(frozen=True)
class _Reply:
    """A reply in the making; ``seen`` are the tokens of prompt and reply."""

    sampling: Sampling
    seed: int
    seen: list[int]
    prompt_tokens: int


class TorchBackend:
    """Prefill and decode of up to ``slots`` sequences."""

    def __init__(self, model: Transformer, slots: int, weights: str) -> None:
        """``weights`` is fp32, bf16 or int8 (computed in fp32 with what int8 makes of them)."""
        config = self.config = model.config
        self.slots = slots
        self.device = model.embedding.weight.device
        self.dtype = DTYPES[weights]
        self.name = f"torch {weights}"

        def matrix(weight: Tensor) -> Tensor:
            weight = weight.detach()
            return rounded_to_int8(weight) if weights == "int8" else weight.to(self.dtype)

        def vector(weight: Tensor) -> Tensor:
            return weight.detach().to(self.dtype)

        with torch.no_grad():
            self.embedding = matrix(model.embedding.weight)
            tied = model.head.weight is model.embedding.weight
            self.head = self.embedding if tied else matrix(model.head.weight)
            self.norm = vector(model.norm.weight)
            state = model.state_dict()
            self.layers = []
            for index in range(config.num_layers):

                def weight(name: str, index: int = index) -> Tensor:
                    return state[f"blocks.{index}.{name}.weight"]

                self.layers.append(
                    Layer(
                        attention_norm=vector(weight("attention_norm")),
                        qkv=matrix(weight("attention.qkv")),
                        q_norm=vector(weight("attention.q_norm")) if config.qk_norm else None,
                        k_norm=vector(weight("attention.k_norm")) if config.qk_norm else None,
                        out=matrix(weight("attention.out")),
                        feed_forward_norm=vector(weight("feed_forward_norm")),
                        gate_up=matrix(weight("feed_forward.gate_up")),
                        down=matrix(weight("feed_forward.down")),
                    )
                )
        cos, sin = rotary_tables(config)
        self.rotation: Rotation = cos.to(self.device), sin.to(self.device)
        shape = (config.num_layers, slots, config.kv_heads, config.seq_len, config.head_dim)
        # Read only where written: pages that no token reached cost no memory.
        self.keys = torch.empty(shape, dtype=self.dtype, device=self.device)
        self.values = torch.empty(shape, dtype=self.dtype, device=self.device)
        self._replies: dict[int, _Reply] = {}
        self._logits: dict[int, Tensor] = {}

    def begin(self, slot: int, prompt: Sequence[int], sampling: Sampling, seed: int) -> int:
        """Computes a prompt and chooses the first token behind it.

        Raises ValueError for logits that are not finite.
        """
        logits = self.prefill(slot, prompt)
        self._replies[slot] = _Reply(sampling, seed, list(prompt), len(prompt))
        return self._choose(slot, logits)

    def step(self, slots: Sequence[int]) -> list[int]:
        """The next token of each of ``slots``. Raises ValueError for logits that are not finite."""
        seen = [self._replies[slot].seen for slot in slots]
        logits = self.decode(slots, [ids[-1] for ids in seen], [len(ids) - 1 for ids in seen])
        return [self._choose(slot, row) for slot, row in zip(slots, logits, strict=True)]

    def logits(self, slot: int) -> Tensor:
        """Those (vocab_size,) that the newest token of ``slot`` was chosen by."""
        return self._logits[slot]

    def _choose(self, slot: int, logits: Tensor) -> int:
        reply = self._replies[slot]
        u = uniform(reply.seed, len(reply.seen) - reply.prompt_tokens)
        token = choose(logits, reply.sampling, u, reply.seen)
        self._logits[slot] = logits
        reply.seen.append(token)
        return token

    @torch.inference_mode()
    def prefill(self, slot: int, ids: Sequence[int], past: int = 0) -> Tensor:
        """Puts ``ids`` behind a slot's first ``past`` tokens: logits (vocab_size,) of the last."""
        length = len(ids)
        stop = past + length
        rotation = (self.rotation[0][past:stop], self.rotation[1][past:stop])
        mask = None
        if past and length > 1:
            mask = torch.ones(length, stop, dtype=torch.bool, device=self.device).tril(past)

        def attend(index: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            q, k = (rotate(x.transpose(0, 1), rotation) for x in (q, k))
            keys, values = self.keys[index, slot], self.values[index, slot]
            keys[:, past:stop], values[:, past:stop] = k, v.transpose(0, 1)
            y = F.scaled_dot_product_attention(
                q[None],
                keys[None, :, :stop],
                values[None, :, :stop],
                attn_mask=mask,
                is_causal=mask is None and length > 1,
                enable_gqa=q.shape[0] != keys.shape[0],
            )
            return y[0].transpose(0, 1)

        x = self._blocks(torch.tensor(list(ids), device=self.device), attend)
        return F.linear(self._norm(x[-1:], self.norm), self.head)[0].float().cpu()

    @torch.inference_mode()
    def decode(self, slots: Sequence[int], tokens: Sequence[int], lengths: Sequence[int]) -> Tensor:
        """One more token for each of ``slots``, behind ``lengths``: logits (rows, vocab_size)."""
        ids = torch.zeros(self.slots, dtype=torch.long)
        positions = torch.zeros(self.slots, dtype=torch.long)
        where = torch.tensor(list(slots))
        ids[where], positions[where] = torch.tensor(list(tokens)), torch.tensor(list(lengths))
        ids, positions = ids.to(self.device), positions.to(self.device)
        where_here = where.to(self.device)
        at = positions[where_here]
        rotation = (self.rotation[0][positions, None], self.rotation[1][positions, None])

        def attend(index: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            q, k = rotate(q, rotation), rotate(k, rotation)
            self.keys[index, where_here, :, at] = k[where_here]
            self.values[index, where_here, :, at] = v[where_here]
            y = torch.zeros_like(q)
            for slot, length in zip(slots, lengths, strict=True):
                # (1, kv_heads, queries of the group, head_dim): a group's queries share its keys
                y[slot] = F.scaled_dot_product_attention(
                    q[slot].view(1, self.config.kv_heads, -1, self.config.head_dim),
                    self.keys[index, slot, None, :, : length + 1],
                    self.values[index, slot, None, :, : length + 1],
                ).view_as(y[slot])
            return y

        x = self._blocks(ids, attend)
        return F.linear(self._norm(x, self.norm), self.head)[where_here].float().cpu()

    def _blocks(self, ids: Tensor, attend: Attend) -> Tensor:
        config = self.config
        x = F.embedding(ids, self.embedding)
        split = (config.num_heads, config.kv_heads, config.kv_heads)
        for index, layer in enumerate(self.layers):
            heads = F.linear(self._norm(x, layer.attention_norm), layer.qkv)
            q, k, v = heads.view(len(ids), sum(split), config.head_dim).split(split, dim=1)
            if layer.q_norm is not None and layer.k_norm is not None:
                q, k = self._norm(q, layer.q_norm), self._norm(k, layer.k_norm)
            y = attend(index, q, k, v)
            x = x + F.linear(y.reshape(len(ids), -1), layer.out)
            gate, up = F.linear(self._norm(x, layer.feed_forward_norm), layer.gate_up).chunk(2, -1)
            x = x + F.linear(F.silu(gate) * up, layer.down)
        return x

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], weight, self.config.norm_eps)
