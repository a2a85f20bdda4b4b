"""Finds the largest ``train.micro_batch_size`` that this machine's memory holds.

``python -m stages.train.fit`` tries ``batch_size``, its half, its quarter and so on, each in a
process of its own that makes some updates of random tokens with the settings of params.yaml. It
needs the shards, for the size of their vocabulary, and changes nothing.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from stages.corpus import read_manifest
from stages.errors import SettingsError, last_line, run, was_out_of_memory
from stages.params import read
from stages.runtime import RuntimeParams, check_device, peak_memory_mib, start_torch
from stages.train.params import ModelParams, Seed, TrainParams
from stages.train.shape import config_of_start

UPDATES = 3
TRIED = "PARLEY_TRIED_SIZE"
NAME = Path(__file__).stem


def main() -> None:
    """Prints what each size takes, until one fits. Raises SettingsError if none does."""
    if TRIED in os.environ:
        attempt(int(os.environ[TRIED]))
        return
    params, runtime = read("train", TrainParams), read("runtime", RuntimeParams)
    check_device(runtime)
    read_manifest()
    print("micro_batch_size  peak memory  tokens/s")
    size = params.batch_size
    while True:
        result = attempt_apart(size)
        if result is not None:
            print(f"{size:16,}  {result['peak_mib']:7,} MiB  {result['tokens_per_second']:8,}")
            break
        print(f"{size:16,}  does not fit")
        if size % 2:
            raise SettingsError(
                f"train.batch_size {params.batch_size}: not even {size} of its sequences fit: "
                "lower model.seq_len or the model's size, or set train.activation_checkpointing "
                "to full"
            )
        size //= 2
    if size == params.batch_size:
        print("\ntrain.batch_size fits in one pass: train.micro_batch_size is not needed")
    else:
        print(f"\ndvc exp run -S train.micro_batch_size={size}")


def attempt_apart(size: int) -> dict[str, Any] | None:
    """``attempt`` in a process of its own; None when it ran out of memory."""
    done = subprocess.run(
        [sys.executable, "-m", "stages.train.fit"],
        env={**os.environ, TRIED: str(size)},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = done.stdout.splitlines()
    if done.returncode == 0 and lines:
        result: dict[str, Any] = json.loads(lines[-1])
        return result
    if was_out_of_memory(NAME, done.returncode, done.stderr):
        return None
    raise SettingsError(f"the attempt failed: {last_line(done.returncode, done.stderr)}")


def attempt(size: int) -> None:
    """Makes updates in passes of ``size`` sequences and prints what they took, as JSON."""
    runtime = read("runtime", RuntimeParams)
    device = start_torch(runtime)
    if device.type == "cpu" and sys.platform == "linux":
        # Fail here, and not by the kernel's choice of what to end.
        import resource

        limit = psutil.virtual_memory().available
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))

    import torch

    from stages.scoring import document_numbers
    from stages.train.data_order import Batch
    from stages.train.engine import build
    from stages.train.meter import Meter
    from stages.train.processes import Processes

    params = read("train", TrainParams).model_copy(update={"micro_batch_size": size})
    manifest = read_manifest()
    shape = read("model", ModelParams)
    config = config_of_start(
        shape.config(manifest["vocab_size"], manifest["control_ids"], params.document_mask),
        params.init_from,
    )
    engine = build(config, params, runtime, read("seed", Seed), device, Processes(), Meter(device))
    tokens = torch.randint(config.vocab_size, (params.batch_size, config.seq_len + 1))
    inputs, labels = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    documents = None
    if params.document_mask:
        numbers = document_numbers(inputs.numpy(), manifest["control_ids"]["bos"])
        documents = torch.from_numpy(numbers)
    seconds = 0.0
    for step in range(UPDATES):
        started = time.perf_counter()
        engine.updater(step, Batch(inputs, labels, documents, 0), 1.0)
        seconds = time.perf_counter() - started
    result = {
        "peak_mib": peak_memory_mib(device),
        "tokens_per_second": round(inputs.numel() / seconds),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    run(NAME, main)
