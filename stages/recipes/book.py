"""The recipes, and their form as options of ``dvc exp run``.

A recipe is a YAML file of sections as in params.yaml, with the keys that it changes and no others;
its first line says what it is for. ``-S`` writes them into params.yaml, whose comments stay, and
DVC records them in dvc.lock as it does any value.
"""

import difflib
import json
import re
from pathlib import Path
from typing import Any

from stages.errors import SettingsError
from stages.params import read_yaml

FOLDER = Path(__file__).parent
# Sections whose keys are the user's own names, so that params.yaml may not have them yet.
OPEN = {"data.filter", "data.columns"}
PLAIN = re.compile(r"(?!(?:true|false|null)$)[A-Za-z][A-Za-z0-9_./-]*")  # needs no quotes


def names() -> list[str]:
    """All recipes."""
    return sorted(file.stem for file in FOLDER.glob("*.yaml"))


def summary(name: str) -> str:
    """The recipe's first line."""
    with (FOLDER / f"{name}.yaml").open(encoding="utf-8") as file:
        return file.readline().lstrip("# ").strip()


def options_of(name: str) -> list[str]:
    """The overrides as ``-S`` takes them. Raises SettingsError with the nearest name."""
    if name not in names():
        near = difflib.get_close_matches(name, names(), n=1, cutoff=0.3)
        hint = f"did you mean '{near[0]}'?" if near else f"there are: {', '.join(names())}"
        raise SettingsError(f"no recipe '{name}': {hint}")
    return [f"{key}={_value(value)}" for key, value in flat(read_yaml(FOLDER / f"{name}.yaml"))]


def flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Dotted keys and values; ``++`` before those that params.yaml need not have."""
    pairs: list[tuple[str, Any]] = []
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict):
            pairs += flat(value, f"{'++' if key in OPEN else ''}{key}.")
        else:
            pairs.append((key, value))
    return pairs


def _value(value: Any) -> str:
    """A value in the grammar of Hydra's overrides, which ``-S`` takes."""
    if isinstance(value, list):
        return f"[{','.join(map(_value, value))}]"
    if isinstance(value, str) and not PLAIN.fullmatch(value):
        return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return value if isinstance(value, str) else json.dumps(value)
