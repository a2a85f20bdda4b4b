"""Generation on the KV cache: the prompt in one pass, then one token at a time."""

import reprlib
from collections.abc import Collection, Iterator, Mapping, Sequence

import torch

from model.cache import KVCache
from model.sampling import check_sampling, choose
from model.tokenizer import ChatTokenizer
from model.transformer import Transformer


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
    ``seed`` makes sampling repeatable; without it torch's global generator is used.

    Raises ValueError for a prompt of another kind or that leaves no room for a reply, and for
    settings out of range.
    """
    ids = tokenizer.encode_chat(_messages(prompt), add_generation_prompt=True)
    generator = torch.Generator().manual_seed(seed) if seed is not None else None
    reply = generate_ids(
        model, ids, max_length, temperature, top_k, top_p, generator, stop=(tokenizer.end_id,)
    )
    return tokenizer.decode(reply)


def _messages(prompt: object) -> Sequence[Mapping[str, str]]:
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    if isinstance(prompt, Sequence):
        return prompt
    raise ValueError(f"the prompt must be text or a list of messages, not {reprlib.repr(prompt)}")


def generate_ids(
    model: Transformer,
    prompt: Sequence[int],
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
    stop: Collection[int] = (),
) -> Iterator[int]:
    """Yields new ids after ``prompt`` until one of ``stop`` (which is not yielded).

    Also ends after ``max_new_tokens``, or when ``seq_len`` is full. Arguments are checked at once,
    before the first id is asked for. Raises ValueError.
    """
    seq_len = model.config.seq_len
    check_sampling(temperature, top_k, top_p)
    if max_new_tokens < 0:
        raise ValueError(f"the number of new tokens can't be {max_new_tokens}")
    if not prompt:
        raise ValueError("the prompt is empty")
    if len(prompt) >= seq_len:
        raise ValueError(
            f"the prompt has {len(prompt)} tokens: no room for a reply in the model's {seq_len}"
        )
    count = min(max_new_tokens, seq_len - len(prompt))
    return _decode(model, prompt, count, temperature, top_k, top_p, generator, stop)


def _decode(
    model: Transformer,
    prompt: Sequence[int],
    count: int,
    temperature: float,
    top_k: int | None,
    top_p: float,
    generator: torch.Generator | None,
    stop: Collection[int],
) -> Iterator[int]:
    weight = model.embedding.weight
    was_training = model.training
    model.eval()
    try:
        # The last new token is never fed back, so it needs no room in the cache.
        cache = KVCache(
            model.config,
            capacity=len(prompt) + max(count, 1) - 1,
            dtype=weight.dtype,
            device=weight.device,
        )
        ids = torch.tensor([list(prompt)], device=weight.device)
        for _ in range(count):
            with torch.inference_mode():
                logits = model(ids, cache)[:, -1]
                token = int(choose(logits, temperature, top_k, top_p, generator))
            if token in stop:
                return
            yield token
            ids = torch.tensor([[token]], device=weight.device)
    finally:
        model.train(was_training)
