"""Weights as int8, for products that read memory more than they multiply."""

import torch
from torch import Tensor


def to_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """``weight`` (outputs, inputs) as int8, and a float32 factor for each output.

    Each output's largest weight becomes 127: the error is at most a 254th of it. A row of zeros has
    factor 0.
    """
    weight = weight.float()
    scales = weight.abs().amax(dim=1) / 127
    integers = (weight / scales.clamp(min=torch.finfo(torch.float32).tiny)[:, None]).round()
    return integers.clamp(-127, 127).to(torch.int8), scales


def rounded_to_int8(weight: Tensor) -> Tensor:
    """What int8 makes of ``weight`` (outputs, inputs), in float32."""
    integers, scales = to_int8(weight)
    return integers.float() * scales[:, None]
