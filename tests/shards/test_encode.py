"""Shards hold the template's ids, in files cut at document borders, in a dtype that fits."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.tokenizer import ChatTokenizer
from stages.conversations import Message
from stages.shards import encode
from stages.shards.encode import ShardWriter, batches, encode_split
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


def read(folder: Path, names: list[str], dtype: np.dtype[np.unsignedinteger]) -> list[list[int]]:
    return [np.fromfile(folder / name, dtype).tolist() for name in names]


@settings(max_examples=50, deadline=None)
@given(conversations, st.integers(1, 60))
def test_files_hold_the_ids_of_encode_chat_document_after_document(
    tokenizer: ChatTokenizer,
    tmp_path_factory: pytest.TempPathFactory,
    corpus: list[list[Message]],
    tokens_per_shard: int,
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    writer = ShardWriter(folder, "train", UINT16, tokens_per_shard)
    counts = encode_split(corpus, tokenizer, writer)
    stored = read(folder, [entry["name"] for entry in counts["files"]], UINT16)
    assert joined(stored) == joined(tokenizer.encode_chat(chat) for chat in corpus)
    assert sorted(path.name for path in folder.iterdir()) == [
        entry["name"] for entry in counts["files"]
    ]


@pytest.mark.parametrize("tokens_per_shard", [1, 10, 64, 333, 10**9])
def test_a_file_ends_with_the_document_that_fills_it(tmp_path: Path, tokens_per_shard: int) -> None:
    sizes = [5, 64, 1, 9, 30, 34, 200, 2, 3, 300, 33]
    writer = ShardWriter(tmp_path, "train", UINT16, tokens_per_shard)
    expected: list[list[int]] = [[]]
    for number, size in enumerate(sizes):
        ids = [CONTROL_IDS["bos"]] + [number + 7] * (size - 1)
        writer.write([{"role": "user", "content": ""}], ids)
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
    chat: list[Message] = [{"role": "user", "content": "x"}]
    writer.write(chat, [1, largest])
    with pytest.raises(OverflowError, match="does not fit"):
        writer.write(chat, [1, np.iinfo(dtype).max + 1])
    counts = writer.close()
    assert read(tmp_path, [entry["name"] for entry in counts["files"]], dtype) == [[1, largest]]
    assert (counts["tokens"], counts["documents"]) == (2, 1)


def test_bytes_are_those_of_the_contents_in_utf8(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, "train", UINT16, 10**9)
    writer.write(
        [{"role": "user", "content": "naïve"}, {"role": "assistant", "content": "🙂é"}], [1]
    )
    writer.write([{"role": "text", "content": "東京"}], [1])
    counts = writer.close()
    assert (counts["bytes"], counts["assistant_bytes"]) == (6 + 6 + 6, 6)
    assert (counts["documents"], counts["text_documents"]) == (2, 1)


def test_no_conversations_make_no_files(tokenizer: ChatTokenizer, tmp_path: Path) -> None:
    counts = encode_split([], tokenizer, ShardWriter(tmp_path, "validation", UINT16, 10))
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
