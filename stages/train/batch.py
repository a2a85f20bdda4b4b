"""Shows which conversations a step read: ``python -m stages.train.batch 1200``.

Steps are counted from 1, as in metrics/history.csv.
"""

import sys
from itertools import islice

from stages.conversations import CONVERSATIONS, Message, read_split
from stages.corpus import TokenStream, read_manifest
from stages.errors import SettingsError, run
from stages.params import read
from stages.train.data_order import DataOrder
from stages.train.params import ModelParams, Seed, TrainParams

SHOWN = 70


def main() -> None:
    """Prints the line of each conversation in the training split's file and how it begins."""
    try:
        step = int(sys.argv[1])
    except (IndexError, ValueError):
        step = 0
    if step < 1:
        raise SettingsError("give the number of a step, from 1: python -m stages.train.batch 1")
    params = read("train", TrainParams)
    order = DataOrder(
        TokenStream(read_manifest(), "train"),
        read("model", ModelParams).seq_len,
        params.sequences_per_step,
        read("seed", Seed),
        params.loss_on == "assistant",
    )
    lines = order.documents(step - 1).tolist()
    print(f"step {step:,} reads {len(lines):,} conversations of {CONVERSATIONS}/train.jsonl:")
    position = 0
    split = read_split("train")
    for line in lines:
        messages = next(islice(split, line - 1 - position, None))
        position = line
        print(f"{line:9,}  {_begin(messages)}")


def _begin(messages: list[Message]) -> str:
    text = " ".join(messages[0]["content"].split())
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"


if __name__ == "__main__":
    run("batch", main)
