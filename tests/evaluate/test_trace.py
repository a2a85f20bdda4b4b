"""Each token is seen once, with what it cost and where it stands, whatever the batch."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.transformer import Transformer
from stages import scoring
from stages.corpus import TokenStream
from stages.evaluate.trace import Block, trace
from stages.scoring import score
from tests.builders import (
    CONTROL_IDS,
    STREAM_VOCAB,
    Turn,
    document_stream,
    documents,
    joined,
    random_documents,
    render,
    tiny_model,
)

SEQ_LEN = 16
DOCUMENTS = random_documents(9, 3)
BOS = CONTROL_IDS["bos"]


class Kept:
    """Keeps every block."""

    def __init__(self) -> None:
        self.blocks: list[Block] = []

    def see(self, block: Block) -> None:
        self.blocks.append(block)

    def all(self, name: str) -> list[float]:
        return joined(getattr(block, name).tolist() for block in self.blocks)


@pytest.fixture
def stream(tmp_path: Path) -> TokenStream:
    return document_stream(tmp_path, DOCUMENTS, 50)


def by_hand(model: Transformer, ids: list[int], mask: bool) -> list[tuple[float, float, int, int]]:
    """Nats, confidence, rank and context of every token but the first, each predicted alone."""
    result = []
    for position in range(1, len(ids)):
        begin = (position - 1) // SEQ_LEN * SEQ_LEN
        if mask:  # of its own document alone, that of the token before it
            own = max((i for i in range(begin, position) if ids[i] == BOS), default=begin)
            places = torch.zeros(1, position - begin, dtype=torch.long)
            places[0, own - begin :] = 1
        with torch.no_grad():
            documents = places if mask else None
            logits = model.eval()(torch.tensor([ids[begin:position]]), documents=documents)[0, -1]
        probabilities = logits.double().softmax(0)
        mine = probabilities[ids[position]]
        result.append(
            (
                0.0 if ids[position] == BOS else -math.log(mine),
                float(probabilities.max()),
                1 + int((probabilities > mine).sum()),
                position - (own if mask else begin),
            )
        )
    return result


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("rows", [1, 3, 1000])
def test_what_a_token_costs_is_what_the_model_says_of_it_alone(
    stream: TokenStream, monkeypatch: pytest.MonkeyPatch, rows: int, mask: bool
) -> None:
    model = tiny_model(seq_len=SEQ_LEN, document_mask=mask)
    monkeypatch.setattr(scoring, "LOGITS_PER_BATCH", rows * SEQ_LEN * STREAM_VOCAB)
    kept = Kept()
    result = trace(model, stream, [kept])
    ids = joined(render(document)[0] for document in DOCUMENTS)
    nats, confidence, rank, context = zip(*by_hand(model, ids, mask), strict=True)
    assert kept.all("tokens") == ids[1:]
    assert kept.all("predicted") == [token != BOS for token in ids[1:]]
    assert kept.all("nats") == pytest.approx(nats, rel=1e-4, abs=1e-5)
    assert kept.all("context") == list(context)
    predicted = [i for i, token in enumerate(ids[1:]) if token != BOS]
    for name, expected in (("confidence", confidence), ("rank", rank)):
        found = kept.all(name)
        assert [found[i] for i in predicted] == pytest.approx(
            [expected[i] for i in predicted], rel=1e-4
        )
    assert result == score(model, stream)


@settings(max_examples=60)
@given(documents(), st.integers(1, 3))
def test_every_token_knows_its_conversation_message_and_role(
    tmp_path_factory: pytest.TempPathFactory, turns: list[list[Turn]], rows: int
) -> None:
    stream = document_stream(tmp_path_factory.mktemp("stream"), turns, 17)
    kept = Kept()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "LOGITS_PER_BATCH", rows * SEQ_LEN * STREAM_VOCAB)
        trace(tiny_model(seq_len=SEQ_LEN), stream, [kept])
    places: list[tuple[int, int, int, bool]] = []
    for number, document in enumerate(turns):
        places.append((number, 0, BOS, False))
        for turn, (role, words) in enumerate(document, 1):
            here = (number, turn, CONTROL_IDS[role])
            places += [(*here, True)] + [(*here, False)] * (len(words) + 1)
    found = zip(*map(kept.all, ("document", "turn", "role", "is_role")), strict=True)
    assert list(found) == places[1:]


def test_memory_holds_one_batch_at_a_time(
    stream: TokenStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "LOGITS_PER_BATCH", 2 * SEQ_LEN * STREAM_VOCAB)
    kept = Kept()
    trace(tiny_model(seq_len=SEQ_LEN), stream, [kept])
    lengths = [len(block.tokens) for block in kept.blocks]
    assert max(lengths) == 2 * SEQ_LEN
    assert sum(lengths) == len(stream) - 1


def test_a_stream_without_predictions_shows_nothing(tmp_path: Path) -> None:
    kept = Kept()
    assert trace(tiny_model(), document_stream(tmp_path, []), [kept]).tokens == 0
    assert kept.blocks == []


def make_block(**values: list[float]) -> Block:
    """A block of the values that a test is about; the rest are plain."""
    count = len(next(iter(values.values())))
    ones, zeros = np.ones(count, np.int64), np.zeros(count, np.int64)
    fields: dict[str, np.ndarray] = {
        "tokens": np.full(count, 9),
        "predicted": np.ones(count, np.bool_),
        "nats": np.ones(count),
        "confidence": np.full(count, 0.5),
        "rank": ones,
        "context": ones,
        "document": zeros,
        "turn": ones,
        "role": np.full(count, CONTROL_IDS["user"]),
        "is_role": np.zeros(count, np.bool_),
    }
    return Block(**{name: np.array(values.get(name, fields[name])) for name in fields})
