"""The hardest and easiest conversations are those, each whole, wherever a batch ends."""

from pathlib import Path

import numpy as np
import pytest

from stages import scoring
from stages.corpus import TokenStream
from stages.evaluate import extremes as module
from stages.evaluate.extremes import Extremes
from stages.evaluate.trace import trace
from tests.builders import (
    CONTROL_IDS,
    FIRST_WORD,
    STREAM_VOCAB,
    document_stream,
    random_documents,
    render,
    tiny_model,
)
from tests.evaluate.test_trace import Kept

DOCUMENTS = random_documents(40, 3)
SIZES = np.array([0] * FIRST_WORD + [2] * (STREAM_VOCAB - FIRST_WORD))
CLEAN = np.arange(30) % 3 != 0  # of the first thirty


@pytest.fixture
def stream(tmp_path: Path) -> TokenStream:
    return document_stream(tmp_path, DOCUMENTS, 50)


@pytest.mark.parametrize("rows", [1, 2, 1000])
@pytest.mark.parametrize("fewest", [1, 20])
def test_they_are_the_ends_of_the_sorted_list(
    stream: TokenStream, monkeypatch: pytest.MonkeyPatch, rows: int, fewest: int
) -> None:
    monkeypatch.setattr(scoring, "LOGITS_PER_BATCH", rows * 16 * STREAM_VOCAB)
    monkeypatch.setattr(module, "FEWEST_TOKENS", fewest)
    monkeypatch.setattr(module, "SHOWN", 12)
    kept, watcher = Kept(), Extremes(SIZES, CLEAN)
    trace(tiny_model(), stream, [kept, watcher])

    documents, nats = np.array(kept.all("document")), np.array(kept.all("nats"))
    sizes = SIZES[np.array(kept.all("tokens"), np.int64)]
    difficulty = {}
    for number, document in enumerate(DOCUMENTS):
        mine = documents == number
        # What begins a conversation, <|bos|>, is a token of it that costs nothing.
        assert mine.sum() == len(render(document)[0]) - (number == 0)
        if mine.sum() >= fewest and sizes[mine].sum():
            difficulty[number + 1] = nats[mine].sum() / np.log(2) / sizes[mine].sum()
    order = sorted(difficulty, key=lambda number: (-difficulty[number], number))
    hardest, easiest = watcher.result()
    assert [one.number for one in hardest] == order[:8]
    assert [one.number for one in easiest] == [n for n in order[::-1][:8] if n not in order[:8]]
    for one in hardest + easiest:
        assert one.bits_per_byte == pytest.approx(difficulty[one.number])
        mine = documents == one.number - 1
        assert one.ids == np.array(kept.all("tokens"))[mine][:12].tolist()
        assert one.costs == pytest.approx(nats[mine][:12])
        assert one.tokens == mine.sum()

    counted = [number for number in range(30) if CLEAN[number]]
    assert watcher.clean_nats == pytest.approx(nats[np.isin(documents, counted)].sum())
    assert watcher.clean_bytes == sizes[np.isin(documents, counted)].sum()


def test_of_few_conversations_none_is_shown_twice(tmp_path: Path) -> None:
    watcher = Extremes(SIZES, np.ones(3, np.bool_))
    words = list(range(FIRST_WORD, STREAM_VOCAB)) * 3
    stream = document_stream(tmp_path, [[("user", words)]] * 3)
    trace(tiny_model(), stream, [watcher])
    hardest, easiest = watcher.result()
    assert sorted(one.number for one in hardest) == [1, 2, 3]
    assert easiest == []
    assert CONTROL_IDS["end"] == hardest[0].ids[-1]
