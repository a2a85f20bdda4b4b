"""Parley's recipe for a number of seconds: ``parley_recipe SECONDS [eager] [key=value …]``.

``time_to_loss`` calls it. How many steps fit, and so how far the schedule has come, is told anew at
each step by the pace so far: at the end, by the clock.
"""

import json
import sys
import time

from stages.errors import run
from stages.progress import Progress
from stages.train.meter import Meter
from stages.train.prefetch import Prefetcher
from stages.train.schedule import share_of_peak
from tests.benchmarks.device import DEVICE
from tests.benchmarks.parley import Sections, build_engine, settle, start_ours
from tests.benchmarks.recipe import SHAPE, Corpus, compile_now

WITHOUT_END = 10**9  # steps; the clock ends them
# In place of params.yaml's own, unless the command line says otherwise (or `eager`: none of it).
RECIPE: Sections = {
    "model": {
        "d_model": SHAPE.d_model,
        "num_layers": SHAPE.num_layers,
        "num_heads": SHAPE.num_heads,
        "kv_heads": SHAPE.kv_heads,
        "d_ff": SHAPE.d_ff,
        "seq_len": SHAPE.seq_len,
        "qk_norm": True,
    },
    "train": {
        "compile": True,
    },
}


def main() -> None:
    budget = float(sys.argv[1])
    eager = sys.argv[2:3] == ["eager"]
    model_params, params = settle({} if eager else RECIPE, sys.argv[3 if eager else 2 :])
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
    nats = engine.network(one_pass.inputs, one_pass.labels, one_pass.documents)
    compile_now(nats, engine.network)

    step, gone = 0, 0.0
    with (
        Prefetcher(order.batch, WITHOUT_END) as read,
        Progress("parley", "step", scale=False) as progress,
    ):
        started = time.perf_counter()
        while gone < budget:
            steps = max(step + 1, round(budget / gone * step)) if step else WITHOUT_END
            meter.begin_step(step)
            engine.updater(step, read(step), share_of_peak(step, steps, params))
            step += 1
            progress.update()
            gone = time.perf_counter() - started
    result = {
        "bits_per_byte": corpus.bits_per_byte(engine.model),
        "seconds": gone,
        "steps": step,
        "tokens": step * params.sequences_per_step * config.seq_len,
        "parameters": config.num_parameters(),
        "model": model_params.model_dump(),
        "train": params.model_dump(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    run("parley_recipe", main)
