"""The generation engine: many replies at once, on preallocated slots of keys and values.

A prompt is computed in one pass (prefill); then every live reply gets one token a step (decode). A
reply is the same, to the token, alone or in any batch, streamed or not: prompts are computed one by
one, a row's sums don't depend on the others', and a seeded draw depends on the seed and on the
position in the reply alone.
"""

from collections.abc import Collection, Generator, Sequence
from dataclasses import dataclass, field
from operator import index
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from model.loading import load
from model.native.backend import NativeBackend
from model.native.build import NoKernel, start
from model.sampling import Sampling
from model.text import StopMatcher, Utf8Stream, Vocabulary
from model.tokenizer import ChatTokenizer
from model.torch_backend import TorchBackend
from model.transformer import Transformer

__all__ = ["Engine", "Piece", "Reply", "Sampling", "TokenLogprob"]

Finish = Literal["stop", "length", "context"]
DEFAULT = Sampling()
# Where auto goes from fp32 to bf16: weights beyond the processor's caches are read at the speed of
# memory, so that half the bytes take half the time.
FP32_PARAMETERS = 4 * 2**20
WEIGHTS = ("auto", "fp32", "bf16", "int8")


@dataclass(frozen=True)
class TokenLogprob:
    """A token's log-probability in the model's own distribution, and the most probable tokens."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Piece:
    """What one step adds to one reply.

    ``text`` has whole characters only and may be empty; text that may begin a stop string is held
    back. The token that ends the turn is not among ``token_ids``. ``finish`` is None while the
    reply goes on, then "stop" (end of turn, or a stop string), "length" (``max_new_tokens``) or
    "context" (prompt and reply fill the model's ``seq_len``).
    """

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...]
    finish: Finish | None


@dataclass(frozen=True)
class Reply:
    """A whole reply; see ``Piece``."""

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...]
    finish: Finish
    prompt_tokens: int


class Backend(Protocol):
    """The network on slots, and the choice of tokens by it."""

    name: str

    def begin(self, slot: int, prompt: Sequence[int], sampling: Sampling, seed: int) -> int:
        """Computes a prompt and chooses the first token behind it."""

    def step(self, slots: Sequence[int]) -> list[int]:
        """The next token of each of ``slots``."""

    def logits(self, slot: int) -> Tensor:
        """Those (vocab_size,) that the newest token of ``slot`` was chosen by."""


@dataclass
class _Live:
    """A reply in the making."""

    slot: int
    prompt: Sequence[int]
    sampling: Sampling
    seed: int
    end: frozenset[int]
    limit: int
    at_limit: Finish
    matcher: StopMatcher
    characters: Utf8Stream = field(default_factory=Utf8Stream)
    made: int = 0


class Engine:
    """Makes replies of one model. One thread may use it at a time.

    The weights are those at the time it is made: after a change of the model, make another.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: ChatTokenizer,
        *,
        slots: int = 16,
        weights: str = "auto",
        native: bool | None = None,
        backend: Backend | None = None,
    ) -> None:
        """Room for ``slots`` replies at a time.

        ``weights`` is fp32, bf16 or int8 (the weights alone; sums are float32), or auto: fp32 up to
        FP32_PARAMETERS, bf16 above. ``native`` True computes by the kernel for CPUs, which a C++
        compiler makes on first use, False by torch's operations; None by the kernel where it can.
        ``backend`` is one that ``make_backend`` made of this model for as many slots.

        Raises ValueError for a setting out of range, RuntimeError where ``native`` is True and
        there is no compiler.
        """
        self.model, self.tokenizer, self.slots = model, tokenizer, slots
        self._vocabulary = Vocabulary(tokenizer)
        self._backend = backend or make_backend(model, slots, weights, native)
        self._free = list(range(slots))[::-1]
        self._live: dict[int, _Live] = {}
        self._next = 0

    @classmethod
    def open(cls, folder: str | Path, device: torch.device | str = "cpu", **same: Any) -> "Engine":
        """The engine of a model folder; ``same`` as above. Raises as ``model.load`` besides."""
        if torch.device(device).type == "cpu" and same.get("native") is not False:
            start()
        model, tokenizer = load(folder, device)
        return cls(model, tokenizer, **same)

    @property
    def backend(self) -> str:
        """What computes, and the weights' format, for people to read."""
        return self._backend.name

    @property
    def free(self) -> int:
        """Slots that are free now."""
        return len(self._free)

    def stream(
        self,
        prompt: Sequence[int],
        sampling: Sampling = DEFAULT,
        end: Collection[int] | None = None,
    ) -> Generator[Piece, None, None]:
        """The reply to ``prompt``, piece by piece; closed before its end, it frees its slot.

        ``end`` are the ids that end a reply (the tokenizer's end of turn by default). Arguments are
        checked at once, before the first piece is asked for. Raises ValueError for an empty prompt,
        ids out of range and a prompt that leaves no room; RuntimeError when no slot is free.
        """
        self._check(prompt)
        return self._stream(prompt, sampling, end)

    def _stream(
        self, prompt: Sequence[int], sampling: Sampling, end: Collection[int] | None
    ) -> Generator[Piece, None, None]:
        handle = self.add(prompt, sampling, end)
        try:
            while handle in self._live:
                for _, piece in self._advance([handle]):
                    yield piece
        finally:
            self.cancel(handle)

    def replies(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling | Sequence[Sampling] = DEFAULT,
        end: Collection[int] | None = None,
    ) -> list[Reply]:
        """The replies to any number of prompts, as many at a time as slots are free.

        ``sampling`` is one for all or one for each. Raises as ``stream``.
        """
        each = [sampling] * len(prompts) if isinstance(sampling, Sampling) else list(sampling)
        if len(each) != len(prompts):
            raise ValueError(f"{len(each)} samplings for {len(prompts)} prompts")
        for prompt in prompts:
            self._check(prompt)
        if prompts and not self._free:
            raise RuntimeError("no slot is free")
        pieces: list[list[Piece]] = [[] for _ in prompts]
        number_of: dict[int, int] = {}
        waiting = iter(range(len(prompts)))
        try:
            while True:
                while self._free and (number := next(waiting, None)) is not None:
                    number_of[self.add(prompts[number], each[number], end)] = number
                live = [handle for handle in number_of if handle in self._live]
                if not live:
                    break
                for handle, piece in self._advance(live):
                    pieces[number_of[handle]].append(piece)
        finally:
            for handle in number_of:
                self.cancel(handle)
        return [
            _joined(of_one, len(prompt)) for of_one, prompt in zip(pieces, prompts, strict=True)
        ]

    def add(
        self,
        prompt: Sequence[int],
        sampling: Sampling = DEFAULT,
        end: Collection[int] | None = None,
    ) -> int:
        """Begins a reply in a free slot; ``step`` makes it. Returns its handle.

        Raises as ``stream``.
        """
        self._check(prompt)
        if not self._free:
            raise RuntimeError("no slot is free")
        room = self.model.config.seq_len - len(prompt)
        seed = sampling.seed
        if seed is None:
            # Greedy replies leave torch's generator as it was.
            seed = int(torch.randint(2**63 - 1, ())) if sampling.temperature else 0
        handle, self._next = self._next, self._next + 1
        self._live[handle] = _Live(
            slot=self._free.pop(),
            prompt=tuple(map(index, prompt)),
            sampling=sampling,
            seed=seed,
            end=frozenset((self.tokenizer.end_id,) if end is None else end),
            limit=min(sampling.max_new_tokens, room),
            at_limit="length" if sampling.max_new_tokens <= room else "context",
            matcher=StopMatcher(sampling.stop),
        )
        return handle

    def step(self) -> list[tuple[int, Piece]]:
        """One more token for every live reply: handles and pieces."""
        return self._advance(list(self._live))

    def cancel(self, handle: int) -> None:
        """Ends a reply and frees its slot; an unknown or finished handle is ignored."""
        live = self._live.pop(handle, None)
        if live is not None:
            self._free.append(live.slot)

    def _check(self, prompt: Sequence[int]) -> None:
        config = self.model.config
        if not len(prompt):
            raise ValueError("the prompt is empty")
        if len(prompt) >= config.seq_len:
            raise ValueError(
                f"the prompt has {len(prompt)} tokens: no room for a reply in the model's "
                f"{config.seq_len}"
            )
        if min(prompt) < 0 or max(prompt) >= config.vocab_size:
            wrong = next(token for token in prompt if not 0 <= token < config.vocab_size)
            raise ValueError(
                f"the prompt's id {wrong} is not in the vocabulary of {config.vocab_size}"
            )

    def _advance(self, handles: Sequence[int]) -> list[tuple[int, Piece]]:
        pieces: list[tuple[int, Piece]] = []
        going: list[int] = []
        for handle in handles:
            live = self._live[handle]
            if not live.limit:
                pieces.append((handle, self._finish(handle, "", live.at_limit)))
            elif live.made:
                going.append(handle)
            else:
                token = self._backend.begin(live.slot, live.prompt, live.sampling, live.seed)
                pieces.append((handle, self._take(handle, token)))
        if going:
            tokens = self._backend.step([self._live[handle].slot for handle in going])
            for handle, token in zip(going, tokens, strict=True):
                pieces.append((handle, self._take(handle, token)))
        return pieces

    def _take(self, handle: int, token: int) -> Piece:
        """What the next token of a reply adds to it."""
        live = self._live[handle]
        if token in live.end:
            return self._finish(handle, "", "stop")
        live.made += 1
        logprobs: tuple[TokenLogprob, ...] = ()
        if live.sampling.logprobs is not None:
            logits = self._backend.logits(live.slot)
            logprobs = (_logprob(logits, token, live.sampling.logprobs),)
        text, stopped = live.matcher.feed(live.characters.feed(self._vocabulary.bytes(token)))
        if stopped:
            self.cancel(handle)
            return Piece(text, (token,), logprobs, "stop")
        if live.made < live.limit:
            return Piece(text, (token,), logprobs, None)
        last = self._finish(handle, text, live.at_limit)
        return Piece(last.text, (token,), logprobs, last.finish)

    def _finish(self, handle: int, text: str, finish: Finish) -> Piece:
        """Ends a reply with what was held back of its text."""
        live = self._live[handle]
        self.cancel(handle)
        last, stopped = live.matcher.feed(live.characters.feed(b"", final=True))
        text += last if stopped else last + live.matcher.rest()
        return Piece(text, (), (), "stop" if stopped else finish)


def make_backend(
    model: Transformer, slots: int = 1, weights: str = "auto", native: bool | None = None
) -> Backend:
    """What computes for an engine; arguments and errors are the engine's."""
    if slots < 1:
        raise ValueError(f"slots {slots} is below 1")
    if weights not in WEIGHTS:
        raise ValueError(f"weights '{weights}' is none of {', '.join(WEIGHTS)}")
    config, device = model.config, model.embedding.weight.device
    if weights == "auto":
        weights = "fp32" if config.num_parameters() <= FP32_PARAMETERS else "bf16"
    if native is None:
        native_wanted = device.type == "cpu"
    elif native and device.type != "cpu":
        raise ValueError(f"native: the kernel computes on a CPU, the model is on {device}")
    else:
        native_wanted = native
    if native_wanted:
        try:
            return NativeBackend(model, slots, weights)
        except NoKernel as reason:
            if native:
                raise RuntimeError(f"native: {reason}") from None
    return TorchBackend(model, slots, weights)


def _logprob(logits: Tensor, token: int, count: int) -> TokenLogprob:
    logprobs = logits.float().log_softmax(dim=-1)
    values, ids = logprobs.topk(min(count, len(logprobs)))
    top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
    return TokenLogprob(token, float(logprobs[token]), top)


def _joined(pieces: Sequence[Piece], prompt_tokens: int) -> Reply:
    finish = pieces[-1].finish
    assert finish is not None
    return Reply(
        "".join(piece.text for piece in pieces),
        tuple(token for piece in pieces for token in piece.token_ids),
        tuple(logprob for piece in pieces for logprob in piece.logprobs),
        finish,
        prompt_tokens,
    )
