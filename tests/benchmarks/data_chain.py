"""Download, tokenizer and shards beside the usual way: ``python -m tests.benchmarks.data_chain``.

The usual way ([usual_data.py](usual_data.py)) is that of many projects: `datasets` loads the files,
maps a function over single rows, and the ids go into one array on disk.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from stages.errors import run
from tests.benchmarks import lmsys
from tests.benchmarks.data_stages import prepare, run_stages, watch


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.data_chain")
    parser.add_argument("--conversations", type=int, default=44_000)
    parser.add_argument("--vocab-size", type=int, default=32_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source"
        characters = lmsys.write(source, options.conversations)
        print(f"{options.conversations:,} conversations, {characters:,} characters\n", flush=True)
        ours: list[float] = []
        theirs: list[float] = []
        for number in range(options.rounds):
            root = Path(folder) / f"parley-{number}"
            prepare(root, source, {"tokenizer.vocab_size": options.vocab_size})
            costs = run_stages(root)
            ours.append(sum(cost.seconds for cost in costs.values()))
            parts = ", ".join(f"{stage} {cost.seconds:.1f}" for stage, cost in costs.items())
            print(f"parley {ours[-1]:.1f} s ({parts})", flush=True)
            command = [sys.executable, "-m", "tests.benchmarks.usual_data", str(source)]
            usual = Path(folder) / f"usual-{number}"
            usual.mkdir()
            theirs.append(watch([*command, str(options.vocab_size)], usual).seconds)
            print(f"the usual way {theirs[-1]:.1f} s", flush=True)
    ratio = statistics.median(theirs) / statistics.median(ours)
    print(f"\nmedians: parley {statistics.median(ours):.1f} s, the usual way ", end="")
    print(f"{statistics.median(theirs):.1f} s: {ratio:.2f} times as fast")


if __name__ == "__main__":
    run("data_chain", main)
