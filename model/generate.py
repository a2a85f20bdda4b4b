"""One reply to a prompt, as text: the shortest way to talk to a model."""

import reprlib
import threading
import weakref
from collections.abc import Mapping, Sequence

from model.engine import Engine, make_backend
from model.native.backend import NativeBackend
from model.sampling import Sampling
from model.tokenizer import ChatTokenizer
from model.transformer import Transformer

# Packing a model's weights for the kernel takes longer than a short reply: kept for the next call.
_backends: weakref.WeakKeyDictionary[Transformer, NativeBackend] = weakref.WeakKeyDictionary()
_lock = threading.Lock()  # a backend serves one caller at a time


def generate_with_cache(
    model: Transformer,
    tokenizer: ChatTokenizer,
    prompt: str | Sequence[Mapping[str, str]],
    max_length: int = 100,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float = 1.0,
    seed: int | None = None,
) -> str:
    """The assistant's reply to ``prompt``.

    ``prompt`` is one user message, or a conversation as ``{"role": …, "content": …}``. At most
    ``max_length`` new tokens are made; the reply also ends with its turn, or when prompt and
    reply fill the model's ``seq_len``. ``temperature=0`` takes the most probable token each time.
    ``seed`` makes sampling repeatable; without it torch's global generator decides.

    Raises ValueError for a prompt of another kind or that leaves no room for a reply, and for
    settings out of range.
    """
    ids = tokenizer.encode_chat(_messages(prompt), add_generation_prompt=True)
    sampling = Sampling(
        max_new_tokens=max_length, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed
    )
    with _lock:
        backend = _backends.get(model) or make_backend(model)
        # Weights may have changed since, by training or by hand.
        if isinstance(backend, NativeBackend):
            if not backend.fits(model):
                backend = make_backend(model)
            if isinstance(backend, NativeBackend):
                _backends[model] = backend
        (reply,) = Engine(model, tokenizer, slots=1, backend=backend).replies([ids], sampling)
    return reply.text


def _messages(prompt: object) -> Sequence[Mapping[str, str]]:
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    if isinstance(prompt, Sequence):
        return prompt
    raise ValueError(f"the prompt must be text or a list of messages, not {reprlib.repr(prompt)}")
