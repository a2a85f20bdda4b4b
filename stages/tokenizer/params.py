"""Schema of the ``tokenizer`` section."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator

from stages.params import Section, left_behind

# Control tokens and the 256 bytes. Stated here so that checking settings needs no `tokenizers`;
# a test compares it with the tokenizer's own count.
SMALLEST_VOCAB = 263

# The default of tokenizer.path: the module that learns one, and a dependency as any other.
LEARNT = "stages/tokenizer/learn.py"
FILE = "tokenizer.json"


class TokenizerParams(Section):
    """The vocabulary to learn, or to take."""

    path: Annotated[str, Field(min_length=1)]
    vocab_size: Annotated[int, Field(le=2**20)]
    max_chars: Annotated[int, Field(ge=1)]

    @field_validator("path")
    @classmethod
    def _is_there(cls, value: str) -> str:
        path = Path(value)
        if value == LEARNT or (path.suffix == ".json" and path.is_file()):
            return value
        if not path.is_dir():
            hint = left_behind(path) or f": name one, or {LEARNT}"
            raise ValueError(f"'{value}' is no folder and no {FILE}{hint}")
        if not (path / FILE).is_file():
            raise ValueError(f"there is no {FILE} in '{value}'")
        return value

    @field_validator("vocab_size")
    @classmethod
    def _holds_the_bytes(cls, value: int) -> int:
        if value < SMALLEST_VOCAB:
            raise ValueError(
                f"{value} is below {SMALLEST_VOCAB}, the control tokens and the 256 bytes"
            )
        return value
