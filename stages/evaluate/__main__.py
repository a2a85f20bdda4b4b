"""The evaluation stage: models/chat + validation set -> metrics/eval.json, tables and pages."""

import time
from pathlib import Path
from typing import Any

from stages.conversations import CONVERSATIONS, read_split
from stages.corpus import TokenStream, read_manifest
from stages.errors import DataError, run
from stages.evaluate.params import EvaluateParams
from stages.files import sha256_file, write_json, write_text
from stages.params import read
from stages.progress import say
from stages.runtime import RuntimeParams, start_torch
from stages.scratch import remove_complete
from stages.trackers import WandbParams, reopen_tracker

MODEL = Path("models/chat")
METRICS = Path("metrics/eval.json")
SAMPLES = Path("metrics/samples.md")
SAMPLES_TABLE = Path("metrics/samples.json")
CONVERSATIONS_PAGE = Path("metrics/conversations.html")
TABLES = Path("metrics")
LOCAL = Path("metrics/evaluate.local.json")  # timings: neither output nor committed


def main() -> None:
    params = read("evaluate", EvaluateParams)
    runtime = read("runtime", RuntimeParams)
    remove_complete(runtime)
    device = start_torch(runtime)

    from model.loading import load
    from stages.evaluate.baselines import baselines
    from stages.evaluate.breakdown import ByContext, ByRole, ByTurn, Calibration, table
    from stages.evaluate.compression import compressed_bits_per_byte
    from stages.evaluate.contamination import contamination
    from stages.evaluate.continuations import continue_openings
    from stages.evaluate.extremes import Extremes
    from stages.evaluate.measures import bits_per_byte, report, share
    from stages.evaluate.page import write_page
    from stages.evaluate.samples import side_by_side, write_samples
    from stages.evaluate.trace import trace
    from stages.evaluate.vocabulary import token_sizes, token_texts

    started = time.perf_counter()
    manifest = read_manifest(tokenizer=MODEL)
    if sha256_file(CONVERSATIONS / "validation.jsonl") != manifest["validation_sha256"]:
        raise DataError(f"{CONVERSATIONS} is not what data/shards was made of: run `dvc repro`")
    try:
        model, tokenizer = load(MODEL, device)
    except (FileNotFoundError, ValueError) as error:
        raise DataError(f"{error}: run `dvc repro train`") from None
    validation = TokenStream(manifest, "validation")
    totals = baselines(TokenStream(manifest, "train"), validation, manifest["vocab_size"])
    compressed = compressed_bits_per_byte(read_split("validation"))
    overlap = contamination(read_split("train"), read_split("validation"))

    texts = token_texts(tokenizer, manifest["vocab_size"])
    sizes = token_sizes(texts)
    by_context, by_turn = ByContext(sizes), ByTurn(sizes)
    by_role, calibration = ByRole(validation.roles, sizes), Calibration()
    extremes = Extremes(sizes, overlap.clean)
    score = trace(model, validation, [by_context, by_turn, by_role, calibration, extremes])
    hardest, easiest = extremes.result()
    reliability = calibration.result()
    replies = continue_openings(model, tokenizer, validation, params)
    page = write_samples(model, tokenizer, validation, params)

    metrics: dict[str, Any] = report(score, totals, manifest["splits"]["validation"])
    metrics["accuracy"] = reliability.accuracy
    metrics["calibration_error"] = reliability.calibration_error
    metrics["baselines"]["bzip2"] = {"bits_per_byte": compressed["bzip2"]}
    metrics["contamination"] = {
        "ngrams": share(overlap.ngrams),
        "conversations": share(overlap.conversations),
        "clean_bits_per_byte": (
            bits_per_byte(extremes.clean_nats, extremes.clean_bytes)
            if extremes.clean_bytes
            else None
        ),
    }
    metrics["replies"] = next(
        ({k: row[k] for k in ("ended", "mean_words", "repetition", "distinct_2")}
         for row in replies if row["who"] == "sampled"), None,
    )  # fmt: skip
    metrics["validation_sha256"] = manifest["validation_sha256"]

    for name, rows in (
        ("context", by_context.rows()),
        ("turns", by_turn.rows()),
        ("roles", by_role.rows()),
        ("calibration", reliability.rows),
        ("replies", replies),
    ):
        write_text(TABLES / f"{name}.csv", table(rows))
    write_text(CONVERSATIONS_PAGE, write_page(hardest, easiest, tokenizer, texts))
    write_text(SAMPLES, "\n".join(page.lines) + "\n")
    write_json(SAMPLES_TABLE, side_by_side(page.table))
    write_json(METRICS, metrics)
    with reopen_tracker(read("wandb", WandbParams), runtime, MODEL) as tracker:
        tracker.summary({"eval": metrics})
        columns = ("prompt", "kind", "reply")
        tracker.table("samples", columns, [tuple(row[c] for c in columns) for row in page.table])
    write_json(
        LOCAL,
        {
            "seconds": round(time.perf_counter() - started, 1),
            "device": str(device),
            "zlib_bits_per_byte": compressed["zlib"],
        },
    )
    say(
        f"evaluate: {metrics['bits_per_byte']} bits per byte "
        f"(bigram {metrics['baselines']['bigram']['bits_per_byte']}, zlib {compressed['zlib']}), "
        f"perplexity {metrics['perplexity']}"
    )


if __name__ == "__main__":
    run("evaluate", main)
