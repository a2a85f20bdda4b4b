"""The scratch folder: what an unfinished training left, one folder a fingerprint.

A complete training leaves its last state too, marked with the working folder: DVC has yet to store
the model, and if it is killed before, training writes its results again from there. The stage after
training, which runs only once they are stored, removes it.
"""

import errno
import os
import shutil
import tempfile
from pathlib import Path

from stages.errors import DISK_ERRNOS, SettingsError
from stages.files import write_text
from stages.runtime import RuntimeParams

COMPLETE = "complete"


def scratch_folder(params: RuntimeParams) -> Path:
    """``checkpoint_dir``, relative to the main checkout also in DVC's temporary ones."""
    return Path(os.environ.get("DVC_ROOT", ".")) / params.checkpoint_dir


def make_scratch_folder(params: RuntimeParams) -> Path:
    """The scratch folder, made if need be. Raises SettingsError when it can't be written."""
    folder = scratch_folder(params)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        if error.errno in DISK_ERRNOS - {errno.EROFS}:
            raise
        raise SettingsError(
            f"runtime.checkpoint_dir: '{params.checkpoint_dir}' can't be written "
            f"({error.strerror}): name another folder"
        ) from None
    return folder


def mark_complete(folder: Path) -> None:
    """Says that the training of this state is complete."""
    write_text(folder / COMPLETE, f"{Path.cwd()}\n")


def remove_complete(params: RuntimeParams) -> None:
    """Removes the states of complete trainings in this working folder."""
    for mark in scratch_folder(params).glob(f"*/{COMPLETE}"):
        if mark.read_text(encoding="utf-8") == f"{Path.cwd()}\n":
            shutil.rmtree(mark.parent, ignore_errors=True)
