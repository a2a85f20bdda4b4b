"""A conversation with a model: what was said, and the next reply."""

import time
from collections.abc import Generator
from dataclasses import dataclass, replace

from model.engine import Engine, Sampling
from model.history import fit_chat


@dataclass
class Outcome:
    """How a reply went. Seconds are None before the first token; ``finish`` is None if stopped."""

    dropped: int = 0
    tokens: int = 0
    first_seconds: float | None = None
    seconds: float = 0.0
    finish: str | None = None

    @property
    def cut(self) -> str | None:
        """Why the reply ended before its end, if it did."""
        why = {
            None: "stopped",
            "length": "max_new_tokens reached",
            "context": "the context is full",
        }
        return why.get(self.finish)

    def summary(self) -> str:
        """One line for people."""
        parts = [f"{self.tokens} token{'' if self.tokens == 1 else 's'}"]
        if self.first_seconds is not None and self.tokens > 1:
            # The first token is the prompt's work.
            rate = (self.tokens - 1) / max(self.seconds - self.first_seconds, 1e-9)
            parts.append(f"{rate:,.0f} tokens/s")
        if self.first_seconds is not None:
            parts.append(f"first after {self.first_seconds:.2f} s")
        return ", ".join([*parts, self.cut] if self.cut else parts)


class Conversation:
    """Messages in turn. A reply is in them as far as it was made."""

    def __init__(self, engine: Engine, sampling: Sampling, system: str | None = None) -> None:
        self.engine = engine
        self.sampling = sampling
        self.system = system
        self.messages: list[dict[str, str]] = []
        self.outcome = Outcome()
        self._retries = 0

    @property
    def all_messages(self) -> list[dict[str, str]]:
        """The messages, the system prompt first."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, *self.messages]

    def reset(self) -> None:
        """Forgets what was said, not the system prompt."""
        self.messages = []

    def say(self, text: str) -> Generator[str, None, None]:
        """The reply to ``text``, piece by piece; the message counts only if there can be one.

        Raises ValueError, at once, for a message that leaves no room.
        """
        self._retries = 0
        return self._reply([*self.messages, {"role": "user", "content": text}])

    def retry(self) -> Generator[str, None, None]:
        """Another reply to the last message; with a seed, drawn with the next seed.

        Raises ValueError when there is nothing to reply to.
        """
        asked = list(self.messages)
        if asked and asked[-1]["role"] == "assistant":
            asked.pop()
        if not asked:
            raise ValueError("nothing was said yet")
        self._retries += 1
        return self._reply(asked)

    def _reply(self, asked: list[dict[str, str]]) -> Generator[str, None, None]:
        system = self.all_messages[: 1 if self.system else 0]
        seq_len = self.engine.model.config.seq_len
        ids, dropped = fit_chat(
            self.engine.tokenizer, [*system, *asked], seq_len, self.sampling.max_new_tokens
        )
        sampling = self.sampling
        if sampling.seed is not None:
            sampling = replace(sampling, seed=sampling.seed + self._retries)
        begun = time.perf_counter()
        pieces = self.engine.stream(ids, sampling)
        self.messages = asked
        self.outcome = Outcome(dropped=dropped)

        def texts() -> Generator[str, None, None]:
            outcome, reply = self.outcome, {"role": "assistant", "content": ""}
            self.messages.append(reply)
            try:
                for piece in pieces:
                    outcome.seconds = time.perf_counter() - begun
                    if outcome.first_seconds is None:
                        outcome.first_seconds = outcome.seconds
                    outcome.tokens += len(piece.token_ids)
                    outcome.finish = piece.finish
                    reply["content"] += piece.text
                    yield piece.text
            finally:
                pieces.close()

        return texts()
