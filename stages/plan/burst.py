"""A few real steps in a process of their own: how long one takes, and what memory it needs.

Training's own loop runs, on random tokens, with its validations, copies of the best weights and
saves (to a temporary folder), for these can need more memory than a step. Nothing of the project's
is changed, and none of its data is read.
"""

import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.corpus import Ids, Roles
from stages.errors import SettingsError, last_line, run, was_out_of_memory
from stages.plan.settings import CONTROL_IDS, settle

NAME = "burst"
STEPS, VALIDATED = 4, 2  # validations before, amid and after
VALIDATION_PASSES = 5
DOCUMENT = 500
GIVEN = "PARLEY_PLAN"


@dataclass(frozen=True)
class Burst:
    """Seconds of an update and of a validation; the most memory that was resident, or taken of a
    GPU; FLOP/s that an MFU is a share of."""

    step_seconds: float
    validation_seconds: float
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
    if was_out_of_memory(NAME, done.returncode, done.stderr):
        raise SettingsError(
            "a step of these settings does not fit this machine's memory: "
            "`python -m stages.train.fit` finds a train.micro_batch_size that does"
        )
    last = last_line(done.returncode, done.stderr)
    raise SettingsError(f"the measured burst failed (--no-measure leaves it out): {last}")


def main() -> None:
    """Makes the burst that the environment describes and prints it as JSON."""
    from stages.runtime import peak_memory_mib, start_torch
    from stages.trackers import NoTracker

    values, vocab_size = json.loads(os.environ[GIVEN])
    settings = settle(values)
    device = start_torch(settings.runtime)

    import torch
    from safetensors.torch import save_file

    from model.hugging_face import to_hugging_face
    from stages.scoring import LOGITS_PER_BATCH, score
    from stages.train import saves
    from stages.train.data_order import Batch
    from stages.train.engine import build, full_weights
    from stages.train.loop import Training, TrainState, train
    from stages.train.meter import Meter, peak_flops
    from stages.train.processes import Processes
    from stages.train.update import Update

    params, seq_len = settings.train, settings.model.seq_len
    config = settings.config(vocab_size)
    processes, meter = Processes(), Meter(device)
    engine = build(config, params, settings.runtime, settings.seed, device, processes, meter)
    peak = peak_flops(device, engine.precision.dtype)

    # Two passes show what more of them need.
    sequences = min(params.sequences_per_step, 2 * params.sequences_per_pass(1))
    tokens = torch.from_numpy(_ids(vocab_size, sequences * (seq_len + 1))).view(sequences, -1)
    inputs, labels = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    documents = (inputs == CONTROL_IDS["bos"]).cumsum(1) if params.document_mask else None
    batch = Batch(inputs, labels, documents, 0)
    seconds: list[float] = []

    def update(step: int, batch: Batch, share: float) -> Update:
        started = time.perf_counter()
        done = engine.updater(step, batch, share)
        seconds.append(time.perf_counter() - started)
        return done

    at_once = seq_len * max(1, LOGITS_PER_BATCH // (seq_len * vocab_size))
    validated = min(params.eval_tokens, VALIDATION_PASSES * at_once)
    stream = _Stream(_ids(vocab_size, validated + 1))

    def validate() -> float:
        with torch.compiler.set_stance("force_eager"):
            nats_of = functools.partial(engine.network, per_token=True)
            return score(engine.network.model, stream, None, nats_of).loss  # type: ignore[arg-type]

    trained = saves.Trained(engine.model, engine.optimizers, engine.precision, processes)
    with tempfile.TemporaryDirectory() as folder:

        def save(state: TrainState, improved: bool = True) -> None:
            if state.step % VALIDATED == 0:
                saves.write(Path(folder, saves.name_of(state.step)), trained, state, {})

        state = TrainState()
        train(
            Training(
                read=lambda step: batch,
                update=update,
                validate=validate,
                weights=lambda: full_weights(engine.model),
                tracker=NoTracker(),
                meter=meter,
                after_step=save,
            ),
            params.model_copy(update={"eval_interval": VALIDATED}),
            inputs.numel(),
            STEPS,
            state,
        )
        save(state)
        save_file(to_hugging_face(state.best_weights, config), Path(folder, "model.safetensors"))
    burst = Burst(
        step_seconds=min(seconds[1:]) * params.sequences_per_step / sequences,
        validation_seconds=meter.seconds["validation"] / 3 * params.eval_tokens / validated,
        peak_mib=peak_memory_mib(device),
        peak_flops=peak,
    )
    print(json.dumps(vars(burst)))


def _ids(vocab_size: int, count: int) -> Ids:
    """Random tokens, with the beginning of a document now and then."""
    ids = np.random.default_rng(0).integers(vocab_size, size=count)
    ids[::DOCUMENT] = CONTROL_IDS["bos"]
    return ids


class _Stream:
    """Tokens in memory in the form of ``stages.corpus.TokenStream``."""

    roles = Roles(CONTROL_IDS["bos"], CONTROL_IDS["end"], 5, (3, 4, 5, 6))

    def __init__(self, ids: Ids) -> None:
        self._ids = ids

    def __len__(self) -> int:
        return len(self._ids)

    def read(self, start: int, stop: int) -> Ids:
        return self._ids[start:stop]

    def assistant_mask(self, start: int, ids: Ids) -> NDArray[np.bool_]:
        return np.ones(len(ids), np.bool_)


if __name__ == "__main__":
    run(NAME, main)
