"""Mixed precision: which dtype the matrix products run in.

``train.mixed_precision: true`` takes bfloat16 where the device multiplies it natively, float16 with
a gradient scaler (Micikevicius et al. 2018) on NVIDIA GPUs that have only that, and float32
elsewhere: a CPU without bfloat16 emulates it, measured 400 times slower than float32 on AVX2.
``bf16`` and ``fp16`` insist. Weights, optimiser state and the loss stay float32.
"""

from typing import Literal

import torch

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """The dtype of a run's activations and products, and its gradient scaler."""

    def __init__(self, setting: bool | Literal["bf16", "fp16"], device: torch.device) -> None:
        if setting is True:
            self.dtype = _best_dtype(device)
        elif setting is False:
            self.dtype = torch.float32
        else:
            self.dtype = DTYPES[setting]
        self.device = device
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)

    @property
    def name(self) -> str:
        """``float32``, ``bfloat16`` or ``float16``."""
        return str(self.dtype).removeprefix("torch.")


def _best_dtype(device: torch.device) -> torch.dtype:
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float16
    if device.type == "cpu" and _cpu_has_bf16():
        return torch.bfloat16
    return torch.float32


def _cpu_has_bf16() -> bool:
    """Whether the CPU has bfloat16 products, as the kernel library judges it."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
