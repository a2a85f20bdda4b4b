"""``python -m stages.plan``: what the training of params.yaml will take, before it runs."""

import argparse
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from model.config import DRAWN
from stages.errors import SettingsError, end_with_reader, run
from stages.plan.cautions import TOKENS_PER_PARAMETER, cautions
from stages.plan.corpus import Data, describe
from stages.plan.settings import Settings, overridden, settle
from stages.plan.sizes import Disk, Parameters, disk, parameters
from stages.recipes.book import options_of
from stages.runtime import RuntimeParams, memory_bytes
from stages.train.start import TOKENIZER_FILE

if TYPE_CHECKING:
    from stages.plan.burst import Burst
    from stages.plan.memory import Memory

NAME = "python -m stages.plan"
MFU = 0.4
# Models of a million parameters took 8 to 16 ms a step on an H100, whatever their work.
LEAST_STEP_SECONDS = 0.01


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise SettingsError(f"{message} ({NAME} --help)")


def options(arguments: list[str]) -> argparse.Namespace:
    """The command line. Raises SettingsError."""
    parser = _Parser(prog=NAME, description="What a training will take. Nothing is trained.")
    add = parser.add_argument
    add("-S", "--set-param", action="append", default=[], metavar="KEY=VALUE")
    add("--recipe", metavar="NAME", help="of python -m stages.recipes")
    add("--tokens", type=float, help="of training, where no shards tell")
    add("--no-measure", action="store_true", help="make no real steps")
    add("--gpu-tflops", type=float, metavar="N", help="peak of a GPU that you have in mind")
    add("--mfu", type=float, help=f"share of that peak to reckon with (default: {MFU})")
    add("--gpus", type=int, help="how many of them (default: runtime.processes)")
    chosen = parser.parse_args(arguments)
    for name, value in (("tokens", chosen.tokens), ("gpu-tflops", chosen.gpu_tflops)):
        if value is not None and not 0 < value < math.inf:
            parser.error(f"--{name} {value:g} is not positive")
    for name in ("mfu", "gpus"):
        value = getattr(chosen, name)
        if value is not None and chosen.gpu_tflops is None:
            parser.error(f"--{name} {value:g} needs --gpu-tflops, the peak of one of these GPUs")
    if chosen.mfu is None:
        chosen.mfu = MFU
    if not 0 < chosen.mfu <= 1:
        parser.error(f"--mfu {chosen.mfu:g} is not between 0 and 1")
    if chosen.gpus is not None and chosen.gpus < 1:
        parser.error(f"--gpus {chosen.gpus}: one is the least")
    return chosen


@dataclass(frozen=True)
class Plan:
    """All that is known before a run; ``flops`` are those of the whole run."""

    settings: Settings
    data: Data
    parameters: Parameters
    steps: int
    tokens: int
    flops: float
    disk: Disk
    cautions: list[str]


def reckon(settings: Settings, tokens: int | None = None) -> Plan:
    """The plan without what needs torch. Raises SettingsError, or DataError for damaged shards."""
    model, train = settings.model, settings.train
    data = describe(settings, tokens)
    _check_start(train.init_from, data.vocab_size)
    windows = (data.train_tokens - 1) // model.seq_len
    if windows < 1:
        raise SettingsError(
            f"model.seq_len {model.seq_len:,} needs {model.seq_len + 1:,} tokens, the training "
            f"split has {data.train_tokens:,}: lower it, or use more data"
        )
    train.check_processes(settings.runtime.processes, settings.runtime.parallel)
    per_step = train.sequences_per_step
    steps = train.max_steps or max(1, math.ceil(train.epochs * windows / per_step))
    config = settings.config(data.vocab_size)
    of = parameters(config)
    seen = steps * per_step * model.seq_len

    from model.flops import flops_per_token

    flops = seen * flops_per_token(config)
    storage = disk(of, train, data.size, settings.runtime.keep_checkpoints)
    return Plan(
        settings, data, of, steps, seen, flops, storage,
        list(cautions(settings, data, of, steps, flops)),
    )  # fmt: skip


def _check_start(init_from: str, vocab_size: int) -> None:
    """Raises SettingsError for a model folder whose tokenizer has ids that the data's lacks."""
    if init_from == DRAWN:
        return
    from model.vocabulary import number_of_ids

    file = Path(init_from, TOKENIZER_FILE)
    try:
        known = number_of_ids(file)
    except (OSError, ValueError) as error:
        raise SettingsError(f"train.init_from: '{init_from}' is no model folder: {error}") from None
    if known > vocab_size:
        raise SettingsError(
            f"train.init_from: the tokenizer of '{init_from}' has {known:,} ids, that of the data "
            f"{vocab_size:,}: set tokenizer.path to '{init_from}'"
        )


def show(plan: Plan) -> None:
    """Prints what needs no measurement."""
    of, data, train = plan.parameters, plan.data, plan.settings.train
    print(f"parameters {of.total:,}")
    for name in ("embedding", "attention", "feed_forward", "norms", "head"):
        if part := getattr(of, name):
            print(f"  {name.replace('_', '-'):13}{part:15,}  {part / of.total:4.0%}")
    if not of.head:
        print("  (the head is the embedding)")
    documents = f" in {data.documents:,} conversations" if data.documents else ""
    print(f"\ndata        {data.train_tokens:,} tokens an epoch{documents} ({data.source})")
    print(
        f"training    {plan.steps:,} steps of "
        f"{train.sequences_per_step * plan.settings.model.seq_len:,} tokens: {plan.tokens:,}, "
        f"{plan.tokens / data.train_tokens:.2f} epochs"
    )
    print(
        f"            {plan.tokens / of.total:.1f} tokens a parameter "
        f"({TOKENS_PER_PARAMETER} are compute-optimal: Hoffmann et al. 2022)"
    )
    print(f"work        {plan.flops:.3g} FLOPs")
    storage = plan.disk
    print(
        f"disk        {_size(storage.total)}: data {_size(storage.data)} and model "
        f"{_size(storage.model)}, both also in DVC's cache, checkpoints "
        f"{_size(storage.checkpoints)}"
    )


def show_memory(memory: "Memory", dtype: str, processes: int, runtime: RuntimeParams) -> None:
    """Prints the bytes that are alive in a step, in one of ``processes``."""
    each = f" in each of {processes} processes ({runtime.parallel})" if processes > 1 else ""
    gathered = " and gathered weights" if processes > 1 and runtime.parallel == "fsdp" else ""
    print(
        f"memory      {_size(memory.peak)} of tensors{each} in {dtype}, at most: weights "
        f"{_size(memory.weights)}, gradients {_size(memory.gradients)}, optimiser "
        f"{_size(memory.optimizer)}, activations{gathered} {_size(memory.activations)}; in the "
        f"optimiser's step {_size(memory.stepping)}, in a validation {_size(memory.validation)}"
    )


def show_burst(plan: Plan, burst: "Burst") -> None:
    """Prints time and memory on this machine."""
    train = plan.settings.train
    validations = 1 + math.ceil(plan.steps / train.eval_interval)
    seconds = plan.steps * burst.step_seconds + validations * burst.validation_seconds
    speed = plan.tokens / plan.steps / burst.step_seconds
    mfu = speed * plan.flops / plan.tokens / burst.peak_flops
    print(
        f"here        {_time(seconds)} (measured: {1000 * burst.step_seconds:,.1f} ms a step, "
        f"{speed:,.0f} tokens/s, MFU {mfu:.0%}, {burst.validation_seconds:.1f} s a validation), "
        f"{burst.peak_mib:,} MiB of memory (measured)"
    )


def show_gpu(plan: Plan, tflops: float, mfu: float, processes: int) -> None:
    """Prints the time on ``processes`` GPUs of ``tflops`` at ``mfu``."""
    seconds = plan.flops / (tflops * 1e12 * mfu * processes)
    how = f"at {mfu:.0%} MFU"
    if seconds < plan.steps * LEAST_STEP_SECONDS:
        seconds = plan.steps * LEAST_STEP_SECONDS
        how = f"at {1000 * LEAST_STEP_SECONDS:.0f} ms a step, which a small model takes to launch"
    among = f"{processes} GPUs" if processes > 1 else "a GPU"
    print(
        f"GPU         {_time(seconds)} on {among} of {tflops:,.0f} TFLOP/s {how} (estimated: "
        "validation and waiting are left out)"
    )


def main() -> None:
    """Prints the plan. Raises SettingsError as the pipeline's stages do."""
    chosen = options(sys.argv[1:])
    recipe = options_of(chosen.recipe) if chosen.recipe else []
    values = overridden([*recipe, *chosen.set_param])
    device_named = _device(values)
    elsewhere = chosen.no_measure and device_named in ("cuda", "mps")
    if elsewhere:  # nothing runs here, so this machine need not have one
        values = {**values, "runtime": {**values["runtime"], "device": "auto"}}
    settings = settle(values)
    plan = reckon(settings, None if chosen.tokens is None else round(chosen.tokens))
    show(plan)
    sys.stdout.flush()

    import torch

    from stages.plan.memory import estimate, precision_of
    from stages.runtime import start_torch

    device = start_torch(settings.runtime)
    on_gpu = chosen.gpu_tflops is not None or elsewhere
    kind = ("mps" if device_named == "mps" else "cuda") if on_gpu else device.type
    mixed = settings.train.mixed_precision is not False
    half = torch.float16 if settings.train.mixed_precision == "fp16" else torch.bfloat16
    dtype = half if on_gpu and mixed else precision_of(settings.train, device)
    config = settings.config(plan.data.vocab_size)
    processes = chosen.gpus or settings.runtime.processes
    settings.train.check_processes(processes, settings.runtime.parallel)
    memory = estimate(config, settings.train, settings.runtime, dtype, processes, kind)
    show_memory(memory, str(dtype).removeprefix("torch."), processes, settings.runtime)
    if not chosen.no_measure:
        there = memory_bytes(settings.runtime)
        here = memory
        if kind != device.type:
            own = precision_of(settings.train, device)
            here = estimate(config, settings.train, settings.runtime, own, processes, device.type)
        if here.peak > there:
            raise SettingsError(
                f"a step needs {_size(here.peak)}, this machine has {_size(there)}: --no-measure "
                "leaves the measured steps out; train.micro_batch_size and "
                "train.activation_checkpointing save memory"
            )
        from stages.plan.burst import measure

        show_burst(plan, measure(settings.values, plan.data.vocab_size))
    if chosen.gpu_tflops:
        show_gpu(plan, chosen.gpu_tflops, chosen.mfu, processes)
    for line in plan.cautions:
        print(f"\nwarning: {line}")


def _device(values: Mapping[str, Any]) -> object:
    section = values.get("runtime")
    return section.get("device") if isinstance(section, dict) else None


def _size(size: float) -> str:
    return f"{size / 2**30:,.2f} GiB" if size >= 2**30 else f"{size / 2**20:,.1f} MiB"


def _time(seconds: float) -> str:
    for limit, unit in ((86_400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * limit:
            return f"{seconds / limit:,.1f} {unit}"
    return f"{seconds:,.0f} seconds" if seconds >= 10 else f"{seconds:.2g} seconds"


if __name__ == "__main__":
    end_with_reader()
    run("plan", main)
