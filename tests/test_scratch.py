"""The state of a complete training goes when its results are safe, and no other goes with it."""

from contextlib import chdir
from pathlib import Path

import pytest

from stages.errors import SettingsError
from stages.runtime import RuntimeParams
from stages.scratch import make_scratch_folder, mark_complete, remove_complete, scratch_folder
from tests.builders import tiny_params

PARAMS = RuntimeParams(**tiny_params()["runtime"])


def test_only_complete_states_of_this_folder_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    folders = {name: scratch_folder(PARAMS) / name for name in ("mine", "other", "unfinished")}
    for folder in folders.values():
        folder.mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    with chdir(tmp_path / "elsewhere"):
        mark_complete(folders["other"])
    with chdir(tmp_path):
        mark_complete(folders["mine"])
        remove_complete(PARAMS)
    assert [name for name in folders if folders[name].exists()] == ["other", "unfinished"]


def test_nothing_to_remove_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    remove_complete(PARAMS)


@pytest.mark.parametrize("place", ["taken", "taken/below", "/proc/none"])
def test_a_folder_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """It was a traceback of training, after DVC had removed the last model."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    (tmp_path / "taken").touch()
    params = PARAMS.model_copy(update={"checkpoint_dir": place})
    with pytest.raises(
        SettingsError, match=rf"runtime\.checkpoint_dir: '{place}' can't be written"
    ):
        make_scratch_folder(params)
