"""Shards hold the template's ids, in files cut at document borders, in a dtype that fits."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from model.tokenizer import ChatTokenizer
from stages.conversations import Message
from stages.shards import encode
from stages.shards.encode import (
    Encoded,
    ShardWriter,
    batches,
    encode_batch,
    encode_split,
    make_encode,
)
from stages.shards.ranks import SENTINEL
from tests.builders import CONTROL_IDS, chats, joined

UINT16, UINT32 = np.dtype("<u2"), np.dtype("<u4")

texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=12) | st.sampled_from(
    ["<|end|>", "<|assistant|>", "a <|bos|> b", "\ufdd0|", "<\ufdd0|user|>", "\r\n\t", "🙂"]
)
messages = st.builds(
    Message, role=st.sampled_from(["system", "user", "assistant", "text"]), content=texts
)
conversations = st.lists(st.lists(messages, min_size=1, max_size=4), max_size=6)


@pytest.fixture(scope="module")
def tokenizer() -> ChatTokenizer:
    words = (message["content"] for chat in chats(30, 1) for message in chat)
    return ChatTokenizer.train(words, 300)


def encoded(*documents: list[int]) -> Encoded:
    """Documents as ``encode_batch`` gives them, their contents not counted."""
    ids = np.array(joined(documents), np.int64)
    starts = np.cumsum([0, *map(len, documents)])[:-1]
    counts = {"bytes": 0, "assistant_bytes": 0, "text_documents": 0}
    return Encoded(ids, starts, {"documents": len(documents), **counts}, 0)


def read(folder: Path, names: list[str], dtype: np.dtype[np.unsignedinteger]) -> list[list[int]]:
    return [np.fromfile(folder / name, dtype).tolist() for name in names]


@settings(max_examples=50)
@given(conversations, st.integers(1, 60))
def test_files_hold_the_ids_of_encode_chat_document_after_document(
    tokenizer: ChatTokenizer,
    tmp_path_factory: pytest.TempPathFactory,
    corpus: list[list[Message]],
    tokens_per_shard: int,
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    writer = ShardWriter(folder, "train", UINT16, tokens_per_shard)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encode, "BATCH_CHARS", 20)
        counts = encode_split(corpus, tokenizer, make_encode(tokenizer), writer, threads=3)
    stored = read(folder, [entry["name"] for entry in counts["files"]], UINT16)
    assert joined(stored) == joined(tokenizer.encode_chat(chat) for chat in corpus)
    assert sorted(path.name for path in folder.iterdir()) == [
        entry["name"] for entry in counts["files"]
    ]


@pytest.mark.parametrize("at_a_time", [1, 3, 11])
@pytest.mark.parametrize("tokens_per_shard", [1, 10, 64, 333, 10**9])
def test_a_file_ends_with_the_document_that_fills_it(
    tmp_path: Path, tokens_per_shard: int, at_a_time: int
) -> None:
    sizes = [5, 64, 1, 9, 30, 34, 200, 2, 3, 300, 33]
    writer = ShardWriter(tmp_path, "train", UINT16, tokens_per_shard)
    documents = [
        [CONTROL_IDS["bos"]] + [number + 7] * (size - 1) for number, size in enumerate(sizes)
    ]
    for first in range(0, len(documents), at_a_time):
        writer.write(encoded(*documents[first : first + at_a_time]))
    expected: list[list[int]] = [[]]
    for ids in documents:
        if len(expected[-1]) >= tokens_per_shard:
            expected.append([])
        expected[-1] += ids
    counts = writer.close()
    stored = read(tmp_path, [entry["name"] for entry in counts["files"]], UINT16)
    assert stored == expected
    assert [entry["tokens"] for entry in counts["files"]] == [len(ids) for ids in expected]
    assert counts["tokens"] == sum(sizes)
    assert counts["documents"] == len(sizes)


@pytest.mark.parametrize(
    ("dtype", "largest"), [(UINT16, 2**16 - 1), (UINT32, 2**16), (UINT32, 2**32 - 1)]
)
def test_the_largest_id_of_a_dtype_is_stored_and_the_next_raises(
    tmp_path: Path, dtype: np.dtype[np.unsignedinteger], largest: int
) -> None:
    writer = ShardWriter(tmp_path, "train", dtype, 10**9)
    writer.write(encoded([1, largest]))
    with pytest.raises(OverflowError, match="does not fit"):
        writer.write(encoded([1, np.iinfo(dtype).max + 1]))
    counts = writer.close()
    assert read(tmp_path, [entry["name"] for entry in counts["files"]], dtype) == [[1, largest]]
    assert (counts["tokens"], counts["documents"]) == (2, 1)


def test_a_batch_counts_bytes_in_utf8_and_what_the_assistant_is_to_say(
    tokenizer: ChatTokenizer,
) -> None:
    corpus: list[list[Message]] = [
        [
            {"role": "user", "content": "naïve"},
            {"role": "assistant", "content": "🙂é"},
            {"role": "user", "content": "b"},
            {"role": "assistant", "content": "ab ab"},
        ],
        [{"role": "text", "content": "東京"}],
    ]
    result = encode_batch(corpus, make_encode(tokenizer), tokenizer)
    assert result.counts == {
        "documents": 2,
        "bytes": 6 + 6 + 1 + 5 + 6,
        "assistant_bytes": 6 + 5,
        "text_documents": 1,
    }
    ends = 2  # the end of a turn is the assistant's to say as well
    assert result.supervised == len(tokenizer.encode("🙂é")) + len(tokenizer.encode("ab ab")) + ends
    assert result.starts.tolist() == [0, len(tokenizer.encode_chat(corpus[0]))]


def test_a_tokenizer_of_another_kind_is_used_as_it_is(
    tokenizer: ChatTokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = ChatTokenizer(Tokenizer.from_str(tokenizer.backend.to_str()))
    plain.backend.add_tokens(["hello"])
    corpus: list[list[Message]] = [[{"role": "user", "content": "hello there"}]]
    ids = make_encode(plain)(corpus)
    assert "since it has added tokens of its own" in capsys.readouterr().err
    assert ids.tolist() == plain.encode_chat(corpus[0])


def test_text_with_the_encoders_sentinel_is_encoded_all_the_same(tokenizer: ChatTokenizer) -> None:
    corpus: list[list[Message]] = [[{"role": "user", "content": f"{SENTINEL}1 and {SENTINEL}"}]]
    assert make_encode(tokenizer)(corpus).tolist() == tokenizer.encode_chat(corpus[0])


def test_a_failure_in_a_thread_is_raised(tokenizer: ChatTokenizer, tmp_path: Path) -> None:
    def fail(chats: object) -> np.ndarray:
        raise MemoryError

    corpus: list[list[Message]] = [[{"role": "user", "content": "x"}]] * 3
    writer = ShardWriter(tmp_path, "train", UINT16, 10)
    with pytest.raises(MemoryError):
        encode_split(corpus, tokenizer, fail, writer, threads=2)


def test_no_conversations_make_no_files(tokenizer: ChatTokenizer, tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, "validation", UINT16, 10)
    counts = encode_split([], tokenizer, make_encode(tokenizer), writer, threads=2)
    assert (counts["files"], counts["tokens"], counts["documents"]) == ([], 0, 0)
    assert list(tmp_path.iterdir()) == []


@given(conversations, st.integers(1, 40))
def test_batches_are_the_conversations_in_order_and_none_is_larger_than_it_must_be(
    corpus: list[list[Message]], chars: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encode, "BATCH_CHARS", chars)
        parts = list(batches(corpus))
    assert joined(parts) == corpus
    for part in parts:
        sizes = [sum(len(message["content"]) for message in chat) for chat in part]
        assert sum(sizes[:-1]) < chars
