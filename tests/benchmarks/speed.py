"""Training speed beside the peers': ``python -m tests.benchmarks.speed`` (README.md).

Every run of a contender is a process of its own; rounds are taken in turn (A B C A B C …), so that
what disturbs the machine for a while disturbs all.
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from tests.benchmarks.children import ChildFailed, run_child
from tests.benchmarks.contenders import CONTENDERS, missing
from tests.benchmarks.results import Run, gemm_of, table
from tests.benchmarks.shapes import SHAPES

Runs = dict[str, list[Run]]


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def measure_all(shape: str, contenders: list[str], options: argparse.Namespace) -> Runs:
    """All rounds at one shape. A contender that fails is named in one line and left out."""
    steps = options.steps or SHAPES[shape].steps
    runs: Runs = {name: [] for name in contenders}
    for turn in range(1, options.rounds + 1):
        for name in list(runs):
            try:
                result = run_child(
                    "tests.benchmarks.measure",
                    *(name, shape, steps, *options.parley),
                    default_allocator=options.default_allocator,
                    quiet=True,
                )
            except ChildFailed as failure:
                say(f"speed: {name} is left out at {shape}: {failure}")
                del runs[name]
                continue
            run = Run(**result)
            runs[name].append(run)
            fastest = min(run.milliseconds)
            say(f"speed: {shape}, round {turn} of {options.rounds}: {name} {fastest:,.1f} ms")
    return runs


def about(runs: Runs, default_allocator: bool) -> str:
    """One sentence on how and where the runs were."""
    rounds = max(len(of_one) for of_one in runs.values())
    machine = next(iter(runs.values()))[0].machine
    allocator = "the default allocator" if default_allocator else "freed memory kept"
    gemm = gemm_of(runs) / 1e9
    return (
        f"{rounds} round{'s' if rounds > 1 else ''}, {machine}, {allocator}; "
        f"bfloat16 GEMM {gemm:,.0f} GFLOP/s."
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.speed")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, help="counted steps of a run (S 20, M 10, D 5)")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=CONTENDERS)
    parser.add_argument(
        "--default-allocator",
        action="store_true",
        help="leave the peers with the allocator that they come with; Parley sets its own",
    )
    parser.add_argument(
        "--parley",
        nargs="+",
        default=[],
        metavar="key=value",
        help="settings of Parley beside those of the benchmark: train.bf16_weights=true",
    )
    parser.add_argument("--json", type=Path, help="write every step's time here")
    options = parser.parse_args()

    present = []
    for name in options.contenders:
        if (install := missing(name)) is None:
            present.append(name)
        else:
            say(f"speed: {name} is left out: {install}")
    results: dict[str, Runs] = {}
    for name in options.shapes:
        runs = measure_all(name, present, options)
        if not runs:
            sys.exit(1)
        results[name] = runs
        print(f"\n**{name}**: {SHAPES[name]}. {about(runs, options.default_allocator)}\n")
        print(table(runs, SHAPES[name].tokens), flush=True)
    if options.json:
        raw = {
            shape: {name: [asdict(run) for run in of_one] for name, of_one in runs.items()}
            for shape, runs in results.items()
        }
        options.json.write_text(json.dumps(raw, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
