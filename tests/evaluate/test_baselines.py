"""Baselines are the textbook's: uniform, unigram with one added, Witten-Bell bigram."""

import math
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stages.evaluate import baselines as module
from stages.evaluate.baselines import baselines
from tests.builders import CONTROL_IDS, make_stream

VOCAB = 10
BOS = CONTROL_IDS["bos"]
# No token is <|bos|>: then every pair of neighbours is predicted.
NO_BOS = {**CONTROL_IDS, "bos": VOCAB + 5}

ids = st.lists(st.integers(0, VOCAB - 1), max_size=30)


def probabilities(
    train: list[int], bos: int = BOS, vocab_size: int = VOCAB
) -> tuple[list[float], list[list[float]]]:
    """Unigram, and bigram[before][after], each by its formula for every token."""
    pairs = [(a, b) for a, b in pairwise(train) if b != bos]
    counts = Counter(b for _, b in pairs)
    unigram = [(counts[token] + 1) / (len(pairs) + vocab_size) for token in range(vocab_size)]
    following: dict[int, Counter[int]] = defaultdict(Counter)
    for a, b in pairs:
        following[a][b] += 1
    bigram = []
    for before in range(vocab_size):
        seen = following[before]
        kinds, total = len(seen), sum(seen.values())
        if not seen:
            bigram.append(unigram)
            continue
        weight = total / (total + kinds)
        bigram.append(
            [
                weight * seen[after] / total + (1 - weight) * unigram[after]
                for after in range(vocab_size)
            ]
        )
    return unigram, bigram


@settings(max_examples=120)
@given(train=ids, validation=ids, block=st.sampled_from([1, 2, 7, 2**23]))
@example(train=[], validation=[1, 7, 8], block=2**23)
@example(train=[1, 7, 8, 1, 7], validation=[], block=2**23)
@example(train=[1, 7, 7, 7], validation=[9, 9, 1, 1, 7, 8], block=1)  # unseen contexts
def test_nats_are_those_of_the_formulas(
    tmp_path_factory: pytest.TempPathFactory, train: list[int], validation: list[int], block: int
) -> None:
    folder = tmp_path_factory.mktemp("streams")
    for name in ("train", "validation"):
        (folder / name).mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK", block)
        result = baselines(
            make_stream(folder / "train", [train] if train else []),
            make_stream(folder / "validation", [validation] if validation else []),
            VOCAB,
        )
    unigram, bigram = probabilities(train)
    scored = [(a, b) for a, b in pairwise(validation) if b != BOS]
    assert set(result) == {"uniform", "unigram", "bigram"}
    assert result["uniform"] == pytest.approx(len(scored) * math.log(VOCAB))
    assert result["unigram"] == pytest.approx(-sum(math.log(unigram[b]) for _, b in scored))
    assert result["bigram"] == pytest.approx(-sum(math.log(bigram[a][b]) for a, b in scored))


@pytest.mark.parametrize("before", [7, 8, 9])  # one successor, several, never seen
@pytest.mark.parametrize("name", ["uniform", "unigram", "bigram"])
def test_probabilities_over_the_vocabulary_sum_to_one(
    tmp_path: Path, name: str, before: int
) -> None:
    (tmp_path / "train").mkdir()
    train = make_stream(tmp_path / "train", [[7, 8, 2, 7, 8, 8, 7, 8, 3]], control_ids=NO_BOS)
    total = 0.0
    for after in range(VOCAB):
        (tmp_path / f"{after}").mkdir()
        pair = make_stream(tmp_path / f"{after}", [[before, after]], control_ids=NO_BOS)
        total += math.exp(-baselines(train, pair, VOCAB)[name])
    assert total == pytest.approx(1.0)


def test_a_large_vocabulary_needs_no_square_of_memory(tmp_path: Path) -> None:
    """Pairs are counted by 64-bit keys: ids near the largest don't collide."""
    (tmp_path / "a").mkdir()
    last = 65_535
    stream = make_stream(tmp_path / "a", [[last, last - 1, last, last - 1, 7, last]])
    result = baselines(stream, stream, 2**16)
    unigram, bigram = Counter([last - 1, last, last - 1, 7, last]), 0.0
    pairs = [(last, last - 1), (last - 1, last), (last, last - 1), (last - 1, 7), (7, last)]
    counts = Counter(pairs)
    for a, b in pairs:
        total = sum(n for (first, _), n in counts.items() if first == a)
        kinds = sum(first == a for first, _ in counts)
        share = (unigram[b] + 1) / (5 + 2**16)
        bigram -= math.log((counts[a, b] + kinds * share) / (total + kinds))
    assert result["bigram"] == pytest.approx(bigram)
