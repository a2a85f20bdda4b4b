"""Compressors see the bytes that the model's bits are divided by."""

import bz2
import zlib

import pytest

from stages.evaluate.compression import compressed_bits_per_byte
from tests.builders import chats

BZIP2 = 1.5826


def test_all_contents_in_order_and_nothing_else_are_compressed() -> None:
    conversations = chats(40, 5)
    text = "".join(m["content"] for messages in conversations for m in messages).encode()
    found = compressed_bits_per_byte(conversations)
    assert found["bzip2"] == pytest.approx(8 * len(bz2.compress(text, 9)) / len(text), rel=1e-4)
    # In pieces zlib may come to a few bytes more or less.
    assert found["zlib"] == pytest.approx(8 * len(zlib.compress(text, 9)) / len(text), rel=1e-2)


def test_the_portable_figure_is_what_it_was_on_another_machine() -> None:
    """bzip2 has one encoder: a change here would be a change of the metric."""
    assert compressed_bits_per_byte(chats(200, 7))["bzip2"] == BZIP2


def test_no_text_is_not_compressed() -> None:
    assert compressed_bits_per_byte([]) == {}
