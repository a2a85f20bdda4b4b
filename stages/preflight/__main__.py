"""The preflight stage: data/shards suits model and training -> data/preflight.txt, always the same.

What only the data or this machine can tell is checked here and not in training, because DVC
removes the last model before it runs that stage. Its dependencies in dvc.yaml include those of
training, so that it runs whenever training would.
"""

from pathlib import Path

from model.config import ModelConfig
from stages.conversations import SPLITS
from stages.corpus import TOKENIZER, Manifest, TokenStream, read_manifest
from stages.errors import SettingsError, run
from stages.files import write_text
from stages.params import read
from stages.runtime import RuntimeParams, check_device, memory_bytes, start_torch
from stages.scratch import make_scratch_folder
from stages.trackers import WandbParams
from stages.train.params import ModelParams, Seed, TrainParams
from stages.train.shape import check_shape, config_of_start
from stages.train.start import check_start

OUTPUT = Path("data/preflight.txt")


def check(manifest: Manifest, model: ModelParams, train: TrainParams) -> None:
    """Raises SettingsError naming the key to change."""
    splits = manifest["splits"]
    for split in SPLITS:
        if not splits[split]["documents"]:
            other = sum(counts["documents"] for counts in splits.values())
            way = f"{'lower' if split == 'train' else 'raise'} it, or " if other > 1 else ""
            raise SettingsError(
                f"data.val_fraction leaves no {split} conversation of {other:,}: {way}use more "
                "data (metrics/data.json tells what was dropped)"
            )
    needed = model.seq_len + 1
    if splits["train"]["tokens"] < needed:
        raise SettingsError(
            f"model.seq_len {model.seq_len:,} needs {needed:,} tokens, the training split has "
            f"{splits['train']['tokens']:,}: lower it, or use more data"
        )
    if train.loss_on == "assistant":
        for split in SPLITS:
            if splits[split]["text_documents"]:
                raise SettingsError(
                    f"train.loss_on: assistant needs conversations, the {split} split has "
                    f"{splits[split]['text_documents']:,} documents of plain text: set it to all"
                )
            if not splits[split]["assistant_bytes"]:
                raise SettingsError(
                    f"train.loss_on: assistant finds no assistant message in the {split} split: "
                    "set it to all"
                )


def check_validation(stream: TokenStream, train: TrainParams) -> None:
    """Raises SettingsError when a validation in training would have nothing to measure."""
    labels = stream.read(1, min(train.eval_tokens + 1, len(stream)))
    if train.loss_on == "assistant" and not stream.assistant_mask(1, labels).any():
        raise SettingsError(
            f"train.eval_tokens {train.eval_tokens:,}: the beginning of the validation split has "
            "no assistant's word in so many tokens: raise it, or set train.loss_on to all"
        )


def check_memory(config: ModelConfig, train: TrainParams, runtime: RuntimeParams) -> None:
    """Raises SettingsError for what no saving of memory can make fit this machine."""
    there = memory_bytes(runtime)
    # Weights, gradients and two moments in float32. FSDP may divide them over many machines.
    weights = 16 * config.num_parameters()
    if weights > there and runtime.parallel != "fsdp":
        raise SettingsError(
            f"model.d_model {config.d_model:,} and the rest of the shape make "
            f"{config.num_parameters():,} parameters, which take {weights / 2**30:,.1f} GiB to "
            f"train: more than the {there / 2**30:,.1f} GiB of this machine"
        )
    tokens = train.sequences_per_step * config.seq_len
    if 16 * tokens > there:  # ids and labels
        raise SettingsError(
            f"train.batch_size {train.batch_size:,} x train.grad_accum_steps "
            f"{train.grad_accum_steps:,} make an update of {tokens:,} tokens, which this machine "
            "can't hold"
        )


def main() -> None:
    read("seed", Seed)
    read("wandb", WandbParams)
    runtime = read("runtime", RuntimeParams)
    check_device(runtime)
    make_scratch_folder(runtime)
    manifest, train = read_manifest(), read("train", TrainParams)
    model = read("model", ModelParams)
    check(manifest, model, train)
    check_validation(TokenStream(manifest, "validation"), train)
    train.check_processes(runtime.processes, runtime.parallel)
    check_shape(train.init_from, model)
    config = config_of_start(
        model.config(manifest["vocab_size"], manifest["control_ids"]), train.init_from
    )
    check_memory(config, train, runtime)
    check_start(train.init_from, config, TOKENIZER)
    if train.compile:
        from stages.train.compiling import check_compiler

        check_compiler(start_torch(runtime))
    write_text(OUTPUT, "the settings fit the data\n")


if __name__ == "__main__":
    run("preflight", main)
