"""Memory and time of the data stages as a corpus grows: ``python -m tests.benchmarks.scale``."""

import argparse
import json
import shutil
import tempfile
from pathlib import Path

from stages.errors import run
from tests.benchmarks import lmsys
from tests.benchmarks.data_stages import prepare, run_stages


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.scale")
    parser.add_argument("--conversations", type=int, nargs="+", default=[50_000, 200_000])
    parser.add_argument("--vocab-size", type=int, default=32_000)
    options = parser.parse_args()
    print("| conversations | characters | stage | seconds | conversations/s | peak MiB |")
    print("|---:|---:|---|---:|---:|---:|", flush=True)
    for conversations in options.conversations:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            characters = lmsys.write(root / "source", conversations)
            prepare(root, root / "source", {"tokenizer.vocab_size": options.vocab_size})
            for stage, cost in run_stages(root).items():
                print(
                    f"| {conversations:,} | {characters:,} | {stage} | {cost.seconds:,.1f} "
                    f"| {conversations / cost.seconds:,.0f} | {cost.peak_mib:,.0f} |",
                    flush=True,
                )
            shards = json.loads((root / "metrics/shards.json").read_text(encoding="utf-8"))
            train = shards["train"]
            print(
                f"\n{train['tokens']:,} tokens for training, median {train['median_length']:,}, "
                f"longest {train['longest']:,}\n",
                flush=True,
            )
            shutil.rmtree(root / "data")


if __name__ == "__main__":
    run("scale", main)
