"""Bytes per token of data/tokenizer beside GPT-2's: ``python -m tests.benchmarks.packing``.

GPT-2's vocabulary is in the package openai-whisper, of which only that file is read.
"""

import base64
import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path

import tiktoken

from model.tokenizer import ChatTokenizer
from stages.conversations import read_split
from stages.corpus import TOKENIZER
from stages.errors import run
from stages.shards.ranks import WORDS
from stages.tokenizer.measures import SAMPLES


def main() -> None:
    package = importlib.util.find_spec("whisper")
    if package is None or not package.submodule_search_locations:
        sys.exit("packing: run `pip install --no-deps openai-whisper` for GPT-2's vocabulary")
    file = Path(package.submodule_search_locations[0]) / "assets/gpt2.tiktoken"
    lines = (line.split() for line in file.read_bytes().splitlines() if line)
    ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
    theirs = tiktoken.Encoding("gpt2", pat_str=WORDS, mergeable_ranks=ranks, special_tokens={})
    ours = ChatTokenizer.load(TOKENIZER)
    texts: dict[str, Iterable[str]] = {
        "validation split": [m["content"] for chat in read_split("validation") for m in chat],
        **{path.stem: [path.read_text(encoding="utf-8")] for path in sorted(SAMPLES.glob("*.txt"))},
    }
    print(f"| text | this tokenizer ({ours.vocab_size:,} ids) | GPT-2's ({len(ranks):,}) |")
    print("|---|---:|---:|")
    for name, content in texts.items():
        size = sum(len(text.encode()) for text in content)
        own = sum(map(len, ours.encode_batch(list(content))))
        other = sum(len(theirs.encode_ordinary(text)) for text in content)
        print(f"| {name} | {size / own:.3f} | {size / other:.3f} |")


if __name__ == "__main__":
    run("packing", main)
