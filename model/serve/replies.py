"""Replies in the shapes of the OpenAI API: whole ones, and the chunks of a stream."""

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from model.engine import Piece, TokenLogprob
from model.text import Vocabulary
from model.tokenizer import ChatTokenizer

Json = dict[str, Any]


class TokenNames:
    """How the API writes a token: as text, and as bytes, since half a character is no text."""

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        self._tokenizer = tokenizer
        self._vocabulary = Vocabulary(tokenizer)
        ids = range(tokenizer.vocab_size)
        self.longest = max(len(self._vocabulary.bytes(token)) for token in ids)

    def name(self, token: int) -> str:
        """Its text, in which what is no whole character is U+FFFD; of a control token its name."""
        data = self._vocabulary.bytes(token)
        return data.decode("utf-8", "replace") if data else self._control(token)

    def entry(self, token: int, logprob: float) -> Json:
        """One token of ``logprobs`` in a chat."""
        data = self._vocabulary.bytes(token) or self._control(token).encode()
        return {"token": self.name(token), "logprob": finite(logprob), "bytes": list(data)}

    def _control(self, token: int) -> str:
        return self._tokenizer.backend.id_to_token(token) or f"token_id:{token}"


def finite(logprob: float) -> float:
    """JSON has no infinity; the API writes -9999 for what is as good as impossible."""
    return max(logprob, -9999.0)


def finish_reason(piece: Piece) -> str | None:
    """The API's word for it: a full context is a matter of length."""
    return "length" if piece.finish == "context" else piece.finish


@dataclass
class Progress:
    """What has come of one choice."""

    texts: list[str] = field(default_factory=list)
    tokens: int = 0
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish: str | None = None

    def add(self, pieces: Sequence[Piece]) -> None:
        """Takes in what is new."""
        for piece in pieces:
            self.texts.append(piece.text)
            self.tokens += len(piece.token_ids)
            self.logprobs += piece.logprobs
            self.finish = finish_reason(piece) or self.finish


class Shape(Protocol):
    """What differs between chat and plain completions."""

    object_name: str
    chunk_name: str
    id_prefix: str

    def choice(self, text: str, logprobs: Sequence[TokenLogprob] | None) -> Json:
        """A whole choice, without index and finish_reason."""
        ...

    def opening(self) -> Json | None:
        """The choice of a stream's first chunk, if it has one before any text."""
        ...

    def delta(self, text: str, logprobs: Sequence[TokenLogprob] | None) -> Json:
        """The choice of a chunk."""
        ...


class ChatShape:
    """Of ``/v1/chat/completions``."""

    object_name = "chat.completion"
    chunk_name = "chat.completion.chunk"
    id_prefix = "chatcmpl-"

    def __init__(self, names: TokenNames) -> None:
        self._names = names

    def choice(self, text: str, logprobs: Sequence[TokenLogprob] | None) -> Json:
        message = {"role": "assistant", "content": text, "refusal": None}
        return {"message": message, "logprobs": self._logprobs(logprobs)}

    def opening(self) -> Json | None:
        return {"delta": {"role": "assistant", "content": ""}, "logprobs": None}

    def delta(self, text: str, logprobs: Sequence[TokenLogprob] | None) -> Json:
        return {
            "delta": {"content": text} if text else {},
            "logprobs": self._logprobs(logprobs),
        }

    def _logprobs(self, logprobs: Sequence[TokenLogprob] | None) -> Json | None:
        if logprobs is None:
            return None
        entry = self._names.entry
        content = [
            {
                **entry(one.token_id, one.logprob),
                "top_logprobs": [entry(token, logprob) for token, logprob in one.top],
            }
            for one in logprobs
        ]
        return {"content": content, "refusal": None}


class TextShape:
    """Of ``/v1/completions``. Offsets go on from chunk to chunk: one for each choice."""

    object_name = "text_completion"
    chunk_name = "text_completion"
    id_prefix = "cmpl-"

    def __init__(self, names: TokenNames) -> None:
        self._names = names
        self._offset = 0

    def choice(self, text: str, logprobs: Sequence[TokenLogprob] | None) -> Json:
        return {"text": text, "logprobs": self._logprobs(logprobs)}

    def opening(self) -> Json | None:
        return None

    delta = choice

    def _logprobs(self, logprobs: Sequence[TokenLogprob] | None) -> Json | None:
        if logprobs is None:
            return None
        tokens = [self._names.name(one.token_id) for one in logprobs]
        offsets = []
        for token in tokens:
            offsets.append(self._offset)
            self._offset += len(token)
        return {
            "tokens": tokens,
            "token_logprobs": [finite(one.logprob) for one in logprobs],
            # Halves of characters share a name: of those that do, the most probable stays.
            "top_logprobs": [
                {self._names.name(token): finite(logprob) for token, logprob in one.top[::-1]}
                for one in logprobs
            ],
            "text_offset": offsets,
        }


class Envelope:
    """What all objects of one request have in common."""

    def __init__(self, shape: Shape, model: str) -> None:
        self._shape = shape
        self._fields = {
            "id": shape.id_prefix + uuid.uuid4().hex,
            "created": int(time.time()),
            "model": model,
        }

    def whole(self, choices: Sequence[Json], usage: Json, more: Json) -> Json:
        """The answer to a request without a stream."""
        return {
            **self._fields,
            "object": self._shape.object_name,
            "choices": list(choices),
            "usage": usage,
            **more,
        }

    def chunk(self, choices: Sequence[Json], more: Json) -> Json:
        """One event of a stream."""
        return {
            **self._fields,
            "object": self._shape.chunk_name,
            "choices": list(choices),
            **more,
        }


def usage_of(prompt_tokens: int, completion_tokens: int) -> Json:
    """``usage``, in tokens."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }
