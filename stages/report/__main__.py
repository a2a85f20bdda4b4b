"""The report stage: what all stages have left -> metrics/report.md, one page that says it all."""

from pathlib import Path
from typing import Any

from stages.errors import DataError, run
from stages.files import sha256_file, write_text
from stages.params import read
from stages.progress import say
from stages.report.inputs import MODEL, WEIGHTS, read_inputs
from stages.report.page import write_report

REPORT = Path("metrics/report.md")

# The schemas are the business of the stages that use the values; here they are only shown.
Shown = dict[str, Any]


def main() -> None:
    params = {
        "seed": read("seed", int),
        "data": read("data", Shown),
        "tokenizer": read("tokenizer", Shown),
        "model": read("model", Shown),
        "train": read("train", Shown),
        "evaluate": read("evaluate", Shown),
    }
    weights = MODEL / WEIGHTS
    if not weights.is_file():
        raise DataError(f"{weights} not found: run `dvc repro`")
    text = write_report(read_inputs(sha256_file(weights)), params)
    write_text(REPORT, text)
    say(f"report: {REPORT}")


if __name__ == "__main__":
    run("report", main)
