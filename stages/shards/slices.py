"""The shards stage in slices of the conversations, which are encoded apart and written in order.

A slice is of equal size in bytes; a line belongs to that in which it begins.
"""

from pathlib import Path

import numpy as np
import orjson

from stages.conversations import CONVERSATIONS, SPLITS, Split, read_split
from stages.corpus import SplitCounts, token_dtype
from stages.errors import EXIT_CODES, DataError, StageError
from stages.files import output_folder, write_json
from stages.shards.build import build, load_tokenizer
from stages.shards.encode import Encoded, ShardWriter, encode_all, make_encode
from stages.shards.params import ShardsParams

DOCUMENTS = 4096  # of a slice that are copied at a time


def write_slice(folder: Path, rank: int, slices: int, threads: int = 1) -> None:
    """Encodes slice ``rank`` of ``slices`` below ``folder``, unless it is there already."""
    for split in SPLITS:
        place = folder / _name(split, rank)
        if not place.exists():
            with output_folder(place) as partial:
                _write(partial, split, rank, slices, threads)


def _name(split: Split, rank: int) -> str:
    return f"{split}-{rank:05d}"


def _write(folder: Path, split: Split, rank: int, slices: int, threads: int) -> None:
    counts: dict[str, int] = {}
    failed = None
    with (folder / "ids").open("wb") as ids, (folder / "lengths").open("wb") as lengths:
        try:
            tokenizer = load_tokenizer()
            dtype = token_dtype(tokenizer.vocab_size)
            path = CONVERSATIONS / f"{split}.jsonl"
            size = path.stat().st_size if path.exists() else 0
            start, stop = size * rank // slices, size * (rank + 1) // slices
            found = encode_all(
                read_split(split, start=start, stop=stop),
                tokenizer,
                make_encode(tokenizer),
                threads,
                f"{split} {rank + 1}/{slices}",
            )
            for encoded in found:
                ids.write(encoded.ids.astype(dtype).tobytes())
                ends = np.append(encoded.starts[1:], len(encoded.ids))
                lengths.write((ends - encoded.starts).astype(np.int64).tobytes())
                for key, count in {**encoded.counts, "supervised": encoded.supervised}.items():
                    counts[key] = counts.get(key, 0) + count
        except StageError as error:  # told by the one who joins the slices
            failed = {"exit_code": error.exit_code, "message": str(error)}
    write_json(folder / "counts.json", {"counts": counts, "failed": failed})


def join_slices(params: ShardsParams, folder: Path, slices: int) -> None:
    """Makes data/shards and the metrics of all slices.

    Raises what the stage raises, and DataError when a slice is not complete.
    """
    for split in SPLITS:
        for rank in range(slices):
            if not (folder / _name(split, rank)).exists():
                raise DataError(
                    f"{folder / _name(split, rank)} is not there yet: run the slices first"
                )

    def fill(split: Split, writer: ShardWriter) -> SplitCounts:
        for rank in range(slices):
            _copy(folder / _name(split, rank), writer)
        return writer.close()

    build(params, load_tokenizer(), fill)


def _copy(folder: Path, writer: ShardWriter) -> None:
    noted = orjson.loads((folder / "counts.json").read_bytes())
    if noted["failed"] is not None:
        raise EXIT_CODES[noted["failed"]["exit_code"]](noted["failed"]["message"])
    counts = noted["counts"]
    supervised = counts.pop("supervised", 0)
    nothing = dict.fromkeys(counts, 0)
    lengths = np.fromfile(folder / "lengths", np.int64)
    with (folder / "ids").open("rb") as ids:
        for first in range(0, len(lengths), DOCUMENTS):
            part = lengths[first : first + DOCUMENTS]
            tokens = np.fromfile(ids, writer.dtype, int(part.sum()))
            starts = np.cumsum(part) - part
            last = first + DOCUMENTS >= len(lengths)
            writer.write(
                Encoded(tokens, starts, counts if last else nothing, supervised if last else 0)
            )
