"""The settings to plan for: params.yaml with overrides as ``dvc exp run -S`` takes them."""

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.config import ModelConfig
from stages.check.__main__ import check
from stages.errors import SettingsError
from stages.params import PARAMS_FILE, read_yaml
from stages.runtime import RuntimeParams
from stages.train.params import ModelParams, TrainParams
from stages.train.shape import config_of_start

CONTROL_IDS = {"pad": 0, "bos": 1, "end": 2}  # their places change no figure


@dataclass(frozen=True)
class Settings:
    """The whole of params.yaml, valid, and its sections that training reads."""

    values: dict[str, Any]
    seed: int
    model: ModelParams
    train: TrainParams
    runtime: RuntimeParams

    def config(self, vocab_size: int) -> ModelConfig:
        """The network that training makes of these for ``vocab_size`` ids. Raises SettingsError."""
        shape = self.model.config(vocab_size, CONTROL_IDS, self.train.document_mask)
        return config_of_start(shape, self.train.init_from)


def overridden(overrides: Sequence[str]) -> dict[str, Any]:
    """params.yaml as ``dvc exp run -S`` with each of ``overrides`` would leave it.

    The file itself is not changed. Raises SettingsError for an override that DVC would refuse.
    """
    if not overrides:
        return read_yaml()
    from dvc.exceptions import DvcException
    from dvc.utils.hydra import apply_overrides

    read_yaml()  # says what is wrong with the file
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, PARAMS_FILE.name)
        shutil.copyfile(PARAMS_FILE, copy)
        try:
            apply_overrides(copy, list(overrides))
        except (DvcException, ValueError) as error:
            reason = " ".join(str(error.__cause__ or error).split())
            raise SettingsError(f"-S {' -S '.join(overrides)}: {reason}") from None
        return read_yaml(copy)


def settle(values: dict[str, Any]) -> Settings:
    """``values`` validated as the check stage does. Raises SettingsError."""
    check(values)
    return Settings(
        values,
        values["seed"],
        ModelParams(**values["model"]),
        TrainParams(**values["train"]),
        RuntimeParams(**values["runtime"]),
    )
