"""The check stage: every section of params.yaml is valid -> data/checked.txt, always the same.

DVC removes a stage's outputs before it runs the stage, so a mistake must be found before: this
stage has nothing to lose, and nothing after it runs when it fails.
"""

from pathlib import Path
from typing import Any

from stages.download.params import DataParams
from stages.errors import SettingsError, run
from stages.evaluate.params import EvaluateParams
from stages.files import write_text
from stages.params import PARAMS_FILE, read_yaml, unknown_key, validate
from stages.runtime import RuntimeParams, check_device
from stages.shards.params import ShardsParams
from stages.tokenizer.params import TokenizerParams
from stages.trackers import WandbParams
from stages.train.params import ModelParams, Seed, TrainParams
from stages.train.shape import check_shape

OUTPUT = Path("data/checked.txt")

SECTIONS: dict[str, Any] = {
    "seed": Seed,
    "data": DataParams,
    "tokenizer": TokenizerParams,
    "shards": ShardsParams,
    "model": ModelParams,
    "train": TrainParams,
    "evaluate": EvaluateParams,
    "wandb": WandbParams,
    "runtime": RuntimeParams,
}


def check(values: dict[str, Any]) -> None:
    """Raises SettingsError naming the first key that is unknown, mistyped or impossible."""
    for name in values:
        if name not in SECTIONS:
            raise SettingsError(f"{PARAMS_FILE}: {unknown_key(str(name), list(SECTIONS))}")
    sections = {name: validate(name, schema, values) for name, schema in SECTIONS.items()}
    check_device(sections["runtime"])
    check_shape(sections["train"].init_from, sections["model"])


def main() -> None:
    check(read_yaml())
    write_text(OUTPUT, "params.yaml is valid\n")


if __name__ == "__main__":
    run("check", main)
