"""Text of a reply while it grows: whole characters, and strings that end it."""

import codecs
from collections.abc import Sequence

from tokenizers import decoders, pre_tokenizers

from model.tokenizer import ChatTokenizer


def byte_of() -> dict[str, int]:
    """The byte that each character of a byte-level BPE's vocabulary stands for.

    Printable bytes stand for themselves, the others follow from U+0100 on (Radford et al. 2019).
    """
    itself = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in itself]
    table = {chr(byte): byte for byte in itself}
    table |= {chr(0x100 + number): byte for number, byte in enumerate(others)}
    assert set(table) == set(pre_tokenizers.ByteLevel.alphabet())
    return table


class Vocabulary:
    """What each token adds to a text, so that streams needn't decode from the beginning."""

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        """Raises ValueError for a tokenizer whose decoder is not byte-level."""
        backend = tokenizer.backend
        if not isinstance(backend.decoder, decoders.ByteLevel):
            raise ValueError("the tokenizer's decoder is not that of a byte-level BPE")
        table = byte_of()
        special = {
            number for number, token in backend.get_added_tokens_decoder().items() if token.special
        }
        self._bytes: dict[int, bytes] = {}
        for token, number in backend.get_vocab(with_added_tokens=True).items():
            if number in special:
                continue
            try:
                self._bytes[number] = bytes([table[character] for character in token])
            except KeyError:  # an added token: its content as it is
                self._bytes[number] = token.encode()

    def bytes(self, token: int) -> bytes:
        """The bytes of ``token``; none for a control token and for an id without a token."""
        return self._bytes.get(token, b"")


class Utf8Stream:
    """Bytes in, whole characters out; what is not UTF-8 becomes U+FFFD, as when decoded at once."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, data: bytes, final: bool = False) -> str:
        """The characters that ``data`` completes; with ``final``, what is left over too."""
        return self._decoder.decode(data, final)


class StopMatcher:
    """Finds the first of several strings in a text that comes in pieces.

    Knuth, Morris & Pratt 1977, for each string. Text that may begin one is held back.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [(stop, _failures(stop)) for stop in stops]
        self._matched = [0] * len(self._stops)
        self._held = ""

    def feed(self, text: str) -> tuple[str, bool]:
        """Text that can be shown, and whether a string was found (the text ends before it).

        The string that ends first counts; of those that end together, the longest.
        """
        if not self._stops:
            return text, False
        pending = self._held + text
        begun = len(self._held)
        for place, character in enumerate(text, begun + 1):
            found = 0
            for number, (stop, failures) in enumerate(self._stops):
                matched = self._matched[number]
                while matched and stop[matched] != character:
                    matched = failures[matched - 1]
                matched += stop[matched] == character
                if matched == len(stop):
                    found = max(found, matched)
                self._matched[number] = matched % len(stop)
            if found:
                self._held = ""
                return pending[: place - found], True
        shown = len(pending) - max(self._matched)
        self._held = pending[shown:]
        return pending[:shown], False

    def rest(self) -> str:
        """What was held back, at the end of a text in which nothing was found."""
        held, self._held = self._held, ""
        return held


def _failures(stop: str) -> list[int]:
    """For each prefix, the length of its longest proper prefix that is its suffix too."""
    failures = [0] * len(stop)
    matched = 0
    for place in range(1, len(stop)):
        while matched and stop[matched] != stop[place]:
            matched = failures[matched - 1]
        matched += stop[matched] == stop[place]
        failures[place] = matched
    return failures
