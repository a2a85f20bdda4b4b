"""The bytes that each token stands for: what its cost is divided by, and how it is shown."""

import numpy as np

from model.tokenizer import ChatTokenizer
from stages.corpus import Ids

# GPT-2's alphabet: printable bytes stand for themselves, the others for characters from U+0100 on.
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = sorted(set(range(256)) - set(_PRINTABLE))
_BYTES = {chr(byte): byte for byte in _PRINTABLE}
_BYTES |= {chr(0x100 + number): byte for number, byte in enumerate(_OTHERS)}


def token_texts(tokenizer: ChatTokenizer, vocab_size: int) -> list[bytes]:
    """The bytes of each of ``vocab_size`` ids; control tokens (and unused ids) have none."""
    texts = [b""] * vocab_size
    for token, number in tokenizer.backend.get_vocab(with_added_tokens=True).items():
        if number < vocab_size and not tokenizer.is_control(number):
            known = all(character in _BYTES for character in token)
            texts[number] = bytes(map(_BYTES.__getitem__, token)) if known else token.encode()
    return texts


def token_sizes(texts: list[bytes]) -> Ids:
    """Their lengths, as an array to look ids up in."""
    return np.array([len(text) for text in texts], np.int64)
