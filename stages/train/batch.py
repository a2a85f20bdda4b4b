"""Shows what training reads: ``python -m stages.train.batch 1200``.

A step's conversations by their lines in the training split's file; with ``--tokens`` its sequences
too, what is learnt of them marked; with ``--row N`` instead of a step, one conversation so marked.
Steps are counted from 1, as in metrics/history.csv, lines too.
"""

import argparse
import os
import sys
from collections.abc import Iterator
from itertools import groupby, islice
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from model.tokenizer import ChatTokenizer
from stages.conversations import CONVERSATIONS, Message, read_split
from stages.corpus import COUNT_CHUNK, TOKENIZER, Ids, TokenStream, read_manifest
from stages.errors import DataError, SettingsError, end_with_reader, run
from stages.params import read
from stages.scoring import IGNORED
from stages.train.data_order import DataOrder
from stages.train.params import ModelParams, Seed, TrainParams

SHOWN = 70
# On a terminal what is learnt is green and the rest faint; elsewhere as `git diff --word-diff`.
COLOURS = {True: ("\x1b[32m", "\x1b[0m"), False: ("\x1b[2m", "\x1b[0m")}
SIGNS = {True: ("{+", "+}"), False: ("", "")}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise SettingsError(
            f"{message}: give the number of a step, from 1, or --row and the number of a line: "
            "python -m stages.train.batch 1 --tokens"
        )


def main() -> None:
    """Prints what the command line asks for. Raises SettingsError for a number out of range."""
    parser = _Parser(prog="python -m stages.train.batch")
    parser.add_argument("step", type=int, nargs="?", help="of training, from 1")
    parser.add_argument("--tokens", action="store_true", help="show its sequences too")
    parser.add_argument("--row", type=int, help="show a line of the training split, from 1")
    options = parser.parse_args()
    number = options.row if options.step is None else options.step
    if (options.step is None) == (options.row is None) or number < 1:
        parser.error("neither a step nor a row")

    manifest, params = read_manifest(), read("train", TrainParams)
    stream = TokenStream(manifest, "train")
    order = DataOrder(
        stream,
        read("model", ModelParams).seq_len,
        params.sequences_per_step,
        read("seed", Seed),
        params.loss_on == "assistant",
    )
    if options.row is not None:
        show_row(order, options.row)
        return
    total = params.max_steps or order.steps(params.epochs)
    if options.step > total:
        raise SettingsError(f"step {options.step:,}: with these params training has {total:,}")
    show_conversations(order, options.step)
    if options.tokens:
        show_sequences(order, options.step)


def show_conversations(order: DataOrder, step: int) -> None:
    """The line of each conversation of ``step``, and how it begins."""
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
    return printable(text if len(text) <= SHOWN else text[: SHOWN - 1] + "…")


def show_sequences(order: DataOrder, step: int) -> None:
    """The sequences of ``step``, what is learnt of them marked."""
    batch = order.batch(step - 1)
    inputs, labels = batch.inputs.numpy(), batch.labels.numpy()
    for number, start in enumerate(order.starts(step - 1)):
        stop = start + order.seq_len
        learnt = labels[number] != IGNORED
        print(f"\nsequence {number + 1}, tokens {start:,} to {stop:,}, {learnt.sum():,} learnt:")
        last = order.stream.read(stop, stop + 1)
        show_tokens(np.append(inputs[number], last), np.append(False, learnt))


def show_row(order: DataOrder, row: int) -> None:
    """The conversation in line ``row`` as training sees it. Raises SettingsError."""
    span = find_document(order.stream, row)
    if span is None:
        raise SettingsError(
            f"--row {row:,}: {CONVERSATIONS}/train.jsonl has no line of this number"
        )
    tokens = order.stream.read(*span)
    learnt = tokens != order.stream.roles.bos
    if order.assistant_only:
        learnt &= order.stream.assistant_mask(span[0], tokens)
    print(f"line {row:,}, {len(tokens):,} tokens, {learnt.sum():,} learnt:")
    show_tokens(tokens, learnt)


def find_document(stream: TokenStream, number: int) -> tuple[int, int] | None:
    """First token of document ``number`` (from 1) and the one behind its last; None if beyond."""
    starts: list[int] = []  # its own, and that of the next
    passed = 0
    for begin in range(0, len(stream), COUNT_CHUNK):
        tokens = stream.read(begin, min(begin + COUNT_CHUNK, len(stream)))
        found = begin + np.flatnonzero(tokens == stream.roles.bos)
        places = (number - 1 - passed, number - passed)
        starts += [int(found[place]) for place in places if 0 <= place < len(found)]
        passed += len(found)
        if len(starts) == 2:
            return starts[0], starts[1]
    return (starts[0], len(stream)) if starts else None


def show_tokens(tokens: Ids, learnt: NDArray[np.bool_]) -> None:
    """Prints the text of ``tokens``, control tokens by their names, ``learnt`` ones marked."""
    try:
        tokenizer = ChatTokenizer.load(TOKENIZER)
    except (FileNotFoundError, ValueError) as error:
        raise DataError(f"{error}: run the tokenizer stage first") from None
    colours = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    marks = COLOURS if colours else SIGNS
    for is_learnt, text in runs(tokenizer, tokens, learnt):
        before, after = marks[is_learnt]
        print(f"{before}{printable(text)}{after}", end="")
    print()


def runs(
    tokenizer: ChatTokenizer, tokens: Ids, learnt: NDArray[np.bool_]
) -> Iterator[tuple[bool, str]]:
    """The text of neighbouring tokens that are alike: whether they are learnt, and the text."""
    pairs = zip(tokens.tolist(), learnt.tolist(), strict=True)
    for is_learnt, group in groupby(pairs, key=lambda pair: pair[1]):
        yield is_learnt, tokenizer.decode([token for token, _ in group], control=True)


def printable(text: str) -> str:
    """``text`` without what would steer the terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)


if __name__ == "__main__":
    end_with_reader()
    run("batch", main)
