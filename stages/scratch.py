"""The scratch folder: what an unfinished training left, one folder a fingerprint.

A complete training leaves its last state too, marked with the working folder: DVC has yet to store
the model, and if it is killed before, training writes its results again from there. The stage after
training, which runs only once they are stored, removes it.
"""

import os
import shutil
from pathlib import Path

from stages.files import write_text
from stages.runtime import RuntimeParams

COMPLETE = "complete"


def scratch_folder(params: RuntimeParams) -> Path:
    """``checkpoint_dir``, relative to the main checkout also in DVC's temporary ones."""
    return Path(os.environ.get("DVC_ROOT", ".")) / params.checkpoint_dir


def mark_complete(folder: Path) -> None:
    """Says that the training of this state is complete."""
    write_text(folder / COMPLETE, f"{Path.cwd()}\n")


def remove_complete(params: RuntimeParams) -> None:
    """Removes the states of complete trainings in this working folder."""
    for mark in scratch_folder(params).glob(f"*/{COMPLETE}"):
        if mark.read_text(encoding="utf-8") == f"{Path.cwd()}\n":
            shutil.rmtree(mark.parent, ignore_errors=True)
