"""The folder of shards with its manifest, and the reports."""

import json
from collections.abc import Callable
from pathlib import Path

from model.tokenizer import ChatTokenizer
from stages.conversations import CONVERSATIONS, SPLITS, Split
from stages.corpus import MANIFEST_FILE, SHARDS, TOKENIZER, Manifest, SplitCounts, token_dtype
from stages.errors import DataError
from stages.files import output_folder, rounded, write_json, write_text
from stages.shards.encode import ShardWriter
from stages.shards.lengths import table
from stages.shards.params import ShardsParams

METRICS = Path("metrics/shards.json")
LENGTHS = Path("metrics/lengths.csv")


def load_tokenizer() -> ChatTokenizer:
    """That of data/tokenizer. Raises DataError."""
    try:
        return ChatTokenizer.load(TOKENIZER)
    except (FileNotFoundError, ValueError) as error:
        raise DataError(f"{error}: run the tokenizer stage first") from None


def conversations_sha256(split: Split) -> str:
    """That of the split's file, as the download stage has recorded it. Raises DataError."""
    path = CONVERSATIONS / "manifest.json"
    try:
        digest: str = json.loads(path.read_text("utf-8"))["splits"][split]["sha256"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        raise DataError(f"{path} is missing or damaged: run the download stage again") from None
    return digest


def build(
    params: ShardsParams,
    tokenizer: ChatTokenizer,
    fill: Callable[[Split, ShardWriter], SplitCounts],
) -> None:
    """Makes data/shards and the metrics; ``fill`` writes a split's documents and closes it."""
    validation_sha256 = conversations_sha256("validation")
    dtype = token_dtype(tokenizer.vocab_size)
    with output_folder(SHARDS) as folder:
        writers = {
            split: ShardWriter(folder, split, dtype, params.tokens_per_shard) for split in SPLITS
        }
        splits = {split: fill(split, writer) for split, writer in writers.items()}
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
