"""Choosing the next token from logits: pure functions, one definition each."""

import torch
from torch import Tensor


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Logits (…, vocab_size) with all but the k largest at -inf (Fan et al. 2018)."""
    if k >= logits.shape[-1]:
        return logits
    threshold = logits.topk(k, dim=-1).values[..., -1:]
    return logits.masked_fill(logits < threshold, -torch.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Logits (…, vocab_size) with all outside the nucleus at -inf (Holtzman et al. 2019).

    The nucleus is the smallest set of most probable tokens whose probabilities reach p.
    """
    ordered, order = logits.sort(dim=-1, descending=True)
    probabilities = ordered.softmax(dim=-1)
    outside = probabilities.cumsum(dim=-1) - probabilities >= p
    # The most probable token is inside whatever p: 1e-50, say, is 0 in the tensor's precision.
    outside[..., 0] = False
    return logits.masked_fill(outside.scatter(-1, order, outside), -torch.inf)


def choose(
    logits: Tensor,
    temperature: float,
    top_k: int | None = None,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Next ids of shape (batch,) for logits (batch, vocab_size); temperature 0 takes the largest.

    Raises ValueError for a negative temperature, top_k below 1 or top_p outside (0, 1].
    """
    check_sampling(temperature, top_k, top_p)
    if temperature == 0:
        return logits.argmax(dim=-1)
    # On the CPU in float32: the same draw whatever the device and dtype of the logits. With the
    # largest at 0, a tiny temperature makes no logit infinite; below the floor 0 / 0 would.
    logits = logits.float().cpu()
    logits = logits - logits.amax(dim=-1, keepdim=True)
    logits = logits / max(temperature, torch.finfo(logits.dtype).tiny)
    if top_k is not None:
        logits = keep_top_k(logits, top_k)
    if top_p < 1:
        logits = keep_top_p(logits, top_p)
    return torch.multinomial(logits.softmax(dim=-1), 1, generator=generator).squeeze(-1)


def check_sampling(temperature: float, top_k: int | None, top_p: float) -> None:
    """Raises ValueError naming the setting that is out of range."""
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature {temperature} is not a number from 0 up")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k {top_k} is below 1")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p {top_p} is not in (0, 1]")
