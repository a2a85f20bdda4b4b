"""The evaluation stage: models/chat + data/shards -> metrics/eval.json and metrics/samples.md."""

import time
from pathlib import Path

from stages.corpus import TokenStream, read_manifest
from stages.errors import DataError, run
from stages.evaluate.params import EvaluateParams
from stages.files import write_json, write_text
from stages.params import read
from stages.progress import say
from stages.runtime import RuntimeParams, start_torch
from stages.scratch import remove_complete
from stages.trackers import WandbParams, reopen_tracker

MODEL = Path("models/chat")
METRICS = Path("metrics/eval.json")
SAMPLES = Path("metrics/samples.md")
LOCAL = Path("metrics/evaluate.local.json")  # timings: neither output nor committed


def main() -> None:
    params = read("evaluate", EvaluateParams)
    runtime = read("runtime", RuntimeParams)
    remove_complete(runtime)
    device = start_torch(runtime)

    from model.loading import load
    from stages.evaluate.baselines import baselines
    from stages.evaluate.measures import report
    from stages.evaluate.samples import sample_rows, write_samples
    from stages.scoring import score

    started = time.perf_counter()
    manifest = read_manifest(tokenizer=MODEL)
    try:
        model, tokenizer = load(MODEL, device)
    except (FileNotFoundError, ValueError) as error:
        raise DataError(f"{error}: run `dvc repro train`") from None
    validation = TokenStream(manifest, "validation")
    totals = baselines(TokenStream(manifest, "train"), validation, manifest["vocab_size"])
    metrics = report(score(model, validation), totals, manifest["splits"]["validation"])
    page = write_samples(model, tokenizer, validation, params)
    metrics["replies_ended"] = round(page.ended / page.replies, 4) if page.replies else None
    metrics["validation_sha256"] = manifest["validation_sha256"]
    write_text(SAMPLES, "\n".join(page.lines) + "\n")
    write_json(METRICS, metrics)
    with reopen_tracker(read("wandb", WandbParams), runtime, MODEL) as tracker:
        tracker.summary({"eval": metrics})
        tracker.table("samples", ("prompt", "reply", "text"), sample_rows(page.lines))
    write_json(LOCAL, {"seconds": round(time.perf_counter() - started, 1), "device": str(device)})
    say(
        f"evaluate: {metrics['bits_per_byte']} bits per byte "
        f"(bigram {metrics['baselines']['bigram']['bits_per_byte']}), "
        f"perplexity {metrics['perplexity']}"
    )


if __name__ == "__main__":
    run("evaluate", main)
