"""Schema of the ``tokenizer`` section."""

from typing import Annotated

from pydantic import Field, field_validator

from stages.params import Section

# Control tokens and the 256 bytes. Stated here so that checking settings needs no `tokenizers`;
# a test compares it with the tokenizer's own count.
SMALLEST_VOCAB = 263


class TokenizerParams(Section):
    """The vocabulary to learn."""

    vocab_size: Annotated[int, Field(le=2**20)]

    @field_validator("vocab_size")
    @classmethod
    def _holds_the_bytes(cls, value: int) -> int:
        if value < SMALLEST_VOCAB:
            raise ValueError(
                f"{value} is below {SMALLEST_VOCAB}, the control tokens and the 256 bytes"
            )
        return value
