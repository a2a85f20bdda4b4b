"""The shards stage: data/conversations + data/tokenizer -> data/shards and metrics/shards.json."""

import json
from pathlib import Path

from model.tokenizer import ChatTokenizer
from stages.conversations import CONVERSATIONS, SPLITS, read_split
from stages.corpus import MANIFEST_FILE, SHARDS, TOKENIZER, Manifest, token_dtype
from stages.errors import DataError, run
from stages.files import output_folder, write_json
from stages.params import read
from stages.shards.encode import ShardWriter, encode_split
from stages.shards.params import ShardsParams

METRICS = Path("metrics/shards.json")


def main() -> None:
    params = read("shards", ShardsParams)
    try:
        tokenizer = ChatTokenizer.load(TOKENIZER)
    except (FileNotFoundError, ValueError) as error:
        raise DataError(f"{error}: run the tokenizer stage first") from None
    path = CONVERSATIONS / "manifest.json"
    try:
        validation_sha256 = json.loads(path.read_text("utf-8"))["splits"]["validation"]["sha256"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        raise DataError(f"{path} is missing or damaged: run the download stage again") from None
    dtype = token_dtype(tokenizer.vocab_size)
    with output_folder(SHARDS) as folder:
        splits = {
            split: encode_split(
                read_split(split),
                tokenizer,
                ShardWriter(folder, split, dtype, params.tokens_per_shard),
            )
            for split in SPLITS
        }
        manifest: Manifest = {
            "dtype": dtype.name,
            "vocab_size": tokenizer.vocab_size,
            "tokenizer_sha256": tokenizer.sha256,
            "validation_sha256": validation_sha256,
            "control_ids": {
                "pad": tokenizer.pad_id,
                "bos": tokenizer.bos_id,
                "end": tokenizer.end_id,
                **tokenizer.role_ids,
            },
            "splits": splits,
        }
        write_json(folder / MANIFEST_FILE, manifest)
        metrics = {
            split: {
                key: splits[split][key]
                for key in ("tokens", "documents", "bytes", "assistant_bytes")
            }
            for split in SPLITS
        }
        write_json(METRICS, {"dtype": dtype.name, **metrics})


if __name__ == "__main__":
    run("shards", main)
