"""From sums of nats to the numbers in metrics/eval.json."""

import math
from typing import Any

from stages.corpus import SplitCounts
from stages.files import rounded
from stages.scoring import Score


def bits_per_byte(nats: float, size: int) -> float:
    """Bits that the text costs per byte of its UTF-8 contents; needs no tokenizer to compare."""
    return rounded(nats / math.log(2) / size)


def measures(nats: float, tokens: int, size: int) -> dict[str, Any] | None:
    """Loss (nats a token), perplexity and bits per byte; None where nothing was predicted."""
    if not tokens or not size:
        return None
    loss = nats / tokens
    return {
        "loss": rounded(loss),
        # exp overflows for the loss of a hopeless model.
        "perplexity": rounded(math.exp(min(loss, 700))),
        "bits_per_byte": bits_per_byte(nats, size),
        "tokens": tokens,
        "bytes": size,
    }


def report(score: Score, baselines: dict[str, float], counts: SplitCounts) -> dict[str, Any]:
    """The model's measures over the whole split and over the assistant's turns, and baselines'."""
    overall = measures(score.nats, score.tokens, counts["bytes"])
    assert overall is not None, "the preflight stage refuses an empty validation split"
    assistant = measures(score.assistant_nats, score.assistant_tokens, counts["assistant_bytes"])
    return {
        **overall,
        **({"assistant": assistant} if assistant else {}),
        "baselines": {
            name: {"bits_per_byte": bits_per_byte(nats, counts["bytes"])}
            for name, nats in baselines.items()
        },
    }


def share(value: float | None) -> float | None:
    """A share as it stands in the metrics."""
    return None if value is None else rounded(value, 4)
