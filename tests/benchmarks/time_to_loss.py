"""Loss reached in the same time: ``python -m tests.benchmarks.time_to_loss`` (README.md).

nanoGPT's recipe trains first, for a number of steps; Parley then gets as many seconds. Both read
the same data in shape S, and the same function measures both. Both are compiled, which counts for
neither; or, with ``--eager``, neither is, and Parley's settings are all params.yaml's own.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from stages.corpus import MANIFEST_FILE, SHARDS
from tests.benchmarks.children import ChildFailed, run_child
from tests.benchmarks.contenders import missing

BEST_LR = 6e-3  # of 1e-3, 3e-3 and 6e-3, at 1,100 steps


def show(name: str, result: dict[str, Any]) -> None:
    print(
        f"| {name} | {result['bits_per_byte']:.4f} | {result['seconds']:,.1f} "
        f"| {result['steps']:,} | {result['tokens']:,} | {result['parameters']:,} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.time_to_loss")
    parser.add_argument(
        "settings",
        nargs="*",
        metavar="key=value",
        help="of Parley, as `dvc exp run -S` names them: train.lr=4e-3 model.qk_norm=true",
    )
    parser.add_argument("--steps", type=int, default=1100, help="nanoGPT's")
    parser.add_argument("--lr", type=float, default=BEST_LR, help="nanoGPT's")
    parser.add_argument("--eager", action="store_true", help="without compilation")
    parser.add_argument("--seconds", type=float, help="Parley alone, for so long")
    parser.add_argument("--json", type=Path, help="write the results here")
    options = parser.parse_intermixed_args()
    if not (SHARDS / MANIFEST_FILE).is_file():
        sys.exit("time_to_loss: there are no shards: run `dvc repro shards` in this folder")
    if options.seconds is None and (
        install := missing("nanogpt-eager" if options.eager else "nanogpt-compiled")
    ):
        sys.exit(f"time_to_loss: nanoGPT's model is missing: {install}")

    results: dict[str, dict[str, Any]] = {}
    seconds = options.seconds
    how = ("eager",) if options.eager else ()
    print("| recipe | bits per byte | seconds | steps | tokens | parameters |")
    print("|---|---:|---:|---:|---:|---:|", flush=True)
    try:
        if seconds is None:
            theirs = run_child("tests.benchmarks.nanogpt_recipe", options.steps, options.lr, *how)
            results["nanogpt"] = theirs
            show("nanogpt", theirs)
            seconds = theirs["seconds"]
        ours = run_child("tests.benchmarks.parley_recipe", seconds, *how, *options.settings)
    except ChildFailed as failure:
        sys.exit(f"time_to_loss: {failure}")
    results["parley"] = ours
    show("parley", ours)
    if "nanogpt" in results:
        below = 1 - ours["bits_per_byte"] / results["nanogpt"]["bits_per_byte"]
        print(f"\nParley's is {below:.1%} below nanoGPT's", end="")
        print(f", in {ours['seconds'] / seconds:.1%} of its seconds.")
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
