"""The shards stage: data/conversations + data/tokenizer -> data/shards, metrics/shards.json and
metrics/lengths.csv."""

import json
from pathlib import Path

from model.tokenizer import ChatTokenizer
from stages.conversations import CONVERSATIONS, SPLITS, read_split
from stages.corpus import MANIFEST_FILE, SHARDS, TOKENIZER, Manifest, token_dtype
from stages.errors import DataError, run
from stages.files import output_folder, rounded, write_json, write_text
from stages.params import read
from stages.shards.encode import ShardWriter, encode_split, make_encode
from stages.shards.lengths import table
from stages.shards.params import ShardsParams

METRICS = Path("metrics/shards.json")
LENGTHS = Path("metrics/lengths.csv")


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
    encode = make_encode(tokenizer)
    with output_folder(SHARDS) as folder:
        writers = {
            split: ShardWriter(folder, split, dtype, params.tokens_per_shard) for split in SPLITS
        }
        splits = {
            split: encode_split(read_split(split), tokenizer, encode, writer)
            for split, writer in writers.items()
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
        metrics = {split: report(writer) for split, writer in writers.items()}
        write_json(METRICS, {"dtype": dtype.name, **metrics})
        lengths = {split: writer.lengths for split, writer in writers.items()}
        write_text(LENGTHS, table(lengths))


def report(writer: ShardWriter) -> dict[str, int | float | None]:
    """What metrics/shards.json says of a split; lengths are tokens of a document."""
    counts = writer.counts
    return {
        "tokens": counts["tokens"],
        "documents": counts["documents"],
        "bytes": counts["bytes"],
        "assistant_bytes": counts["assistant_bytes"],
        "assistant_token_share": (
            rounded(writer.supervised / counts["tokens"], 4) if counts["tokens"] else None
        ),
        "median_length": writer.lengths.median(),
        "longest": writer.lengths.longest(),
    }


if __name__ == "__main__":
    run("shards", main)
