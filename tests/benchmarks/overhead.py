"""What training costs beside its steps: ``python -m tests.benchmarks.overhead`` (README.md)."""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from stages.errors import run
from stages.train.data_order import Batch
from stages.train.meter import Meter
from stages.train.prefetch import Prefetcher
from tests.benchmarks.device import DEVICE
from tests.benchmarks.parley import build_engine, settle, start_ours
from tests.benchmarks.recipe import SHAPE, Corpus

WARM_UP = 3


def data_waits(steps: int) -> dict[str, float]:
    """Median milliseconds that a step of shape S takes, and waits for its batch, both ways."""
    start_ours()
    order = Corpus.read().order(SHAPE.batch_size)
    _, params = settle({"train": {"batch_size": SHAPE.batch_size}}, [])
    meter = Meter(DEVICE)
    engine = build_engine(SHAPE.config(), params, meter)

    def waits(read: Callable[[int], Batch], among: range) -> tuple[list[float], list[float]]:
        waited, whole = [], []
        for step in among:
            started = time.perf_counter()
            batch = read(step)
            waited.append(1000 * (time.perf_counter() - started))
            meter.begin_step(step)
            engine.updater(step, batch, 1.0)
            whole.append(1000 * (time.perf_counter() - started))
        return waited, whole

    waits(order.batch, range(WARM_UP))
    without, whole = waits(order.batch, range(steps))
    with Prefetcher(order.batch, 2 * steps) as read:
        ahead, _ = waits(read, range(steps, 2 * steps))
    return {"step": median(whole), "without": median(without), "with": median(ahead)}


def shares(local: dict[str, Any], metrics: dict[str, Any]) -> dict[str, float]:
    """Shares of a run's time, from its two files: validation, saving, and all that is no step.

    The last is logging, the progress bar and the history. The run must not have been resumed: its
    times are those since it began.
    """
    in_steps = metrics["steps"] * sum(ms for part, ms in local.items() if part.endswith("_ms"))
    validation, save = local.get("validation_seconds", 0.0), local.get("save_seconds", 0.0)
    rest = local["seconds"] - in_steps / 1000 - validation - save
    parts = {"validation": validation, "saving": save, "logging and the rest": rest}
    return {name: seconds / local["seconds"] for name, seconds in parts.items()}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.overhead")
    parser.add_argument("--steps", type=int, default=50, help="timed with and without Prefetcher")
    parser.add_argument("--metrics", type=Path, default=Path("metrics"), help="of a run to read")
    options = parser.parse_args()

    waits = data_waits(options.steps)
    print(f"A step at S takes {waits['step']:,.1f} ms. It waits for its batch")
    print(f"{waits['without']:.2f} ms when it reads it, {waits['with']:.2f} ms with Prefetcher.\n")
    try:
        local = json.loads((options.metrics / "train.local.json").read_text(encoding="utf-8"))
        metrics = json.loads((options.metrics / "train.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        sys.exit(f"overhead: {error.filename} is missing: run `dvc repro train` first")
    found = shares(local, metrics)
    print(f"Of the {local['seconds']:,.0f} seconds of the training in {options.metrics}:")
    for name, share in found.items():
        print(f"  {name}: {share:.2%}")
    print(f"  together: {sum(found.values()):.2%}")


if __name__ == "__main__":
    run("overhead", main)
