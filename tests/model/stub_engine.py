"""An engine whose replies and pace a test sets."""

import time
from collections.abc import Callable, Collection, Generator, Sequence
from types import SimpleNamespace

from model.engine import Piece, Sampling, TokenLogprob
from model.tokenizer import ChatTokenizer

Script = Callable[[str], Sequence[str]]


class StubEngine:
    """As ``model.engine.Engine``, but replies are what ``script`` gives for the prompt's text.

    Each of its strings is one token's text. ``pause`` is the time that a step takes. ``asked``
    lists prompts and settings in the order of their coming.
    """

    def __init__(
        self,
        tokenizer: ChatTokenizer,
        script: Script,
        *,
        slots: int = 4,
        pause: float = 0.0,
        seq_len: int = 256,
    ) -> None:
        self.tokenizer, self.script, self.slots, self.pause = tokenizer, script, slots, pause
        self.backend = "stub"
        self.model = SimpleNamespace(
            config=SimpleNamespace(
                seq_len=seq_len,
                vocab_size=tokenizer.vocab_size,
                num_parameters=lambda: 1_234,
            )
        )
        self.asked: list[tuple[str, Sampling]] = []
        self.steps = 0
        self.largest_batch = 0
        self.broken = False
        self.complaint = "what a user said"
        self._live: dict[int, tuple[list[str], Sampling, int]] = {}
        self._next = 0

    @property
    def free(self) -> int:
        return self.slots - len(self._live)

    def add(
        self, prompt: Sequence[int], sampling: Sampling, end: Collection[int] | None = None
    ) -> int:
        assert self.free
        text = self.tokenizer.decode(prompt, control=True)
        self.asked.append((text, sampling))
        self._live[self._next] = (list(self.script(text)), sampling, 0)
        self._next += 1
        return self._next - 1

    def step(self) -> list[tuple[int, Piece]]:
        time.sleep(self.pause)
        self.steps += 1
        self.largest_batch = max(self.largest_batch, len(self._live))
        if self.broken:
            raise RuntimeError(self.complaint)
        pieces = []
        for handle, (texts, sampling, made) in list(self._live.items()):
            if made == len(texts):
                piece = Piece("", (), (), "stop")
            else:
                made += 1
                last = made == sampling.max_new_tokens
                logprobs = () if sampling.logprobs is None else (TokenLogprob(7, -1.0, ()),)
                piece = Piece(texts[made - 1], (7,), logprobs, "length" if last else None)
            self._live[handle] = (texts, sampling, made)
            if piece.finish is not None:
                del self._live[handle]
            pieces.append((handle, piece))
        return pieces

    def cancel(self, handle: int) -> None:
        self._live.pop(handle, None)

    def stream(
        self, prompt: Sequence[int], sampling: Sampling, end: Collection[int] | None = None
    ) -> Generator[Piece, None, None]:
        handle = self.add(prompt, sampling, end)
        try:
            while handle in self._live:
                yield from (piece for _, piece in self.step())
        finally:
            self.cancel(handle)
