"""Where the time goes, and how much of the machine's peak the products reach."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from stages.train.precision import Precision

# Dense peak in FLOP/s of bfloat16 with float32 sums, from the makers' data sheets.
GPU_PEAKS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10G": 125e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
    "T4": 65e12,
    "V100": 125e12,
}
GEMM_SIZE, GEMM_RUNS, GEMM_SECONDS = 1536, 4, 0.2
# On a GPU the parts of a step are told apart only by waiting for it, which costs time.
STEPS_BETWEEN_MEASURED = 16


class Meter:
    """Seconds by part of the work; parts of a step are ``data, forward, backward, optimizer``."""

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = {}
        self.measured_steps = 0
        self._cuda = device.type == "cuda"
        self._measures = True

    def begin_step(self, step: int) -> None:
        """On a GPU only some steps are measured; elsewhere all."""
        self._measures = not self._cuda or step % STEPS_BETWEEN_MEASURED == 0
        self.measured_steps += self._measures

    @contextmanager
    def part(self, name: str, always: bool = False) -> Iterator[None]:
        """Counts the time of the block to ``name``; ``always`` outside of steps."""
        if not (self._measures or always):
            yield
            return
        started = self._now()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + self._now() - started

    def _now(self) -> float:
        if self._cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    def report(self) -> dict[str, float]:
        """Milliseconds a step of each of its parts; seconds in all of ``validation`` and
        ``save``."""
        steps = max(1, self.measured_steps)
        report = {}
        for name, seconds in self.seconds.items():
            if name in ("validation", "save"):
                report[f"{name}_seconds"] = round(seconds, 2)
            else:
                report[f"{name}_ms"] = round(1000 * seconds / steps, 2)
        return report


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s that a model FLOPs utilisation (MFU) is a share of.

    A GPU's data sheet where it is known, else what one large matrix product reaches here.
    """
    if device.type == "cuda" and dtype != torch.float32:
        name = torch.cuda.get_device_name(device)
        for known, peak in GPU_PEAKS.items():
            if known in name:
                return peak
    if device.type == "cpu" and dtype != Precision(True, device).dtype:
        dtype = torch.float32  # what is emulated is slower still, and takes minutes to measure
    generator = torch.Generator().manual_seed(0)  # leaves the run's own generator alone
    matrix = torch.rand(GEMM_SIZE, GEMM_SIZE, generator=generator).to(device, dtype)
    best = float("inf")
    runs, began = 0, time.perf_counter()
    # Beside other work few products run undisturbed, and the best of them is wanted.
    while runs < GEMM_RUNS or time.perf_counter() - began < GEMM_SECONDS:
        runs += 1
        started = time.perf_counter()
        float((matrix @ matrix)[0, 0])  # waits for the device
        best = min(best, time.perf_counter() - started)
    return float(2 * GEMM_SIZE**3 / best)
