"""Schema of the ``data`` section."""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator, model_validator

from stages.download.folders import TRAIN, files_below, files_of_split
from stages.download.formats import AUTO, COLUMNS, FORMATS
from stages.params import Section, left_behind

EMBEDDED = "chitchat"
LOCAL = "local"
EMBEDDED_MARKER = "stages/download/chitchat.json"

# Keys that only some sources have, with the values that stand for none.
HUB_KEYS = {"config": None, "revision": None}
SPLIT_KEYS = {"split": TRAIN, "validation_split": None}

# Columns that are no part of a conversation: what is known of it.
LANGUAGE, REDACTED, MODERATION = "language", "redacted", "openai_moderation"
_MEANT = (*sorted(COLUMNS), LANGUAGE, REDACTED, MODERATION)

Scalar = str | int | float | bool | None
Count = Annotated[int, Field(ge=1)]


class DataParams(Section):
    """Where conversations come from and which of them are kept."""

    name: Annotated[str, Field(min_length=1)]
    path: Annotated[str, Field(min_length=1)]
    config: str | None
    split: Annotated[str, Field(min_length=1)]
    validation_split: Annotated[str, Field(min_length=1)] | None
    revision: str | None
    subset: Count | None
    format: str
    columns: dict[str, Annotated[str, Field(min_length=1)]]
    filter: dict[str, Scalar | list[Scalar]]
    drop_redacted: bool
    drop_flagged: bool
    min_turns: Count
    max_turns: Count | None
    min_chars: Count
    max_chars: Count | None
    val_fraction: Annotated[float, Field(gt=0, lt=1)]
    max_bad_fraction: Annotated[float, Field(ge=0, le=1)]

    @field_validator("name")
    @classmethod
    def _is_a_source(cls, value: str) -> str:
        own = [EMBEDDED, LOCAL]
        if value in own:
            return value
        if "/" not in value and difflib.get_close_matches(value.lower(), own, n=1, cutoff=0.75):
            raise ValueError(f"no source '{value}'{_nearest(value.lower(), own)}")
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id

        try:
            validate_repo_id(value)
        except HFValidationError:
            raise ValueError(
                f"'{value}' is neither {EMBEDDED}, {LOCAL} nor an id of the hub (owner/name)"
            ) from None
        return value

    @field_validator("format")
    @classmethod
    def _known_format(cls, value: str) -> str:
        names = [AUTO, *FORMATS]
        if value not in names:
            raise ValueError(f"no format '{value}'{_nearest(value, names)}")
        return value

    @model_validator(mode="after")
    def _path_exists(self) -> "DataParams":
        if self.name == LOCAL and self.path == EMBEDDED_MARKER:
            raise ValueError("path: set it to your own file or folder (data.name is local)")
        path = Path(self.path)
        if not (path.is_file() or path.is_dir()):
            home = ": give the whole path, ~ is not expanded" if self.path.startswith("~") else ""
            what = "is neither a file nor a folder" if path.exists() else "does not exist"
            raise ValueError(f"path: '{self.path}' {what}{home or left_behind(path)}")
        return self

    @model_validator(mode="after")
    def _no_key_without_effect(self) -> "DataParams":
        if self.name != LOCAL and self.path != EMBEDDED_MARKER:
            raise ValueError(
                f"path: '{self.path}' is not used unless data.name is {LOCAL}: set data.name to "
                f"{LOCAL}, or data.path back to {EMBEDDED_MARKER}"
            )
        if self.name in (EMBEDDED, LOCAL):
            self._check_unset(
                HUB_KEYS,
                "it is used for data sets of the Hugging Face hub alone: set it back to {none}, or "
                f"data.name ('{self.name}') to an id (owner/name)",
            )
        if self.name == EMBEDDED or (self.name == LOCAL and not Path(self.path).is_dir()):
            source = EMBEDDED if self.name == EMBEDDED else f"the file '{self.path}'"
            self._check_unset(SPLIT_KEYS, f"{source} has no splits: set it back to {{none}}")
        return self

    def _check_unset(self, keys: Mapping[str, str | None], reason: str) -> None:
        for key, none in keys.items():
            if (value := getattr(self, key)) != none:
                raise ValueError(f"{key}: '{value}': {reason.format(none=none or 'null')}")

    @model_validator(mode="after")
    def _bounds(self) -> "DataParams":
        for what in ("turns", "chars"):
            least, most = getattr(self, f"min_{what}"), getattr(self, f"max_{what}")
            if most is not None and least > most:
                raise ValueError(f"min_{what}: {least} is above max_{what} {most}")
        return self

    @model_validator(mode="after")
    def _columns_are_read(self) -> "DataParams":
        own = set(self.columns)
        for name in self.columns:
            if name not in _MEANT:
                raise ValueError(f"columns: no format reads '{name}'{_nearest(name, _MEANT)}")
        if len(set(self.columns.values())) < len(self.columns):
            raise ValueError("columns: one column of the data is given for two")
        known = {LANGUAGE, *((REDACTED,) if self.drop_redacted else ())}
        known |= {MODERATION} if self.drop_flagged else set()
        formats = FORMATS if self.format == AUTO else {self.format: FORMATS[self.format]}
        if not any(own <= form.reads | known for form in formats.values()):
            names = " and ".join(f"'{name}'" for name in self.columns)
            which = "no format reads" if self.format == AUTO else f"'{self.format}' does not read"
            raise ValueError(f"columns: {which} {names}")
        return self

    @model_validator(mode="after")
    def _splits_are_there(self) -> "DataParams":
        if self.validation_split == self.split:
            raise ValueError(f"validation_split: '{self.split}' is data.split too")
        wanted = [s for s in (self.validation_split, self.split) if s not in (None, TRAIN)]
        if self.name == LOCAL and wanted:
            path = Path(self.path)
            files, _ = files_below(path)
            for split in (self.validation_split, self.split):
                if split is not None:
                    files_of_split(files, path, split, self.validation_split)
        return self

    @property
    def reads(self) -> frozenset[str]:
        """The columns of a table that this section has a use for, by their names there."""
        wanted = {*COLUMNS, LANGUAGE}
        if self.drop_redacted:
            wanted.add(REDACTED)
        if self.drop_flagged:
            # Of the many fields of each message's verdict the one that is asked for.
            wanted.add(self.columns.get(MODERATION, MODERATION) + ".flagged")
        return frozenset({*wanted, *self.columns.values(), *self.filter})


def _nearest(name: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f": did you mean '{near[0]}'?" if near else f" (there are {', '.join(names)})"
