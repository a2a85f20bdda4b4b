"""Speed of generation beside the peers': ``python -m tests.benchmarks.generation`` (README.md).

Every run of a contender is a process of its own; rounds are taken in turn (A B C A B C …), so that
what disturbs the machine for a while disturbs all.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from tests.benchmarks.children import ChildFailed, run_child
from tests.benchmarks.contenders import missing
from tests.benchmarks.shapes import SHAPES

CASES = {"S": (1, 16), "D": (1,)}  # batches of each shape
PEERS = tuple(
    f"{name}-{dtype}"
    for name in ("plain", "nanogpt", "litgpt", "transformers-dynamic", "transformers-static")
    for dtype in ("fp32", "bf16")
)
OURS = (
    *(f"parley-native-{weights}" for weights in ("fp32", "bf16", "int8")),
    *(f"parley-torch-{weights}" for weights in ("fp32", "bf16")),
)
# Products this small are slower on several threads, whoever computes them.
THREADS = {"S": "1", "D": ""}
BYTES = {"fp32": 4, "bf16": 2, "int8": 1}
NEW = 128  # tokens of a reply, as in generation_measure

FIRST_TOKEN = """
from model.engine import Engine, Sampling
engine = Engine.open({folder!r}, slots=1)
prompt = engine.tokenizer.encode_chat([{{"role": "user", "content": "Hi!"}}], True)
next(engine.stream(prompt, Sampling(seed=1)))
print(engine.backend)
"""


@dataclass
class Result:
    """All runs of one contender in one case."""

    seconds: list[list[float]] = field(default_factory=list)  # of each round
    greedy: list[list[int]] = field(default_factory=list)


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def measure_shape(
    shape: str, contenders: Sequence[str], rounds: int, repeats: int, threads: str
) -> tuple[dict[int, dict[str, Result]], float]:
    """Results by batch and contender, and the best speed of reading memory (bytes/s) meanwhile."""
    batches = CASES[shape]
    results: dict[int, dict[str, Result]] = {batch: {} for batch in batches}
    left, speed = list(contenders), 0.0
    if threads:
        os.environ["OMP_NUM_THREADS"] = threads
    for turn in range(1, rounds + 1):
        measured = run_child("tests.benchmarks.generation_measure", "memory", shape, 1, quiet=True)
        speed = max(speed, measured["memory"])
        for name in list(left):
            try:
                made = run_child(
                    "tests.benchmarks.generation_measure",
                    *(name, shape, repeats, *batches),
                    quiet=True,
                )
            except ChildFailed as failure:
                say(f"generation: {name} is left out at {shape}: {failure}")
                left.remove(name)
                for batch in batches:
                    results[batch].pop(name, None)
                continue
            for batch in batches:
                result = results[batch].setdefault(name, Result())
                result.seconds.append(made[str(batch)]["seconds"])
                result.greedy = made[str(batch)]["greedy"]
            said = ", ".join(
                f"{batch * NEW / min(results[batch][name].seconds[-1]):,.0f}" for batch in batches
            )
            say(f"generation: {shape}, round {turn} of {rounds}: {name} {said} tokens/s")
    return results, speed


def same_tokens(one: Sequence[Sequence[int]], other: Sequence[Sequence[int]]) -> float:
    """Share of greedy tokens up to the first that differs, over all rows."""
    alike = total = 0
    for a, b in zip(one, other, strict=True):
        differs = (n for n, pair in enumerate(zip(a, b, strict=True)) if pair[0] != pair[1])
        alike += next(differs, len(a))
        total += len(a)
    return alike / total


def table(results: Mapping[str, Result], batch: int, parameters: int, speed: float) -> str:
    """One case in Markdown: speeds are medians of the rounds' medians, and the fastest run."""
    lines = [
        "| contender | tokens/s: median (fastest) | to the best peer | share of the limit "
        "| greedy tokens as the first |",
        "|---|---:|---:|---:|---:|",
    ]
    times = {
        name: median(median(seconds) for seconds in result.seconds)
        for name, result in results.items()
    }
    fastest = {
        name: min(min(seconds) for seconds in result.seconds) for name, result in results.items()
    }
    best = min((time for name, time in times.items() if name in PEERS), default=None)
    # Uncached, or (where that is left out) a peer on its cache.
    reference = next(
        (
            result
            for name, result in results.items()
            if name in PEERS and name.endswith("fp32") and not name.startswith("nanogpt")
        ),
        None,
    )
    for name, seconds in times.items():
        tokens = batch * NEW / seconds
        to_peer = f"{best / seconds:.2f}" if best else ""
        share = ""
        if batch == 1 and name.startswith("parley"):
            limit = speed / (BYTES[name.rpartition("-")[2]] * parameters)
            share = f"{tokens / limit:.0%} of {limit:,.0f}"
        greedy = ""
        if reference and not name.startswith("nanogpt"):
            greedy = f"{same_tokens(reference.greedy, results[name].greedy):.0%}"
        lines.append(
            f"| {name} | {tokens:,.0f} ({batch * NEW / fastest[name]:,.0f}) | {to_peer} "
            f"| {share} | {greedy} |"
        )
    return "\n".join(lines)


def first_token(folder: str, cache: str) -> tuple[float, float, str]:
    """Seconds from a process's start to its first token, of them all processors' own, and what
    computed it.
    """
    before, started = os.times(), time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", FIRST_TOKEN.format(folder=folder)],
        env={**os.environ, "XDG_CACHE_HOME": cache},
        capture_output=True,
        text=True,
        check=True,
    )
    seconds, after = time.perf_counter() - started, os.times()
    own = after.children_user + after.children_system
    own -= before.children_user + before.children_system
    return seconds, own, done.stdout.strip()


def write_model(folder: Path) -> None:
    """A folder of shape S, for want of a trained one."""
    from model.saving import save_model
    from model.tokenizer import ChatTokenizer
    from model.transformer import Transformer

    tokenizer = ChatTokenizer.train((f"{a} {b}" for a in range(99) for b in range(99)), 300)
    tokenizer.save(folder)
    config = SHAPES["S"].config()
    save_model(folder, config, Transformer(config).state_dict(), folder, tokenizer.sha256)


def say_first_token(trained: Path) -> None:
    """The first token of a one-shot process, before and after the kernel was compiled."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = trained
        if not trained.is_dir():
            folder = Path(scratch, "model")
            folder.mkdir()
            write_model(folder)
        cold, cold_own, backend = first_token(str(folder), scratch)
        warm, warm_own, _ = min(first_token(str(folder), scratch) for _ in range(3))
    print(
        f"\nFirst token of a process ({backend}): {cold:.1f} s on first use, which compiles the "
        f"kernel ({cold_own:.1f} s of processor time), {warm:.1f} s later ({warm_own:.1f} s)."
    )


def say_losses(trained: Path) -> None:
    """Bits per byte of a trained model on its validation set, with weights in each format."""
    import torch

    from model.loading import load
    from model.quantise import rounded_to_int8
    from stages.corpus import SHARDS, TokenStream, read_manifest
    from stages.evaluate.measures import bits_per_byte
    from stages.scoring import score

    if not trained.is_dir() or not SHARDS.is_dir():
        print(f"\nNo {trained} or no {SHARDS}: the loss of bf16 and int8 is left out.")
        return
    manifest = read_manifest(tokenizer=trained)
    stream = TokenStream(manifest, "validation")
    size = manifest["splits"]["validation"]["bytes"]
    print("\n| weights | bits per byte | more than fp32 |\n|---|---:|---:|")
    exact = 0.0
    for weights in BYTES:
        model, _ = load(trained)
        with torch.no_grad():
            for weight in model.parameters():
                if weights == "bf16" and weight.ndim == 2:
                    weight.copy_(weight.bfloat16())
                elif weights == "int8" and weight.ndim == 2:
                    weight.copy_(rounded_to_int8(weight))
        bits = bits_per_byte(score(model, stream).nats, size)
        exact = exact or bits
        print(f"| {weights} | {bits:.5f} | {bits / exact - 1:+.3%} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.generation")
    parser.add_argument("--shapes", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3, help="timed runs of a process")
    parser.add_argument("--contenders", nargs="+", choices=[*PEERS, *OURS], default=[*PEERS, *OURS])
    parser.add_argument("--threads", default="", help="of all (S: 1, D: as many as torch takes)")
    parser.add_argument("--model", type=Path, default=Path("models/chat"))
    parser.add_argument("--json", type=Path, help="write every run's time here")
    options = parser.parse_args()

    present = []
    for name in options.contenders:
        package = name.split("-")[0]
        install = missing(f"{package}-eager") if package in ("nanogpt", "litgpt") else None
        if name.startswith("transformers"):
            install = missing("transformers-eager")
        if install is None:
            present.append(name)
        else:
            say(f"generation: {name} is left out: {install}")
    raw: dict[str, object] = {}
    for shape in options.shapes:
        threads = options.threads or THREADS[shape]
        results, speed = measure_shape(shape, present, options.rounds, options.repeats, threads)
        os.environ.pop("OMP_NUM_THREADS", None)
        parameters = SHAPES[shape].config().num_parameters()
        for batch, of_batch in results.items():
            if not of_batch:
                sys.exit(1)
            print(
                f"\n**{shape}, {batch} at a time**: 64-token prompts, {NEW} new, top-k 50; memory "
                f"read at {speed / 1e9:.1f} GB/s\n"
            )
            print(table(of_batch, batch, parameters, speed), flush=True)
            raw[f"{shape} {batch}"] = {name: vars(result) for name, result in of_batch.items()}
    say_first_token(options.model)
    say_losses(options.model)
    if options.json:
        options.json.write_text(json.dumps(raw, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
