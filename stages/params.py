"""Reading and validating params.yaml.

Each stage reads only its own sections, with a schema from its own room, so that a stage's result
depends on nothing else in the file. ``stages.check`` reads them all.
"""

import difflib
import math
import os
import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from stages.errors import SettingsError

PARAMS_FILE = Path("params.yaml")

T = TypeVar("T")


class Section(BaseModel):
    """Base of the schemas: unknown keys and silent conversions are errors, values are final."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def left_behind(path: Path) -> str:
    """What an error line adds when ``path`` is not there, but is in the repository that this folder
    is a copy of (DVC runs queued experiments in one)."""
    root = os.environ.get("DVC_ROOT", "")
    if not root or path.is_absolute() or path.exists() or not Path(root, path).exists():
        return ""
    return (
        " in this copy of the repository, which has what git tracks: "
        f"name it by its whole path, {Path(root, path)}"
    )


class _Loader(yaml.SafeLoader):
    """YAML 1.2 scalars: ``1e-4`` is a number, ``no`` is text; a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                continue
            if key in seen:
                line = key_node.start_mark.line + 1
                raise SettingsError(f"{PARAMS_FILE}:{line}: key '{key}' is given twice")
            seen.add(key)
        return super().construct_mapping(node, deep)


# Own table: the inherited one is shared with every SafeLoader of the process.
_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _first
    )


def _construct_int(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node)
    return int(text, 0) if text[:2] in ("0o", "0x") else int(text)


_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)


def read_yaml(path: Path = PARAMS_FILE) -> dict[str, Any]:
    """The whole file as plain values. Raises SettingsError when it is not a YAML mapping."""
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        raise SettingsError(
            f"{path} not found: run from the repository root (in {Path.cwd()})"
        ) from None
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path} is not UTF-8: {error}") from None
    except yaml.YAMLError as error:
        raise SettingsError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise SettingsError(f"{path} must be a mapping of sections")
    return values


def validate(name: str, schema: type[T], values: dict[str, Any]) -> T:
    """Section ``name`` of ``values`` as ``schema``. Raises SettingsError naming a bad key."""
    if name not in values:
        raise SettingsError(f"{PARAMS_FILE}: section '{name}' is missing")
    try:
        return TypeAdapter(schema).validate_python(values[name])
    except ValidationError as error:
        raise SettingsError(f"{PARAMS_FILE}: {_explain(name, schema, error)}") from None


def read(name: str, schema: type[T]) -> T:
    """Section ``name`` of params.yaml as ``schema``. Raises SettingsError."""
    return validate(name, schema, read_yaml())


def unknown_key(key: str, candidates: list[str], prefix: str = "") -> str:
    """One line for a key that does not exist, with the nearest that does."""
    initials = "".join(word[:1] for word in key.lower().split("_"))
    near = difflib.get_close_matches(key.lower(), candidates, n=1, cutoff=0.5)
    near += [name for name in candidates if name == initials]  # learning_rate: lr
    names = ", ".join(candidates)
    hint = f"did you mean '{prefix}{near[0]}'?" if near else f"the keys here are: {names}"
    return f"unknown key '{prefix}{key}': {hint}"


def _explain(section: str, schema: type[Any], error: ValidationError) -> str:
    # Unknown keys first: a misspelt key also shows up as the right one missing.
    problems = sorted(error.errors(), key=lambda item: item["type"] != "extra_forbidden")
    problem = problems[0]
    # A union's location also names the alternative tried ("mixed_precision.bool").
    location = [str(part) for part in problem["loc"]]
    if isinstance(schema, type) and issubclass(schema, BaseModel) and location:
        fields = list(schema.model_fields)
        if problem["type"] == "extra_forbidden":
            return unknown_key(location[-1], fields, f"{section}.")
        location = location[:1] + [part for part in location[1:] if part.isdigit()]
    key = ".".join([section, *location])
    if problem["type"] == "missing":
        return f"key '{key}' is missing"
    if problem["type"] == "value_error":  # raised by a schema's own validator
        # A check across keys has no location: its message begins with the key at fault.
        return f"{key}{': ' if location else '.'}{problem['ctx']['error']}"
    reasons = [_reason(item) for item in problems if item["loc"][:1] == problem["loc"][:1]]
    text = " or ".join(dict.fromkeys(r[0].lower() + r[1:] for r in reasons))
    return f"{key}: {text}, not {_shown(problem['input'])}"


def _reason(problem: ErrorDetails) -> str:
    """What pydantic says, without names of Python's classes, and with one "not"."""
    if problem["type"] == "model_type":
        return "should be a section with keys"
    if problem["type"] in ("too_short", "too_long"):
        return problem["msg"].partition(" after validation")[0]
    return problem["msg"]


def _shown(value: object) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
