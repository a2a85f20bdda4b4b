"""Choosing the next token from logits: pure functions, one definition each.

The distribution that a token is drawn from is, in this order: the logits after the repetition
penalty, limited to the top k, divided by the temperature, limited to the nucleus (top p) of what is
left and by min p. A draw turns a uniform number into a token by the cumulative sum of that
distribution; the number is a function of the seed and of the token's position in the reply alone.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = 2**64 - 1


@dataclass(frozen=True)
class Sampling:
    """How a reply is made, and when it ends besides with its turn.

    ``stop`` are strings that end the reply and are never emitted. ``logprobs`` asks for the log-
    probability of each token and of the n most probable. ``seed`` None draws anew each time (from
    torch's global generator). Raises ValueError naming the setting that is out of range.
    """

    max_new_tokens: int = 256
    temperature: float = 0.8
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None

    def __post_init__(self) -> None:
        _check_whole("max_new_tokens", self.max_new_tokens, 0)
        _check_number("temperature", self.temperature)
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature {self.temperature} is not a number from 0 up")
        if self.top_k is not None:
            _check_whole("top_k", self.top_k, 1)
        _check_number("top_p", self.top_p)
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p {self.top_p} is not in (0, 1]")
        _check_number("min_p", self.min_p)
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p {self.min_p} is not in [0, 1]")
        _check_number("repetition_penalty", self.repetition_penalty)
        if not 0 < self.repetition_penalty < math.inf:
            raise ValueError(f"repetition_penalty {self.repetition_penalty} is not above 0")
        if self.seed is not None and not _is_whole(self.seed):
            raise ValueError(f"seed {self.seed!r} is not a whole number")
        if not isinstance(self.stop, tuple) or not all(
            isinstance(text, str) and text for text in self.stop
        ):
            raise ValueError(f"stop {self.stop!r} is not a tuple of texts, none of them empty")
        if self.logprobs is not None:
            _check_whole("logprobs", self.logprobs, 0)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_whole(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{name} {value!r} is not a whole number")
    if value < least:
        raise ValueError(f"{name} {value} is below {least}")


def _check_number(name: str, value: object) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise ValueError(f"{name} {value!r} is not a number")


def penalise(logits: Tensor, seen: Iterable[int], penalty: float) -> Tensor:
    """Logits (vocab_size,) with those of the tokens ``seen`` made less likely.

    Keskar et al. 2019: divided by ``penalty`` where positive, multiplied where negative.
    """
    ids = torch.tensor(sorted(set(seen)), dtype=torch.long, device=logits.device)
    those = logits[ids]
    return logits.index_copy(0, ids, torch.where(those > 0, those / penalty, those * penalty))


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Logits (…, vocab_size) with all but the k largest at -inf (Fan et al. 2018).

    What ties with the last of them is kept too.
    """
    if k >= logits.shape[-1]:
        return logits
    threshold = logits.topk(k, dim=-1).values[..., -1:]
    return logits.masked_fill(logits < threshold, -torch.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Logits (…, vocab_size) with all outside the nucleus at -inf (Holtzman et al. 2019).

    The nucleus is the smallest set of most probable tokens whose probabilities reach p; of tokens
    alike, those of lower ids come first.
    """
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    probabilities = ordered.softmax(dim=-1)
    outside = probabilities.cumsum(dim=-1) - probabilities >= p
    # The most probable token is inside whatever p: 1e-50, say, is 0 in the tensor's precision.
    outside[..., 0] = False
    return logits.masked_fill(outside.scatter(-1, order, outside), -torch.inf)


def keep_min_p(logits: Tensor, p: float) -> Tensor:
    """Logits (…, vocab_size) with those at -inf whose probability is below p times the largest.

    Nguyen et al. 2024.
    """
    relative = (logits - logits.amax(dim=-1, keepdim=True)).exp()
    return logits.masked_fill(relative < p, -torch.inf)


def distribution(logits: Tensor, sampling: Sampling, seen: Iterable[int] = ()) -> Tensor:
    """The probabilities (vocab_size,) that the next token is drawn with, in float32 on the CPU.

    ``seen`` are the tokens of prompt and reply so far, for the repetition penalty. Temperature 0
    puts all on the most probable token. Raises ValueError for logits that are not finite.
    """
    # On the CPU in float32: the same draw whatever the device and dtype of the logits.
    logits = logits.float().cpu()
    check_finite(logits)
    if sampling.repetition_penalty != 1:
        logits = penalise(logits, seen, sampling.repetition_penalty)
    if sampling.temperature == 0:
        chosen = torch.zeros_like(logits)
        chosen[logits.argmax()] = 1.0
        return chosen
    if sampling.top_k is not None:
        logits = keep_top_k(logits, sampling.top_k)
    # With the largest at 0, a tiny temperature makes no logit infinite; below the floor 0 / 0
    # would.
    logits = logits - logits.amax()
    logits = logits / max(sampling.temperature, torch.finfo(logits.dtype).tiny)
    if sampling.top_p < 1:
        logits = keep_top_p(logits, sampling.top_p)
    if sampling.min_p > 0:
        logits = keep_min_p(logits, sampling.min_p)
    return logits.softmax(dim=-1)


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) for the token at ``position`` of a reply: a function of both alone.

    SplitMix64 (Steele et al. 2014), started at the seed scrambled once.
    """
    return (_scramble(_scramble(seed & _MASK) + (position + 1) * _GOLDEN & _MASK) >> 11) * 2.0**-53


def _scramble(z: int) -> int:
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    z = (z ^ z >> 27) * 0x94D049BB133111EB & _MASK
    return z ^ z >> 31


def draw(probabilities: Tensor, u: float) -> int:
    """The token at which the cumulative sum of ``probabilities`` (vocab_size,) passes ``u``."""
    cumulative = probabilities.double().cumsum(dim=-1)
    last = int(probabilities.nonzero()[-1])
    threshold = torch.tensor(u * float(cumulative[-1]), dtype=torch.float64)
    return min(int(torch.searchsorted(cumulative, threshold, right=True)), last)


def choose(logits: Tensor, sampling: Sampling, u: float, seen: Iterable[int] = ()) -> int:
    """The next token for ``logits`` (vocab_size,), drawn with the uniform number ``u``.

    Raises ValueError as ``distribution``.
    """
    if sampling.temperature == 0 and sampling.repetition_penalty == 1:
        check_finite(logits)
        return int(logits.argmax())
    return draw(distribution(logits, sampling, seen), u)


def check_finite(logits: Tensor) -> None:
    """Raises ValueError for infinity and NaN: no token could be chosen by them."""
    if not bool(logits.isfinite().all()):
        raise damaged()


def damaged() -> ValueError:
    """What to raise for logits that are not finite."""
    return ValueError("the model's logits are not finite numbers: its weights are damaged")
