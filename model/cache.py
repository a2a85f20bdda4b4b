"""The cache of keys and values that makes generation linear in the number of new tokens."""

import torch
from torch import Tensor

from model.config import ModelConfig


class KVCache:
    """Preallocated keys and values, before they are expanded to the query heads.

    ``keys`` and ``values`` have shape (num_layers, batch, kv_heads, capacity, head_dim); the first
    ``length`` positions are filled.
    """

    def __init__(
        self,
        config: ModelConfig,
        batch: int = 1,
        capacity: int | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        """Room for ``capacity`` tokens (``seq_len`` by default; more raises ValueError)."""
        capacity = config.seq_len if capacity is None else capacity
        if capacity > config.seq_len:
            raise ValueError(f"capacity {capacity} is above the model's seq_len {config.seq_len}")
        shape = (config.num_layers, batch, config.kv_heads, capacity, config.head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.capacity = capacity
        self.length = 0

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Stores a layer's new keys and values (batch, kv_heads, new, head_dim) behind ``length``.

        Returns all keys and values of that layer so far. ``advance`` makes them count, once all
        layers have stored theirs.
        """
        stop = self.length + keys.shape[2]
        self.keys[layer, :, :, self.length : stop] = keys
        self.values[layer, :, :, self.length : stop] = values
        return self.keys[layer, :, :, :stop], self.values[layer, :, :, :stop]

    def advance(self, count: int) -> None:
        """Counts ``count`` more positions as filled."""
        self.length += count
