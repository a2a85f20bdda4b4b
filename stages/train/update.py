"""One update: how a batch becomes new weights."""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from stages.train.data_order import Batch
from stages.train.master import MasterWeights
from stages.train.meter import Meter
from stages.train.optimizer import set_learning_rates
from stages.train.precision import Precision
from stages.train.processes import Processes, own_part

NORM_PIECE = 2**18  # elements that a norm is taken of at a time


class Update(NamedTuple):
    """What an update did: sum of losses, tokens supervised, gradient norm before clipping.

    ``applied`` is whether it changed the weights.
    """

    nats: float
    tokens: int
    grad_norm: float
    applied: bool


class Updater:
    """Forward, backward, clipping and the optimiser's step.

    The gradient is that of the mean loss over all supervised tokens of the whole batch, however it
    is divided into passes and processes: each part's sum is divided by the total count, never by
    its own. A batch without a supervised token changes nothing, and neither does one whose loss or
    gradient is not finite.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizers: Sequence[Optimizer],
        precision: Precision,
        sequences_per_pass: int,
        grad_clip: float,
        seed: int,
        processes: Processes,
        meter: Meter,
        masters: MasterWeights | None = None,
    ) -> None:
        """``network`` gives the summed loss of a batch; ``grad_clip`` 0 turns clipping off.

        With ``masters``, ``network`` has their working copy and the optimisers have them.
        """
        self.network, self.optimizers, self.precision = network, optimizers, precision
        self.sequences_per_pass, self.grad_clip, self.seed = sequences_per_pass, grad_clip, seed
        self.processes, self.meter = processes, meter
        self.masters = masters
        self.parameters = list((masters.model if masters else network).parameters())
        self.device = self.parameters[0].device
        self._dropout = any(isinstance(m, nn.Dropout) and m.p > 0 for m in network.modules())

    def __call__(self, step: int, batch: Batch, share_of_peak: float) -> Update:
        """Updates the weights with this process's part of the batch of ``step``.

        Learning rates are ``share_of_peak`` of their peaks.
        """
        count = np.array([float(batch.supervised)])
        self.processes.total(count)
        tokens = int(count[0])
        if tokens == 0:
            return Update(0.0, 0, 0.0, False)
        nats = np.array([self._backward(step, batch, tokens)])
        self.processes.total(nats)
        with self.meter.part("optimizer"):
            set_learning_rates(self.optimizers, share_of_peak)
            norm = self._clip()
            applied = math.isfinite(norm) and math.isfinite(nats[0])
            if applied:
                for optimizer in self.optimizers:
                    self.precision.scaler.step(optimizer)
            self.precision.scaler.update()  # lowers its scale after an overflow
            if self.masters is not None:
                self.masters.publish()
            for optimizer in self.optimizers:
                optimizer.zero_grad(set_to_none=True)
        return Update(float(nats[0]), tokens, norm, applied)

    def _backward(self, step: int, batch: Batch, tokens: int) -> float:
        """Leaves gradients of the mean loss and returns this process's summed loss."""
        factor = 1 / tokens
        parts = batch.split(self.sequences_per_pass)
        losses: list[Tensor] = []
        for number, part in enumerate(parts, 1):
            if self._dropout:
                torch.manual_seed(dropout_seed(self.seed, step, part.first))
            moved = part.to(self.device)
            with self._gradients_meet(number == len(parts)):
                with self.meter.part("forward"):
                    loss = self.network(moved.inputs, moved.labels, moved.documents)
                with self.meter.part("backward"):
                    self.precision.scaler.scale(loss * factor).backward()
                    if self.masters is not None:
                        self.masters.collect()
            losses.append(loss.detach())
        return float(torch.stack(losses).cpu().double().sum())

    def _gradients_meet(self, last: bool) -> AbstractContextManager[object]:
        """DDP adds up over processes once an update; FSDP, to save memory, in every pass.

        So does DDP where each pass's gradients move to the masters.
        """
        once = isinstance(self.network, DistributedDataParallel) and self.masters is None
        if once and not last:
            return cast(DistributedDataParallel, self.network).no_sync()
        return nullcontext()

    def _clip(self) -> float:
        """Scales the gradients down to the limit; returns their global norm before.

        Processes' gradients come averaged and leave as the sum. To multiply the loss instead would
        make float16 overflow where one process does not.
        """
        for optimizer in self.optimizers:
            self.precision.scaler.unscale_(optimizer)
        sharded = any(isinstance(p, DTensor) for p in self.parameters)
        gradients = [own_part(p.grad) for p in self.parameters if p.grad is not None]
        squares = np.array([global_norm(gradients) ** 2])
        if sharded:
            self.processes.total(squares)
        norm = self.processes.count * math.sqrt(squares[0]) if squares[0] >= 0 else math.nan
        factor = float(self.processes.count)
        if self.grad_clip and norm > self.grad_clip:
            factor *= self.grad_clip / norm
        if factor != 1.0:
            torch._foreach_mul_(gradients, factor)
        return norm


def global_norm(tensors: Sequence[Tensor]) -> float:
    """Norm of all elements together, summed in float64 where the device has it.

    The order of summation then shows in no digit of a float32, so that it is the same for weights
    that are sharded.
    """
    if not tensors:
        return 0.0
    if tensors[0].device.type == "cpu":
        # In pieces that stay in the cache: for 25 million elements 5 ms instead of the 55 of
        # vector_norm (two cores), which makes a copy of all in float64.
        pieces = (piece.double() for t in tensors for piece in t.flatten().split(NORM_PIECE))
        return math.sqrt(float(torch.stack([torch.dot(piece, piece) for piece in pieces]).sum()))
    dtype = torch.float32 if tensors[0].device.type == "mps" else torch.float64
    norms = torch._foreach_norm(list(tensors), 2, dtype=dtype)
    return float(torch.linalg.vector_norm(torch.stack(norms)))


def dropout_seed(seed: int, step: int, sequence: int) -> int:
    """Of the pass that begins with ``sequence`` of ``step``: no generator's state to resume, and
    the same masks for passes of the same size, however many processes there are."""
    state = np.random.SeedSequence([seed, step, sequence]).generate_state(1, np.uint64)
    return int(state[0])
