"""What datatrove calls for each task: its number is that of the slice."""

from pathlib import Path

from stages.download import slices as download
from stages.download.params import DataParams
from stages.shards import slices as shards


def download_slice(
    params: DataParams, folder: Path, documents: None, rank: int, slices: int
) -> None:
    """Slice ``rank`` of the download; datatrove has no ``documents`` for a first step."""
    download.write_slice(params, folder, rank, slices)


def shards_slice(folder: Path, documents: None, rank: int, slices: int) -> None:
    """Slice ``rank`` of the shards, on one thread: datatrove runs several slices at once."""
    shards.write_slice(folder, rank, slices)
