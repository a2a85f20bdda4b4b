"""A few real steps in a process of their own: how long one takes, and what memory it needs.

What training does around its steps is done as well, once: a validation, a copy of the best
weights, and a save, for they can need more memory than a step. Tokens are random; nothing of the
project's is read or changed.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.errors import SettingsError, run

STEPS = 3
GIVEN = "PARLEY_PLAN"


@dataclass(frozen=True)
class Burst:
    """Seconds of an update, of a validation and of a save; the most memory that was resident."""

    step_seconds: float
    validation_seconds: float
    save_seconds: float
    peak_mib: int
    peak_flops: float


def measure(values: dict[str, Any], vocab_size: int) -> Burst:
    """The burst of these settings. Raises SettingsError when it fails, or memory is short."""
    done = subprocess.run(
        [sys.executable, "-m", "stages.plan.burst"],
        env={**os.environ, GIVEN: json.dumps([values, vocab_size])},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = done.stdout.splitlines()
    if done.returncode == 0 and lines:
        return Burst(**json.loads(lines[-1]))
    if done.returncode < 0 or "memory" in done.stderr.lower():
        raise SettingsError(
            "a step of these settings does not fit this machine's memory: "
            "`python -m stages.train.fit` finds a train.micro_batch_size that does"
        )
    last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
    raise SettingsError(f"the measured burst failed (--no-measure leaves it out): {last}")


def main() -> None:
    """Makes the burst that the environment describes and prints it as JSON."""
    from stages.plan.settings import settle
    from stages.runtime import peak_memory_mib, start_torch

    values, vocab_size = json.loads(os.environ[GIVEN])
    settings = settle(values)
    device = start_torch(settings.runtime)

    import torch

    from stages.scoring import LOGITS_PER_BATCH
    from stages.train import saves
    from stages.train.data_order import Batch
    from stages.train.engine import build, full_weights
    from stages.train.loop import TrainState
    from stages.train.meter import Meter, peak_flops
    from stages.train.processes import Processes

    train, seq_len = settings.train, settings.model.seq_len
    ids = {"bos": 1, "end": 2, "pad": 0}
    config = settings.model.config(vocab_size, ids, train.document_mask)
    processes, meter = Processes(), Meter(device)
    engine = build(config, train, settings.runtime, settings.seed, device, processes, meter)
    peak = peak_flops(device, engine.precision.dtype)
    torch.manual_seed(0)
    tokens = torch.randint(vocab_size, (train.sequences_per_step, seq_len + 1))
    inputs, labels = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    documents = (inputs == ids["bos"]).cumsum(1) if train.document_mask else None
    batch = Batch(inputs, labels, documents, 0)
    rows = max(1, LOGITS_PER_BATCH // (seq_len * vocab_size))
    wanted = -(-train.eval_tokens // seq_len)
    given = torch.randint(vocab_size, (min(rows, wanted), seq_len)).to(device)
    numbers = torch.zeros_like(given) if train.document_mask else None

    def validate() -> float:
        started = time.perf_counter()
        engine.model.eval()
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            passes = [
                float(engine.network(given, given, numbers, per_token=True).sum())
                for _ in range(min(2, -(-wanted // len(given))))
            ]
        engine.model.train()
        return (time.perf_counter() - started) / len(passes) * -(-wanted // len(given))

    validate()
    state = TrainState(best_val_loss=0.0, best_weights=full_weights(engine.model))
    seconds = []
    for step in range(STEPS):
        started = time.perf_counter()
        engine.updater(step, batch, 1.0)
        seconds.append(time.perf_counter() - started)
    validation = validate()
    state.best_weights = full_weights(engine.model)
    trained = saves.Trained(engine.model, engine.optimizers, engine.precision, processes)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        saves.write(Path(folder, saves.name_of(STEPS)), trained, state, {})
        save = time.perf_counter() - started
    burst = Burst(min(seconds[1:]), validation, save, peak_memory_mib(device), peak)
    print(json.dumps(vars(burst)))


if __name__ == "__main__":
    run(Path(__file__).stem, main)
