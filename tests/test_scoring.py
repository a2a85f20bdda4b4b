"""A model's score is a sum over tokens, each predicted once, whatever the batch."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from model.transformer import Transformer
from stages import scoring
from stages.corpus import TokenStream
from stages.scoring import (
    IGNORED,
    Score,
    Share,
    document_numbers,
    read_window,
    score,
    spans,
    token_nats,
)
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


@pytest.fixture
def stream(tmp_path: Path) -> TokenStream:
    return document_stream(tmp_path, DOCUMENTS, 50)


@pytest.fixture(scope="module")
def model() -> Transformer:
    return tiny_model(seq_len=SEQ_LEN)


@pytest.fixture(scope="module")
def nats(model: Transformer) -> list[float]:
    """The cost of every token but the first, each predicted by itself: one row, no padding."""
    ids = joined(render(document)[0] for document in DOCUMENTS)
    costs = []
    for position in range(1, len(ids)):
        begin = (position - 1) // SEQ_LEN * SEQ_LEN
        with torch.no_grad():
            logits = model.eval()(torch.tensor([ids[begin:position]]))[0, -1]
        costs.append(-float(logits.double().log_softmax(0)[ids[position]]))
    return costs


def total(nats: list[float], limit: int | None = None) -> Score:
    """The sums over the first ``limit`` predictions."""
    ids = joined(render(document)[0] for document in DOCUMENTS)[1:]
    spoken = joined(render(document)[1] for document in DOCUMENTS)[1:]
    result = Score()
    for token, cost, mine in list(zip(ids, nats, spoken, strict=True))[:limit]:
        if token != CONTROL_IDS["bos"]:
            result.nats += cost
            result.tokens += 1
            result.assistant_nats += cost * mine
            result.assistant_tokens += mine
    return result


@pytest.mark.parametrize("rows", [1, 2, 3, 1000])
@pytest.mark.parametrize("limit", [None, 1, SEQ_LEN - 1, SEQ_LEN, 3 * SEQ_LEN + 5, 10**6])
def test_score_is_the_sum_over_tokens_whatever_the_batch(
    model: Transformer,
    stream: TokenStream,
    nats: list[float],
    monkeypatch: pytest.MonkeyPatch,
    limit: int | None,
    rows: int,
) -> None:
    expected = total(nats, limit)
    monkeypatch.setattr(scoring, "LOGITS_PER_BATCH", rows * SEQ_LEN * STREAM_VOCAB)
    result = score(model, stream, limit)
    assert result.tokens == expected.tokens
    assert result.assistant_tokens == expected.assistant_tokens
    assert result.nats == pytest.approx(expected.nats, rel=1e-6)
    assert result.assistant_nats == pytest.approx(expected.assistant_nats, rel=1e-6)
    assert result.loss == pytest.approx(expected.nats / expected.tokens, rel=1e-6)


def test_a_batch_smaller_than_one_row_still_counts_everything(
    model: Transformer, stream: TokenStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = score(model, stream)
    monkeypatch.setattr(scoring, "LOGITS_PER_BATCH", 1)
    result = score(model, stream)
    assert (result.tokens, result.assistant_tokens) == (expected.tokens, expected.assistant_tokens)
    assert result.loss == pytest.approx(expected.loss, rel=1e-6)
    assert result.assistant_loss == pytest.approx(expected.assistant_loss, rel=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_scored_without_dropout_and_left_as_it_was(
    stream: TokenStream, nats: list[float], training: bool
) -> None:
    model = tiny_model(seq_len=SEQ_LEN, dropout=0.5).train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first, second = score(model, stream), score(model, stream)
    assert first == second
    assert first.nats == pytest.approx(total(nats).nats, rel=1e-6)
    assert model.training is training
    assert all(module.training is training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_scoring_draws_nothing_from_the_global_generator(
    model: Transformer, stream: TokenStream
) -> None:
    state = torch.random.get_rng_state()
    score(model, stream)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_lower_precision_serves_every_batch(
    model: Transformer, stream: TokenStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "LOGITS_PER_BATCH", 2 * SEQ_LEN * STREAM_VOCAB)
    exact = score(model, stream)
    rough = score(model, stream, nats_of=partial(token_nats, model, dtype=torch.bfloat16))
    assert rough.tokens == exact.tokens
    assert rough.nats != exact.nats
    assert rough.loss == pytest.approx(exact.loss, rel=0.02)


def in_turns(count: int, score_as: Callable[[Share], Score]) -> list[Score]:
    """What each of ``count`` processes makes of its share, when their sums meet."""
    parts: list[NDArray[np.float64]] = []

    def keep(values: NDArray[np.float64]) -> None:
        parts.append(values.copy())

    for rank in range(count):
        score_as(Share(rank, count, keep))

    def total(values: NDArray[np.float64]) -> None:
        values[:] = sum(parts)

    return [score_as(Share(rank, count, total)) for rank in range(count)]


@pytest.mark.parametrize("document_mask", [False, True])
@pytest.mark.parametrize("processes", [2, 3, 50])
def test_processes_that_share_the_work_all_have_the_sums_of_one_to_the_bit(
    stream: TokenStream, monkeypatch: pytest.MonkeyPatch, processes: int, document_mask: bool
) -> None:
    monkeypatch.setattr(scoring, "LOGITS_PER_BATCH", 2 * SEQ_LEN * STREAM_VOCAB)
    model = tiny_model(seq_len=SEQ_LEN, document_mask=document_mask)
    alone = score(model, stream, 10 * SEQ_LEN)
    assert (
        in_turns(processes, lambda share: score(model, stream, 10 * SEQ_LEN, share=share))
        == [alone] * processes
    )


def test_every_process_makes_as_many_passes(
    model: Transformer, stream: TokenStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "LOGITS_PER_BATCH", 2 * SEQ_LEN * STREAM_VOCAB)
    passes = []
    for rank in range(4):
        counted: list[int] = []

        def nats_of(*batch: Any, counted: list[int] = counted) -> torch.Tensor:
            counted.append(1)
            return token_nats(model, *batch)

        score(model, stream, 10 * SEQ_LEN, nats_of, Share(rank, 4))
        passes.append(len(counted))
    assert passes == [2] * 4


def test_a_model_of_single_documents_is_scored_on_single_documents(
    stream: TokenStream, model: Transformer
) -> None:
    """A label's cost is that of its own document's tokens in the window."""
    masked = tiny_model(seq_len=SEQ_LEN, document_mask=True)
    ids = joined(render(document)[0] for document in DOCUMENTS)
    nats = 0.0
    for position in range(1, len(ids)):
        if ids[position] == CONTROL_IDS["bos"]:
            continue
        begin = (position - 1) // SEQ_LEN * SEQ_LEN
        starts = [i for i in range(begin, position) if ids[i] == CONTROL_IDS["bos"]]
        first = max([begin, *starts])
        # Rotary positions are relative: a document's place in the window says nothing.
        with torch.no_grad():
            logits = masked.eval()(torch.tensor([ids[first:position]]))[0, -1]
        nats -= float(logits.double().log_softmax(0)[ids[position]])
    result = score(masked, stream)
    assert result.nats == pytest.approx(nats, rel=1e-5)
    assert result.nats != pytest.approx(score(model, stream).nats, rel=1e-4)


@given(documents(), st.integers(1, 20))
def test_documents_are_numbered_in_each_sequence_from_its_own_beginning(
    turns: list[list[Turn]], length: int
) -> None:
    ids = joined(render(document)[0] for document in turns)
    rows = [ids[i : i + length] for i in range(0, len(ids) - length + 1, length)]
    if not rows:
        return
    numbers = document_numbers(np.array(rows), CONTROL_IDS["bos"])
    for row, numbered in zip(rows, numbers.tolist(), strict=True):
        expected, current = [], 0
        for token in row:
            current += token == CONTROL_IDS["bos"]
            expected.append(current)
        assert numbered == expected


def test_a_stream_without_predictions_scores_nothing(model: Transformer, tmp_path: Path) -> None:
    assert score(model, document_stream(tmp_path, [])) == Score()


@settings(max_examples=80)
@given(documents(), st.integers(1, 20), st.integers(0, 200) | st.none())
def test_windows_predict_each_token_once_from_its_predecessors(
    tmp_path_factory: pytest.TempPathFactory,
    turns: list[list[Turn]],
    seq_len: int,
    limit: int | None,
) -> None:
    stream = document_stream(tmp_path_factory.mktemp("stream"), turns, 17)
    ids = joined(render(document)[0] for document in turns)
    spoken = joined(render(document)[1] for document in turns)
    last = len(ids) - 1 if limit is None else min(limit, len(ids) - 1)
    parts = [read_window(stream, start, length) for start, length in spans(stream, seq_len, limit)]
    assert joined(part.inputs.tolist() for part in parts) == ids[:last]
    assert joined(part.labels.tolist() for part in parts) == [
        IGNORED if token == CONTROL_IDS["bos"] else token for token in ids[1 : last + 1]
    ]
    assert joined(part.assistant.tolist() for part in parts) == spoken[1 : last + 1]
    assert all(len(part.inputs) == seq_len for part in parts[:-1])
    assert all(len(part.labels) == len(part.inputs) for part in parts)


def test_a_window_at_the_end_of_the_stream_is_shorter(stream: TokenStream) -> None:
    window = read_window(stream, len(stream) - 4, SEQ_LEN)
    tail = stream.read(len(stream) - 4, len(stream))
    assert np.array_equal(window.inputs, tail[:-1])
    assert np.array_equal(window.labels, tail[1:])
