"""Parley's recipe for a number of seconds: ``parley_recipe SECONDS [key=value …]``.

``time_to_loss`` calls it. The steps that fit are found by timing some that are then undone.
"""

import json
import sys

from stages.errors import run
from stages.train.data_order import Batch
from stages.train.meter import Meter
from stages.train.schedule import share_of_peak
from tests.benchmarks.device import DEVICE
from tests.benchmarks.parley import Sections, build_engine, settle, start_ours
from tests.benchmarks.recipe import SHAPE, Corpus, compile_now, timed

FIRST_STEPS, TIMED_STEPS = 5, 40
# In place of params.yaml's own, unless the command line says otherwise.
RECIPE: Sections = {
    "model": {
        "d_model": SHAPE.d_model,
        "num_layers": SHAPE.num_layers,
        "num_heads": SHAPE.num_heads,
        "kv_heads": SHAPE.kv_heads,
        "d_ff": SHAPE.d_ff,
        "seq_len": SHAPE.seq_len,
    },
    "train": {
        "batch_size": SHAPE.batch_size,
        "optimizer": "muon",
        "lr": 3e-3,
        "muon_lr": 1e-2,
        "compile": True,
    },
}


def main() -> None:
    budget = float(sys.argv[1])
    model_params, params = settle(RECIPE, sys.argv[2:])
    start_ours()
    corpus = Corpus.read()
    manifest = corpus.manifest
    config = model_params.config(
        manifest["vocab_size"], manifest["control_ids"], params.document_mask
    )
    order = corpus.order(
        params.sequences_per_step, params.loss_on == "assistant", params.document_mask
    )
    meter = Meter(DEVICE)
    engine = build_engine(config, params, meter)
    one_pass = order.batch(0, 0, params.sequences_per_pass(1)).to(DEVICE)
    compile_now(engine.network.of(one_pass), engine.network)

    def train(name: str, steps: int, total_steps: int) -> float:
        def update(step: int, batch: Batch) -> None:
            meter.begin_step(step)
            engine.updater(step, batch, share_of_peak(step, total_steps, params))

        return timed(name, order, steps, update)

    drawn = {name: tensor.clone() for name, tensor in engine.model.state_dict().items()}
    train("parley, first steps", FIRST_STEPS, TIMED_STEPS)
    seconds_a_step = train("parley, trial", TIMED_STEPS, TIMED_STEPS) / TIMED_STEPS
    engine.model.load_state_dict(drawn)
    for optimizer in engine.optimizers:
        optimizer.state.clear()
    if engine.masters is not None:
        engine.masters.publish()

    steps = max(1, int(budget / seconds_a_step))
    seconds = train("parley", steps, steps)
    result = {
        "bits_per_byte": corpus.bits_per_byte(engine.model),
        "seconds": seconds,
        "steps": steps,
        "tokens": steps * params.sequences_per_step * config.seq_len,
        "parameters": config.num_parameters(),
        "model": model_params.model_dump(),
        "train": params.model_dump(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    run("parley_recipe", main)
