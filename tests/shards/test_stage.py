"""The shards stage: conversations and tokenizer in, shards with a true manifest out."""

import hashlib
import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from model.template import CONTROL_TOKENS
from model.tokenizer import ChatTokenizer
from stages.conversations import SPLITS, Message, read_split
from stages.corpus import TokenStream, read_manifest
from stages.errors import DataError
from stages.shards import encode
from tests.builders import (
    build_data,
    call_stage,
    chats,
    contents,
    error_lines,
    joined,
    run_stage,
    tiny_params,
    write_conversations,
    write_params,
)

TEXT: list[Message] = [{"role": "text", "content": "Plain text, with <|user|> in it.\n"}]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data made once; tests that change it make their own."""
    train = [*chats(60, 1), TEXT]
    return build_data(
        tmp_path_factory.mktemp("built"), splits={"train": train, "validation": chats(12, 2)}
    )


@pytest.fixture
def copy(built: Path, tmp_path: Path) -> Iterator[Path]:
    """Params, conversations and tokenizer of ``built``, without the shards."""
    for name, content in contents(built).items():
        if not name.startswith("data/shards/"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(content)
    return tmp_path


def manifest_of(root: Path) -> dict[str, Any]:
    return json.loads((root / "data/shards/manifest.json").read_text(encoding="utf-8"))


def ids_of(root: Path) -> dict[str, list[int]]:
    """All ids of each split, straight from the files."""
    manifest = manifest_of(root)
    dtype = np.dtype(manifest["dtype"]).newbyteorder("<")
    return {
        split: [
            int(token)
            for entry in manifest["splits"][split]["files"]
            for token in np.fromfile(root / "data/shards" / entry["name"], dtype)
        ]
        for split in SPLITS
    }


def test_manifest_tells_the_truth(built: Path) -> None:
    manifest, folder = manifest_of(built), built / "data/shards"
    tokenizer = ChatTokenizer.load(built / "data/tokenizer")
    assert (manifest["dtype"], manifest["vocab_size"]) == ("uint16", tokenizer.vocab_size)
    for key, path in (
        ("tokenizer_sha256", "data/tokenizer/tokenizer.json"),
        ("validation_sha256", "data/conversations/validation.jsonl"),
    ):
        assert manifest[key] == hashlib.sha256((built / path).read_bytes()).hexdigest()
    assert manifest["control_ids"] == {
        token.strip("<|>"): tokenizer.backend.token_to_id(token) for token in CONTROL_TOKENS
    }
    for split in SPLITS:
        corpus = list(read_split(split, built / "data/conversations"))
        said = [message for chat in corpus for message in chat]
        ids = [tokenizer.encode_chat(chat) for chat in corpus]
        counts = manifest["splits"][split]
        assert {key: value for key, value in counts.items() if key != "files"} == {
            "tokens": sum(map(len, ids)),
            "documents": len(corpus),
            "bytes": sum(len(m["content"].encode()) for m in said),
            "assistant_bytes": sum(
                len(m["content"].encode()) for m in said if m["role"] == "assistant"
            ),
            "text_documents": 1 if split == "train" else 0,
        }
        assert sum(entry["tokens"] for entry in counts["files"]) == counts["tokens"]
        for entry in counts["files"]:
            content = (folder / entry["name"]).read_bytes()
            assert entry["sha256"] == hashlib.sha256(content).hexdigest()
            assert len(content) == 2 * entry["tokens"]
        assert ids_of(built)[split] == joined(ids)
    assert len(manifest["splits"]["train"]["files"]) > 2
    listed = {e["name"] for split in SPLITS for e in manifest["splits"][split]["files"]}
    assert {path.name for path in folder.iterdir()} == listed | {"manifest.json"}


def test_metrics_tell_of_the_counts_and_of_lengths(built: Path) -> None:
    metrics = json.loads((built / "metrics/shards.json").read_text(encoding="utf-8"))
    manifest = manifest_of(built)
    assert metrics.pop("dtype") == "uint16"
    lines = (built / "metrics/lengths.csv").read_text(encoding="utf-8").splitlines()
    rows = [dict(zip(lines[0].split(","), line.split(","), strict=True)) for line in lines[1:]]
    for split in SPLITS:
        stream = TokenStream(read_manifest(built / "data/shards", built / "data/tokenizer"), split,
                             built / "data/shards")  # fmt: skip
        tokens = stream.read(0, len(stream))
        starts = np.flatnonzero(tokens == stream.roles.bos)
        lengths = np.diff([*starts, len(tokens)]).tolist()
        assert metrics[split] == {
            **{
                key: manifest["splits"][split][key]
                for key in ("tokens", "documents", "bytes", "assistant_bytes")
            },
            "assistant_token_share": round(float(stream.assistant_mask(0, tokens).mean()), 4),
            "median_length": statistics.median_low(lengths),
            "longest": max(lengths),
        }
        assert sum(int(row[split]) for row in rows) == len(lengths)


@pytest.mark.parametrize("tokens_per_shard", [1, 100, 10**6])
def test_the_stream_is_the_same_whatever_tokens_per_shard(
    built: Path, copy: Path, tokens_per_shard: int
) -> None:
    write_params(copy, tiny_params({"shards.tokens_per_shard": tokens_per_shard}))
    call_stage("shards", copy)
    assert ids_of(copy) == ids_of(built)
    for root in (built, copy):
        manifest = read_manifest(root / "data/shards", root / "data/tokenizer")
        for split in SPLITS:
            stream = TokenStream(manifest, split, root / "data/shards")
            assert stream.read(0, len(stream)).tolist() == ids_of(built)[split]


@pytest.mark.parametrize(
    ("num_workers", "environment"),
    [
        (1, {"TOKENIZERS_PARALLELISM": "true"}),
        (4, {"TOKENIZERS_PARALLELISM": "true", "PYTHONHASHSEED": "7", "LC_ALL": "C"}),
        (None, {"TOKENIZERS_PARALLELISM": "false"}),
    ],
)
def test_encoding_depends_on_neither_threads_nor_process(
    built: Path, copy: Path, num_workers: int | None, environment: dict[str, str]
) -> None:
    write_params(copy, tiny_params({"runtime.num_workers": num_workers}))
    code, stderr = run_stage("shards", copy, environment=environment)
    assert code == 0, stderr
    assert contents(copy / "data") == contents(built / "data")
    assert contents(copy / "metrics") == contents(built / "metrics")


def test_encoding_depends_on_no_batch_size(
    built: Path, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode, "BATCH_CHARS", 50)
    call_stage("shards", copy)
    assert contents(copy / "data") == contents(built / "data")


def large_tokenizer(vocab_size: int) -> ChatTokenizer:
    """A vocabulary of ``vocab_size`` ids whose bytes have the last 256 of them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    filler = vocab_size - len(CONTROL_TOKENS) - len(alphabet)
    tokens = [*CONTROL_TOKENS, *(f"filler {number}" for number in range(filler)), *alphabet]
    backend = Tokenizer(models.BPE({token: id for id, token in enumerate(tokens)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True) for token in CONTROL_TOKENS])
    return ChatTokenizer(backend)


@pytest.mark.parametrize(("vocab_size", "dtype"), [(2**16, "uint16"), (2**16 + 1, "uint32")])
def test_ids_beyond_uint16_are_stored_in_uint32(
    tmp_path: Path, vocab_size: int, dtype: str
) -> None:
    tokenizer = large_tokenizer(vocab_size)
    last_byte = tokenizer.decode([vocab_size - 1])
    chat: list[Message] = [{"role": "user", "content": f"{last_byte} ab"}]
    write_params(tmp_path, tiny_params())
    write_conversations(tmp_path, {"train": [chat], "validation": [chat]})
    (tmp_path / "data/tokenizer").mkdir()
    tokenizer.save(tmp_path / "data/tokenizer")
    call_stage("shards", tmp_path)

    manifest = read_manifest(tmp_path / "data/shards", tmp_path / "data/tokenizer")
    assert (manifest["dtype"], manifest["vocab_size"]) == (dtype, vocab_size)
    stream = TokenStream(manifest, "train", tmp_path / "data/shards")
    ids = tokenizer.encode_chat(chat)
    assert stream.read(0, len(stream)).tolist() == ids
    assert max(ids) >= vocab_size - 256
    assert tokenizer.decode(stream.read(0, len(stream)).tolist()) == chat[0]["content"]


@pytest.mark.parametrize(
    ("missing", "advice"),
    [
        ("data/tokenizer/tokenizer.json", "tokenizer stage"),
        ("data/conversations/train.jsonl", "download stage"),
        ("data/conversations/manifest.json", "download stage"),
    ],
)
def test_a_missing_input_is_one_line_and_leaves_nothing(
    copy: Path, missing: str, advice: str
) -> None:
    (copy / missing).unlink()
    with pytest.raises(DataError, match=advice):
        call_stage("shards", copy)
    assert [path.name for path in (copy / "data").iterdir() if "shards" in path.name] == []


def test_a_line_that_is_no_conversation_is_named(copy: Path) -> None:
    with (copy / "data/conversations/train.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"messages": \n')
    code, stderr = run_stage("shards", copy)
    assert code == 3
    (line,) = error_lines(stderr)
    assert "train.jsonl:62" in line
    assert not (copy / "data/shards").exists()
