"""Muon: momentum whose matrix is made orthogonal, each neuron's step then brought to one size.

Muon (Jordan et al. 2024) with the constants of Polar Express (Amsel et al. 2025), normalised by
neuron as in NorMuon (Li et al. 2025), its steps of the size of AdamW's (Liu et al. 2025). torch's
own takes matrices one by one and has no such normalisation; LOG.md says what both gain.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from stages.train.processes import own_part

# a, b, c of each Newton-Schulz step X <- aX + (bXX' + c(XX')²)X: of singular values down to a
# thousandth of the largest, all end between 0.2 and 1.2, most of them near 1.
COEFFICIENTS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
MARGIN = 1.02  # bfloat16 can round a largest singular value of 1 up
RMS = 0.2  # of a step at learning rate 1: AdamW's, as measured by Liu et al.
# Elements of parameters of one shape that are computed at once. A GPU waits for each call.
TOGETHER = {"cpu": 2**24, "cuda": 2**26}
EPSILON = 1e-8


class Muon(Optimizer):
    """Muon for matrices (rows: neurons; columns: their inputs), normalised by neuron.

    A group's ``parts``, rows of each, says that its parameters hold several matrices one below
    the other (queries, keys and values): each is made orthogonal by itself. Sharded parameters are
    gathered for a step, and every process computes all of it.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        lr: float,
        weight_decay: float,
        momentum: float,
        beta2: float = 0.95,
    ) -> None:
        """``weight_decay`` is decoupled; ``beta2`` is of each neuron's mean square."""
        super().__init__(
            params,
            {
                "lr": lr,
                "weight_decay": weight_decay,
                "momentum": momentum,
                "beta2": beta2,
                "parts": (),
            },
        )

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step for every parameter that has a gradient. Takes no closure."""
        for group in self.param_groups:
            for members in _stacks([p for p in group["params"] if p.grad is not None]):
                self._step(members, group)

    def _step(self, members: Sequence[Tensor], group: dict[str, Any]) -> None:
        """A step for parameters of one shape."""
        gradients, buffers, kept = self._states(members)
        # Lists at a time: on a GPU each call for one tensor costs more than its work.
        torch._foreach_lerp_(_parts(buffers), _parts(gradients), 1 - group["momentum"])
        nesterov = torch._foreach_lerp(_parts(gradients), _parts(buffers), group["momentum"])
        updates = torch.stack(
            [_whole(_like(*pair)) for pair in zip(nesterov, gradients, strict=True)]
        )
        del nesterov  # as large as what it has become
        moments = torch.stack([_whole(moment) for moment in kept])
        for rows in _alike(group["parts"] or (updates.size(1),)):
            # (parameters x parts of these rows, rows, columns)
            step = orthogonal(torch.cat([updates[:, part] for part in rows])).float()
            moment = torch.cat([moments[:, part] for part in rows])
            moment.lerp_(step.square().mean(-1, keepdim=True), 1 - group["beta2"])
            step /= moment.sqrt() + EPSILON
            step *= RMS / (step.square().mean((-2, -1), keepdim=True).sqrt() + EPSILON)
            for i, part in enumerate(rows):
                of_part = slice(i * len(members), (i + 1) * len(members))
                updates[:, part], moments[:, part] = step[of_part], moment[of_part]
        weights = _parts(members)
        torch._foreach_copy_(_parts(kept), _parts(map(_spread_as, moments, kept)))
        torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_sub_(weights, _parts(map(_spread_as, updates, members)), alpha=group["lr"])

    def _states(self, members: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Gradients, their momentum, and the neurons' mean squares so far."""
        gradients, buffers, moments = [], [], []
        for parameter in members:
            gradient, state = parameter.grad, self.state[parameter]
            assert gradient is not None
            if not state:
                state["momentum_buffer"] = torch.zeros_like(gradient)
                state["second_moment"] = torch.zeros_like(gradient[:, :1])
            gradients.append(gradient)
            buffers.append(state["momentum_buffer"])
            moments.append(state["second_moment"])
        return gradients, buffers, moments


def _stacks(parameters: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Parameters of one shape, of TOGETHER elements at most (or one parameter) at a time: what is
    gathered and computed for them is all that a step needs beside its state."""
    alike = defaultdict(list)
    for parameter in parameters:
        alike[parameter.shape].append(parameter)
    for shape, members in alike.items():
        together = TOGETHER.get(members[0].device.type, TOGETHER["cpu"])
        count = max(1, together // shape.numel())
        for first in range(0, len(members), count):
            yield members[first : first + count]


def _alike(parts: Sequence[int]) -> list[list[slice]]:
    """The rows of each part, those of parts of one size together."""
    alike = defaultdict(list)
    first = 0
    for rows in parts:
        alike[rows].append(slice(first, first + rows))
        first += rows
    return list(alike.values())


def orthogonal(matrices: Tensor) -> Tensor:
    """About the orthogonal factor of each matrix's polar decomposition, in bfloat16.

    ``matrices`` is (count, rows, columns). Zeros stay zeros.
    """
    tall = matrices.size(-2) > matrices.size(-1)
    x = matrices.bfloat16()
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) * MARGIN + EPSILON)
    for a, b, c in COEFFICIENTS:
        square = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _parts(tensors: Iterable[Tensor]) -> list[Tensor]:
    return [own_part(tensor) for tensor in tensors]


def _like(local: Tensor, other: Tensor) -> Tensor:
    """``local`` as this process's part of a tensor laid out as ``other``."""
    if not isinstance(other, DTensor):
        return local
    return DTensor.from_local(
        local, other.device_mesh, other.placements, shape=other.shape, stride=other.stride()
    )


def _spread_as(whole: Tensor, like: Tensor) -> Tensor:
    """``whole``, which every process has, in the layout of ``like``."""
    if not isinstance(like, DTensor):
        return whole
    # No process sends: each takes its own rows.
    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)
