"""bfloat16 weights that compute, float32 master copies that learn (Micikevicius et al. 2018).

An update smaller than a bfloat16's last bit is lost in it, so the optimiser, saves and the model
folder have the masters; forward and backward passes read copies that need no cast. Gradients of
several passes are added up in float32. FSDP works like this by itself.
"""

import copy
from typing import Self

import torch

from model.transformer import Transformer


class MasterWeights:
    """``model`` in float32, and ``working``, the copy of it that computes."""

    def __init__(self, model: Transformer) -> None:
        self.model = model
        self.working = copy.deepcopy(model).to(torch.bfloat16)
        # The rotary tables stay exact; they are cast where they are used.
        self.working.cos, self.working.sin = model.cos, model.sin
        self.working.tie()
        self._pairs = list(zip(model.parameters(), self.working.parameters(), strict=True))

    @torch.no_grad()
    def collect(self) -> Self:
        """Moves the gradients of the working copy, added up, to the masters."""
        for master, working in self._pairs:
            if working.grad is None:
                continue
            if master.grad is None:
                master.grad = working.grad.float()
            else:
                master.grad += working.grad
            working.grad = None
        return self

    @torch.no_grad()
    def publish(self) -> None:
        """Copies the masters into the working copy."""
        for master, working in self._pairs:
            working.copy_(master)
