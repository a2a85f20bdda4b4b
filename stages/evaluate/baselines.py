"""What a loss is worth: bits per byte of models that know nothing, words, or pairs of words.

All predict the very tokens that the model is scored on: those of the validation split without
``<|bos|>``.
"""

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from stages.corpus import Ids, TokenStream

BLOCK = 2**23  # tokens held in memory at a time
Floats = NDArray[np.float64]


def baselines(train: TokenStream, validation: TokenStream, vocab_size: int) -> dict[str, float]:
    """Total nats over the validation split by ``uniform``, ``unigram`` and ``bigram``.

    * unigram: relative frequencies in the training split, with one added to each count;
    * bigram: training frequencies after the preceding token, interpolated with the unigram by the
      number of different successors (Witten & Bell 1991).
    """
    counts, pairs, pair_counts = _count(train, vocab_size)
    unigram = (counts + 1) / (counts.sum() + vocab_size)
    contexts = pairs // vocab_size
    context_total = np.bincount(contexts, weights=pair_counts, minlength=vocab_size)
    successors = np.bincount(contexts, minlength=vocab_size)

    nats = {"uniform": 0.0, "unigram": 0.0, "bigram": 0.0}
    for before, after in _predictions(validation):
        nats["uniform"] += len(after) * math.log(vocab_size)
        p_unigram = unigram[after]
        nats["unigram"] -= float(np.log(p_unigram).sum())
        seen = _lookup(pairs, pair_counts, before * vocab_size + after)
        # A context that training never saw has no successors: the unigram alone.
        novelty = np.where(successors[before] > 0, successors[before], 1)
        p_bigram = (seen + novelty * p_unigram) / (context_total[before] + novelty)
        nats["bigram"] -= float(np.log(p_bigram).sum())
    return nats


def _predictions(stream: TokenStream) -> Iterator[tuple[Ids, Ids]]:
    """Neighbouring tokens (before, after) of the stream, those before ``<|bos|>`` left out."""
    for start in range(0, len(stream) - 1, BLOCK):
        tokens = stream.read(start, min(start + BLOCK + 1, len(stream)))
        keep = tokens[1:] != stream.roles.bos
        yield tokens[:-1][keep], tokens[1:][keep]


def _count(stream: TokenStream, vocab_size: int) -> tuple[Floats, Ids, Ids]:
    """Counts of tokens, and the different pairs (before * vocab_size + after) with theirs."""
    counts = np.zeros(vocab_size)
    pairs, pair_counts = np.zeros(0, np.int64), np.zeros(0, np.int64)
    for before, after in _predictions(stream):
        counts += np.bincount(after, minlength=vocab_size)
        new, new_counts = np.unique(before * vocab_size + after, return_counts=True)
        merged, position = np.unique(np.concatenate((pairs, new)), return_inverse=True)
        total = np.bincount(position, weights=np.concatenate((pair_counts, new_counts)))
        pairs, pair_counts = merged, total.astype(np.int64)
    return counts, pairs, pair_counts


def _lookup(keys: Ids, values: Ids, wanted: Ids) -> Floats:
    """The value of each wanted key, 0 where there is none; ``keys`` are sorted."""
    if not len(keys):
        return np.zeros(len(wanted))
    position = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
    return np.where(keys[position] == wanted, values[position], 0).astype(np.float64)
