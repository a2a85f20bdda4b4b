"""One contender at one shape, in a process of its own.

``speed`` calls ``measure CONTENDER SHAPE STEPS [key=value …]``, which prints a ``results.Run`` as
JSON.
"""

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict

import torch
from torch import Tensor

from stages.train.precision import Precision
from tests.benchmarks.contenders import make_step, model_of
from tests.benchmarks.device import DEVICE
from tests.benchmarks.results import OURS, Run
from tests.benchmarks.shapes import SHAPES, Shape

# Not counted. The first compiles, the second is the first without; the optimiser's state is there.
WARM_UP = 3


def batches(shape: Shape, count: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs and labels of ``count`` steps: random tokens, the same for every contender."""
    generator = torch.Generator().manual_seed(0)
    size = (shape.batch_size, shape.seq_len + 1)
    for _ in range(count):
        tokens = torch.randint(shape.vocab_size, size, generator=generator)
        yield tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


def measure(contender: str, shape: Shape, steps: int, settings: list[str]) -> Run:
    """Milliseconds of each of ``steps`` after WARM_UP others."""
    model, step = make_step(contender, shape, settings)
    milliseconds = []
    for number, (inputs, labels) in enumerate(batches(shape, WARM_UP + steps)):
        moved = inputs.to(DEVICE), labels.to(DEVICE)
        started = time.perf_counter()
        step(number, *moved)
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        milliseconds.append(1000 * (time.perf_counter() - started))
    # Only now: what they import is no part of what a peer's process holds.
    from model.flops import flops_per_token
    from stages.runtime import peak_memory_mib
    from stages.train.meter import peak_flops

    return Run(
        milliseconds=milliseconds[WARM_UP:],
        peak_mib=peak_memory_mib(DEVICE),  # before the product below takes its own
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        flops_per_token=flops_per_token(shape.config()),
        gemm=peak_flops(DEVICE, torch.bfloat16),
        machine=f"torch {torch.__version__}, {torch.get_num_threads()} threads, {DEVICE.type}",
    )


def main() -> None:
    contender, shape, steps, *settings = sys.argv[1:]
    if Precision(True, DEVICE).dtype != torch.bfloat16:
        sys.exit("this machine has no native bfloat16, so there is nothing to compare")
    if model_of(contender) == OURS:  # a peer has torch as it comes
        from tests.benchmarks.parley import start_ours

        start_ours()
    print(json.dumps(asdict(measure(contender, SHAPES[shape], int(steps), settings))))


if __name__ == "__main__":
    main()
