"""The settings to plan for: params.yaml with overrides as ``dvc exp run -S`` takes them."""

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import reduce
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

    The file itself is not changed. Raises SettingsError for an override that DVC would refuse, and
    for a mapping that changes nothing.
    """
    before = read_yaml()  # says what is wrong with the file
    if not overrides:
        return before
    after = _applied(overrides)
    from dvc.utils.hydra import to_hydra_overrides

    for number, override in enumerate(to_hydra_overrides(list(overrides)), 1):
        key, wanted = override.key_or_group, override.value()
        if isinstance(wanted, dict) and not override.is_delete():
            old = _value(_applied(overrides[: number - 1]) if number > 1 else before, key)
            new = _value(_applied(overrides[:number]), key)
            if old == new != wanted:
                mend = f"edit {key} in {PARAMS_FILE} (or git checkout {PARAMS_FILE})"
                if old != _value(before, key):
                    mend = "leave out the -S or the recipe that sets it"
                raise SettingsError(
                    f"-S {overrides[number - 1]}: changes nothing, for DVC merges a mapping with "
                    f"the one that is there: {mend}"
                )
    return after


def _applied(overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of params.yaml after DVC has changed it. Raises SettingsError."""
    from dvc.exceptions import DvcException
    from dvc.utils.hydra import apply_overrides

    given = f"-S {' -S '.join(overrides)}"
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, PARAMS_FILE.name)
        shutil.copyfile(PARAMS_FILE, copy)
        try:
            apply_overrides(copy, list(overrides))
        except (DvcException, ValueError) as error:
            reason = " ".join(str(error.__cause__ or error).split())
            if "To append to your config" in reason:
                _name_unknown(overrides, copy)
            raise SettingsError(f"{given}: {reason}") from None
        try:
            return read_yaml(copy)
        except SettingsError:  # as where the last key of a mapping with a comment goes
            raise SettingsError(
                f"{given}: DVC would write a {PARAMS_FILE} that is not valid YAML: edit it instead"
            ) from None


def _name_unknown(overrides: Sequence[str], copy: Path) -> None:
    """Raises SettingsError for a key that Parley has not: it knows what may have been meant."""
    from dvc.exceptions import DvcException
    from dvc.utils.hydra import apply_overrides

    shutil.copyfile(PARAMS_FILE, copy)
    adding = [given if given[:1] in "+~" else f"++{given}" for given in overrides]
    with suppress(DvcException, ValueError):
        apply_overrides(copy, adding)
        check(read_yaml(copy))


def _value(values: Any, key: str) -> Any:
    """What a dotted key has; None where it is not there."""
    return reduce(
        lambda at, name: at.get(name) if isinstance(at, Mapping) else None, key.split("."), values
    )


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
