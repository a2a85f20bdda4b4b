"""What ``data_chain`` compares with: ``usual_data SOURCE VOCAB_SIZE`` in an empty folder.

Rows are neither checked nor deduplicated, and what is split is split at random.
"""

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from stages.workers import cores

CONTROL = ["<|pad|>", "<|bos|>", "<|end|>", "<|user|>", "<|assistant|>"]
PARTS = 64  # of the ids, written one after another


def main() -> None:
    source, vocab_size = Path(sys.argv[1]), int(sys.argv[2])
    import datasets

    begin = time.perf_counter()
    data = datasets.load_dataset(
        "parquet", data_files=str(source / "*.parquet"), cache_dir="cache", split="train"
    )
    splits = data.train_test_split(test_size=0.05, seed=1)
    loaded = time.perf_counter()

    def texts() -> Iterator[str]:
        for row in splits["train"].select_columns(["conversation"]):
            for message in row["conversation"]:
                yield message["content"]

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=CONTROL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(), trainer)
    learnt = time.perf_counter()
    bos, end = tokenizer.token_to_id("<|bos|>"), tokenizer.token_to_id("<|end|>")
    roles = {role: tokenizer.token_to_id(f"<|{role}|>") for role in ("user", "assistant")}

    def encode(row: dict[str, Any]) -> dict[str, Any]:
        ids = [bos]
        for message in row["conversation"]:
            ids += [roles[message["role"]], *tokenizer.encode(message["content"]).ids, end]
        return {"ids": ids, "length": len(ids)}

    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    encoded = splits.map(encode, remove_columns=data.column_names, num_proc=cores())
    mapped = time.perf_counter()
    for name, split in encoded.items():
        total = int(np.sum(split["length"], dtype=np.uint64))
        array = np.memmap(f"{name}.bin", dtype=np.uint16, mode="w+", shape=(total,))
        place = 0
        for part in range(min(PARTS, len(split))):
            rows = split.shard(min(PARTS, len(split)), part, contiguous=True).with_format("numpy")
            ids = np.concatenate(rows["ids"][:])
            array[place : place + len(ids)] = ids
            place += len(ids)
        array.flush()
    written = time.perf_counter()
    print(
        f"  load {loaded - begin:.1f}, learn {learnt - loaded:.1f}, map {mapped - learnt:.1f}, "
        f"write {written - mapped:.1f}",
        file=sys.stderr,
    )


if __name__ == "__main__":
    main()
