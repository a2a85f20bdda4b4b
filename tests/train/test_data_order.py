"""Which tokens a step reads: a pure function of (seed, step) that misses and repeats nothing."""

import random
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.corpus import TokenStream
from stages.errors import DataError
from stages.scoring import IGNORED
from stages.train.data_order import Batch, DataOrder, name_lines
from stages.train.prefetch import Prefetcher
from tests.builders import (
    CONTROL_IDS,
    document_stream,
    joined,
    make_stream,
    random_documents,
    render,
    tiny_model,
    train_params,
)

DOCUMENTS = random_documents(40, 5)
SEQ_LEN = 8


@pytest.fixture
def stream(tmp_path: Path) -> TokenStream:
    return document_stream(tmp_path, DOCUMENTS, 100)


def make_order(
    stream: TokenStream, seed: int = 1, sequences: int = 6, assistant_only: bool = False
) -> DataOrder:
    return DataOrder(stream, SEQ_LEN, sequences, seed, assistant_only)


def assert_same(one: Batch, other: Batch) -> None:
    """Two batches have the same tokens, labels and documents."""
    assert torch.equal(one.inputs, other.inputs)
    assert torch.equal(one.labels, other.labels)
    assert (one.documents is None) == (other.documents is None)
    if one.documents is not None and other.documents is not None:
        assert torch.equal(one.documents, other.documents)
    assert one.first == other.first


def test_any_step_alone_is_as_in_sequence(stream: TokenStream) -> None:
    in_sequence = make_order(stream)
    steps = 3 * in_sequence.windows_per_epoch // 6 + 2
    batches = [in_sequence.batch(step) for step in range(steps)]
    jumping = make_order(stream)
    shuffled = list(range(steps))
    random.Random(0).shuffle(shuffled)
    for step in shuffled:
        for order in (jumping, make_order(stream)):
            batch = order.batch(step)
            assert torch.equal(batch.inputs, batches[step].inputs)
            assert torch.equal(batch.labels, batches[step].labels)


def test_the_order_draws_nothing_from_torchs_generator(stream: TokenStream) -> None:
    torch.manual_seed(3)
    state = torch.random.get_rng_state()
    make_order(stream).batch(0)
    assert torch.equal(torch.random.get_rng_state(), state)


@settings(max_examples=60)
@given(
    tokens=st.integers(2, 200),
    seq_len=st.integers(1, 12),
    sequences=st.integers(1, 7),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_window_of_an_epoch_is_read_exactly_once(
    tmp_path_factory: pytest.TempPathFactory,
    tokens: int,
    seq_len: int,
    sequences: int,
    seed: int,
) -> None:
    seq_len = min(seq_len, tokens - 1)
    stream = make_stream(tmp_path_factory.mktemp("stream"), [[7] * tokens])
    order = DataOrder(stream, seq_len, sequences, seed, False)
    windows = order.windows_per_epoch
    steps = -(-3 * windows // sequences)
    starts = joined(order.starts(step) for step in range(steps))
    for epoch in range(3):
        read = sorted(starts[epoch * windows : (epoch + 1) * windows])
        assert read == [read[0] + seq_len * number for number in range(windows)]
        left_before, left_behind = read[0], tokens - 1 - (read[-1] + seq_len)
        assert left_before >= 0
        assert left_behind >= 0
        assert left_before + left_behind < seq_len


def test_each_epoch_has_its_own_order_and_its_own_borders(stream: TokenStream) -> None:
    order = make_order(stream, sequences=1)
    count = order.windows_per_epoch
    epochs = [[order.starts(epoch * count + i)[0] for i in range(count)] for epoch in range(6)]
    assert len({tuple(starts) for starts in epochs}) == 6
    assert len({min(starts) for starts in epochs}) > 1


def test_another_seed_gives_another_order(stream: TokenStream) -> None:
    first, again, other = (make_order(stream, seed).starts(0) for seed in (1, 1, 2))
    assert first == again
    assert first != other


@pytest.mark.parametrize(("batch_size", "grad_accum_steps"), [(8, 1), (4, 2), (2, 4), (1, 8)])
def test_a_step_reads_the_same_however_it_is_divided(
    stream: TokenStream, batch_size: int, grad_accum_steps: int
) -> None:
    params = train_params(batch_size=batch_size, grad_accum_steps=grad_accum_steps)
    order = make_order(stream, sequences=params.sequences_per_step)
    whole = make_order(stream, sequences=8)
    assert order.steps(1.5) == whole.steps(1.5)
    for step in (0, 1, 7):
        assert_same(order.batch(step), whole.batch(step))


@pytest.mark.parametrize("assistant_only", [False, True])
def test_labels_are_the_next_tokens_where_something_is_to_be_learnt(
    stream: TokenStream, assistant_only: bool
) -> None:
    ids = joined(render(document)[0] for document in DOCUMENTS)
    spoken = joined(render(document)[1] for document in DOCUMENTS)
    order = make_order(stream, assistant_only=assistant_only)
    supervised = 0
    for step in range(2 * order.windows_per_epoch // 6):
        batch = order.batch(step)
        inputs, labels = batch.inputs, batch.labels
        assert (inputs.dtype, labels.dtype) == (torch.int64, torch.int64)
        assert inputs.shape == labels.shape == (6, SEQ_LEN)
        for row, start in enumerate(order.starts(step)):
            assert inputs[row].tolist() == ids[start : start + SEQ_LEN]
            expected = [
                IGNORED
                if ids[i] == CONTROL_IDS["bos"] or (assistant_only and not spoken[i])
                else ids[i]
                for i in range(start + 1, start + SEQ_LEN + 1)
            ]
            assert labels[row].tolist() == expected
            supervised += sum(label != IGNORED for label in expected)
    assert supervised


def test_steps_cover_the_epochs_asked_for(stream: TokenStream) -> None:
    order = make_order(stream, sequences=6)
    windows = order.windows_per_epoch
    for epochs in (0.001, 0.5, 1.0, 2.7):
        steps = order.steps(epochs)
        assert steps >= 1
        assert steps * 6 >= epochs * windows
        assert steps == 1 or (steps - 1) * 6 < epochs * windows


def test_a_stream_shorter_than_a_sequence_and_its_last_label_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="fewer"):
        make_order(make_stream(tmp_path / "short", [[7] * SEQ_LEN]))
    order = make_order(make_stream(tmp_path / "enough", [[7] * (SEQ_LEN + 1)]))
    assert order.starts(5) == [0] * 6


def test_every_token_of_an_epoch_is_read_once_and_learnt_once(tmp_path: Path) -> None:
    ids = list(range(100, 700))
    order = DataOrder(make_stream(tmp_path, [ids], 77), SEQ_LEN, 5, 3, False)
    steps = [order.batch(step) for step in range(order.steps(1.0))]
    inputs, labels = (
        torch.cat([getattr(batch, name) for batch in steps])[: order.windows_per_epoch].flatten()
        for name in ("inputs", "labels")
    )
    read = sorted(inputs.tolist())
    assert read == list(range(read[0], read[0] + len(read)))
    assert len(ids) - 1 - len(read) < SEQ_LEN
    assert sorted(labels.tolist()) == [token + 1 for token in read]


@settings(max_examples=40)
@given(
    processes=st.sampled_from([1, 2, 3, 4, 6, 12]),
    step=st.integers(0, 200),
    seed=st.integers(0, 1000),
    document_mask=st.booleans(),
)
def test_the_shares_of_any_number_of_processes_are_the_whole_batch(
    tmp_path_factory: pytest.TempPathFactory,
    processes: int,
    step: int,
    seed: int,
    document_mask: bool,
) -> None:
    stream = document_stream(tmp_path_factory.mktemp("stream"), DOCUMENTS, 100)
    order = DataOrder(stream, SEQ_LEN, 12, seed, True, document_mask)
    whole, share = order.batch(step), 12 // processes
    for rank in range(processes):
        mine = DataOrder(stream, SEQ_LEN, 12, seed, True, document_mask)
        assert_same(mine.batch(step, rank * share, share), whole.split(share)[rank])
    assert sum(part.supervised for part in whole.split(share)) == whole.supervised


def test_documents_are_numbered_when_they_are_kept_apart(stream: TokenStream) -> None:
    assert make_order(stream).batch(0).documents is None
    order = DataOrder(stream, SEQ_LEN, 6, 1, False, True)
    for step in range(8):
        batch = order.batch(step)
        assert batch.documents is not None
        begins = batch.inputs == CONTROL_IDS["bos"]
        # Turns end and begin within a document.
        assert torch.equal(batch.documents, begins.cumsum(1))


def test_a_document_in_a_packed_window_is_as_if_it_were_alone(stream: TokenStream) -> None:
    model = tiny_model(seq_len=64, document_mask=True).eval()
    order = DataOrder(stream, 64, 4, 1, False, True)
    turns = documents = 0
    for step in range(3):
        batch = order.batch(step)
        assert batch.documents is not None
        with torch.no_grad():
            packed = model.features(batch.inputs, documents=batch.documents)
        for row in range(4):
            for number in batch.documents[row].unique():
                mine = batch.documents[row] == number
                ids = batch.inputs[row][mine]
                with torch.no_grad():
                    alone = model.features(ids.unsqueeze(0))[0]
                torch.testing.assert_close(packed[row][mine], alone, rtol=1e-4, atol=1e-4)
                documents += 1
                turns += int((ids == CONTROL_IDS["end"]).sum())
    assert turns > documents > 12


def test_tokens_of_other_documents_change_nothing(stream: TokenStream) -> None:
    model = tiny_model(seq_len=64, document_mask=True).eval()
    batch = DataOrder(stream, 64, 1, 1, False, True).batch(0)
    assert batch.documents is not None
    mine = batch.documents[0] == 2
    others = torch.where(mine, batch.inputs[0], 9).unsqueeze(0)
    with torch.no_grad():
        before = model.features(batch.inputs, documents=batch.documents)[0][mine]
        after = model.features(others, documents=batch.documents)[0][mine]
        seen = model.features(others)[0][mine]
    assert torch.equal(before, after)
    assert not torch.allclose(before, seen, atol=1e-2)


@settings(max_examples=60)
@given(
    count=st.integers(1, 30),
    seq_len=st.integers(1, 40),
    sequences=st.integers(1, 9),
    step=st.integers(0, 60),
    seed=st.integers(0, 100),
)
def test_the_documents_of_a_step_are_those_whose_tokens_it_reads(
    tmp_path_factory: pytest.TempPathFactory,
    count: int,
    seq_len: int,
    sequences: int,
    step: int,
    seed: int,
) -> None:
    turns = random_documents(count, seed)
    stream = document_stream(tmp_path_factory.mktemp("stream"), turns, 50)
    lines = joined([line] * len(render(document)[0]) for line, document in enumerate(turns, 1))
    order = DataOrder(stream, min(seq_len, len(stream) - 1), sequences, seed, False)
    expected = {
        line for start in order.starts(step) for line in lines[start : start + order.seq_len]
    }
    assert order.documents(step).tolist() == sorted(expected)


def test_the_documents_of_a_step_over_the_border_of_an_epoch(stream: TokenStream) -> None:
    lines = joined([line] * len(render(doc)[0]) for line, doc in enumerate(DOCUMENTS, 1))
    order = make_order(stream)
    assert order.windows_per_epoch % 6  # else no step would cross
    step = order.windows_per_epoch // 6
    expected = {line for start in order.starts(step) for line in lines[start : start + SEQ_LEN]}
    assert order.documents(step).tolist() == sorted(expected)


def test_documents_are_named_by_their_lines_and_not_all_of_many() -> None:
    assert name_lines(np.array([3, 5])) == "lines 3, 5 of data/conversations/train.jsonl"
    many = name_lines(np.arange(1, 101))
    assert many.startswith("lines 1, 2, 3")
    assert many.endswith(", 20 and 80 more of data/conversations/train.jsonl")


def test_batches_read_ahead_are_those_read_at_once(stream: TokenStream) -> None:
    order, steps = make_order(stream), 40
    read: list[int] = []

    def noted(step: int) -> Batch:
        read.append(step)
        return order.batch(step)

    with Prefetcher(noted, steps) as ahead:
        for step in [*range(25), 7, 8, 30, *range(31, steps)]:  # jumps are no steps ahead
            assert_same(ahead(step), make_order(stream).batch(step))
    assert max(read) == steps - 1


def test_each_batch_is_read_once_and_none_beyond_the_end() -> None:
    read: list[int] = []
    empty = Batch(torch.zeros(0), torch.zeros(0), None, 0)
    with Prefetcher(lambda step: read.append(step) or empty, 5) as ahead:
        for step in range(2, 5):
            ahead(step)
    assert read == [2, 3, 4]


def test_a_failure_ahead_is_raised_where_its_batch_is_asked_for() -> None:
    empty = Batch(torch.zeros(0), torch.zeros(0), None, 0)

    def read(step: int) -> Batch:
        if step == 2:
            raise DataError("gone")
        return empty

    with Prefetcher(read, 10) as ahead:
        assert ahead(0) is empty
        assert ahead(1) is empty
        with pytest.raises(DataError, match="gone"):
            ahead(2)
        assert ahead(3) is empty


def test_its_thread_ends_with_it() -> None:
    empty = Batch(torch.zeros(0), torch.zeros(0), None, 0)
    with Prefetcher(lambda step: empty, 10) as ahead:
        ahead(0)
    assert not [thread for thread in threading.enumerate() if "batches" in thread.name]
