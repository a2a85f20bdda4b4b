"""Schema of the ``data`` section."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from stages.params import Section

EMBEDDED = "chitchat"
LOCAL = "local"
EMBEDDED_MARKER = "stages/download/chitchat.json"

# Keys that only data sets of the Hugging Face hub have, with the values that stand for none.
HUB_KEYS = {"config": None, "split": "train", "revision": None}

Scalar = str | int | float | bool | None


class DataParams(Section):
    """Where conversations come from and which of them are kept."""

    name: Annotated[str, Field(min_length=1)]
    path: Annotated[str, Field(min_length=1)]
    config: str | None
    split: Annotated[str, Field(min_length=1)]
    revision: str | None
    subset: Annotated[int, Field(gt=0)] | None
    format: Literal["auto", "conversation", "messages", "sharegpt", "alpaca", "pairs", "text"]
    filter: dict[str, Scalar | list[Scalar]]
    min_turns: Annotated[int, Field(ge=1)]
    val_fraction: Annotated[float, Field(gt=0, lt=1)]
    max_bad_fraction: Annotated[float, Field(ge=0, le=1)]

    @model_validator(mode="after")
    def _path_exists(self) -> "DataParams":
        if self.name == LOCAL and self.path == EMBEDDED_MARKER:
            raise ValueError("path: set it to your own file or folder (data.name is local)")
        if not Path(self.path).exists():
            raise ValueError(f"path: '{self.path}' does not exist")
        return self

    @model_validator(mode="after")
    def _no_key_without_effect(self) -> "DataParams":
        if self.name != LOCAL and self.path != EMBEDDED_MARKER:
            raise ValueError(
                f"path: '{self.path}' is not used unless data.name is {LOCAL}: set data.name to "
                f"{LOCAL}, or data.path back to {EMBEDDED_MARKER}"
            )
        if self.name in (EMBEDDED, LOCAL):
            for key, none in HUB_KEYS.items():
                if (value := getattr(self, key)) != none:
                    raise ValueError(
                        f"{key}: '{value}' is used for data sets of the Hugging Face hub alone: "
                        f"set it back to {none or 'null'}, or data.name ('{self.name}') to an id "
                        "(owner/name)"
                    )
        return self
