"""A model under its name: what a request for it becomes before it waits for a slot."""

import time
from collections.abc import Sequence
from typing import Any

from model.engine import Engine
from model.history import fit_chat
from model.serve.errors import ApiError
from model.serve.protocol import ChatRequest
from model.serve.replies import TokenNames
from model.serve.scheduler import Scheduler


class Served:
    """A model, its name, and the thread that makes its replies."""

    def __init__(self, name: str, engine: Engine, waiting: int) -> None:
        """At most ``waiting`` replies wait for a slot of ``engine``."""
        self.name = name
        self.scheduler = Scheduler(engine, waiting)
        self.names = TokenNames(engine.tokenizer)
        self.seq_len = engine.model.config.seq_len
        self._tokenizer = engine.tokenizer
        self._vocab_size = engine.model.config.vocab_size
        self._created = int(time.time())

    def card(self) -> dict[str, Any]:
        """The model as ``/v1/models`` lists it; ``max_model_len`` is vLLM's name for seq_len."""
        return {
            "id": self.name,
            "object": "model",
            "created": self._created,
            "owned_by": "parley",
            "max_model_len": self.seq_len,
        }

    def chat_ids(self, request: ChatRequest, new_tokens: int) -> tuple[list[int], int]:
        """Ids of a conversation, and how many of its messages were left out.

        Raises ApiError for one that does not fit.
        """
        messages = [message.in_template() for message in request.messages]
        if request.truncation == "auto":
            try:
                return fit_chat(self._tokenizer, messages, self.seq_len, new_tokens)
            except ValueError as error:
                raise self._too_long(str(error), "messages") from None
        self._check_text("".join(message["content"] for message in messages), "messages")
        ids = self._tokenizer.encode_chat(messages, add_generation_prompt=True)
        self._check_ids(ids, "messages")
        return ids, 0

    def prompt_ids(self, prompt: str | list[int]) -> list[int]:
        """Ids of a text to go on from, or the ids themselves. Raises ApiError."""
        if isinstance(prompt, str):
            self._check_text(prompt, "prompt")
            tokenizer = self._tokenizer
            prompt = [tokenizer.bos_id, tokenizer.role_ids["text"], *tokenizer.encode(prompt)]
        self._check_ids(prompt, "prompt")
        if not all(0 <= token < self._vocab_size for token in prompt):
            raise ApiError(400, f"a token id is not in 0 to {self._vocab_size - 1}", param="prompt")
        return prompt

    def _check_text(self, text: str, param: str) -> None:
        """Refuses, without encoding it, what doesn't fit even if all its tokens are the longest."""
        least = len(text.encode()) // self.names.longest
        if least >= self.seq_len:
            raise self._too_long(f"the prompt has more than {least:,} tokens", param)

    def _check_ids(self, ids: Sequence[int], param: str) -> None:
        if len(ids) >= self.seq_len:
            raise self._too_long(f"the prompt has {len(ids):,} tokens", param)

    def _too_long(self, message: str, param: str) -> ApiError:
        return ApiError(
            400,
            f"{message}; this model's context is {self.seq_len:,} tokens, the reply's included",
            param=param,
            code="context_length_exceeded",
        )
