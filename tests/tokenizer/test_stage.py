"""The tokenizer stage: learnt from the training split alone, the same bytes in every process."""

import json
from pathlib import Path
from typing import Any

import pytest

from model.tokenizer import SMALLEST_VOCAB, ChatTokenizer
from stages.conversations import Message, read_split
from stages.errors import DataError
from stages.files import rounded
from stages.tokenizer import measures, params
from tests.builders import (
    call_stage,
    chats,
    contents,
    error_lines,
    run_stage,
    tiny_params,
    write_conversations,
    write_params,
)


def prepare(
    root: Path,
    train: list[list[Message]],
    validation: list[list[Message]],
    vocab_size: int = 300,
) -> Path:
    write_params(root, tiny_params({"tokenizer.vocab_size": vocab_size}))
    write_conversations(root, {"train": train, "validation": validation})
    return root


def metrics_of(root: Path) -> dict[str, Any]:
    return json.loads((root / "metrics/tokenizer.json").read_text(encoding="utf-8"))


def test_bytes_per_token_is_that_of_the_validation_contents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measures, "BATCH", 7)
    prepare(tmp_path, chats(40, 1), chats(11, 2))
    call_stage("tokenizer", tmp_path)
    tokenizer = ChatTokenizer.load(tmp_path / "data/tokenizer")
    texts = [
        message["content"]
        for chat in read_split("validation", tmp_path / "data/conversations")
        for message in chat
    ]
    assert len(texts) % 7
    size = sum(len(text.encode()) for text in texts)
    tokens = sum(len(tokenizer.encode(text)) for text in texts)
    metrics = metrics_of(tmp_path)
    on_samples = metrics.pop("bytes_per_token_on")
    assert metrics == {
        "vocab_size": 300,
        "bytes_per_token": rounded(size / tokens),
        "learnt_from_characters": sum(len(m["content"]) for chat in chats(40, 1) for m in chat),
    }
    assert sorted(on_samples) == ["code", "digits", "languages"]
    for name, figure in on_samples.items():
        sample = (measures.SAMPLES / f"{name}.txt").read_text(encoding="utf-8")
        assert figure == rounded(len(sample.encode()) / len(tokenizer.encode(sample)))
    assert tokenizer.vocab_size == 300


def test_merges_come_from_the_training_split_alone(tmp_path: Path) -> None:
    train = chats(40, 1)
    for name, validation in (("a", chats(10, 2)), ("b", chats(30, 3))):
        prepare(tmp_path / name, train, validation)
        call_stage("tokenizer", tmp_path / name)
    assert contents(tmp_path / "a/data/tokenizer") == contents(tmp_path / "b/data/tokenizer")


@pytest.mark.parametrize(
    ("num_workers", "environment"),
    [
        (None, {"RAYON_NUM_THREADS": "1", "PYTHONHASHSEED": "1", "LC_ALL": "C"}),
        (5, {"PYTHONHASHSEED": "2", "LC_ALL": "tr_TR.UTF-8"}),
        (1, {"TOKENIZERS_PARALLELISM": "false"}),
    ],
)
def test_bytes_depend_on_neither_threads_nor_process(
    tmp_path: Path, num_workers: int | None, environment: dict[str, str]
) -> None:
    for name in ("here", "there"):
        prepare(tmp_path / name, chats(60, 1), chats(5, 2), 400)
    changes = {"tokenizer.vocab_size": 400, "runtime.num_workers": num_workers}
    write_params(tmp_path / "there", tiny_params(changes))
    call_stage("tokenizer", tmp_path / "here")
    code, stderr = run_stage("tokenizer", tmp_path / "there", environment=environment)
    assert code == 0, stderr
    for folder in ("data", "metrics"):
        assert contents(tmp_path / "here" / folder) == contents(tmp_path / "there" / folder)


def test_a_corpus_too_small_for_the_vocabulary_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(tmp_path, chats(3, 1), chats(1, 2), 50_000)
    call_stage("tokenizer", tmp_path)
    size = metrics_of(tmp_path)["vocab_size"]
    assert SMALLEST_VOCAB < size < 50_000
    assert f"{size:,} ids" in capsys.readouterr().err


def test_an_empty_validation_split_has_no_bytes_per_token(tmp_path: Path) -> None:
    prepare(tmp_path, chats(10, 1), [])
    call_stage("tokenizer", tmp_path)
    assert metrics_of(tmp_path)["bytes_per_token"] is None


def test_a_missing_corpus_is_one_line_and_leaves_no_tokenizer(tmp_path: Path) -> None:
    prepare(tmp_path, chats(2, 1), [])
    (tmp_path / "data/conversations/train.jsonl").unlink()
    with pytest.raises(DataError, match="download stage"):
        call_stage("tokenizer", tmp_path)
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["conversations"]


@pytest.mark.parametrize("vocab_size", [SMALLEST_VOCAB - 1, 0, "300"])
def test_an_impossible_vocabulary_exits_2_naming_the_key(
    tmp_path: Path, vocab_size: object
) -> None:
    write_params(tmp_path, tiny_params({"tokenizer.vocab_size": vocab_size}))
    code, stderr = run_stage("tokenizer", tmp_path)
    assert code == 2
    (line,) = error_lines(stderr)
    assert "tokenizer.vocab_size" in line


def test_the_smallest_vocabulary_is_the_control_tokens_and_the_bytes(tmp_path: Path) -> None:
    assert params.SMALLEST_VOCAB == SMALLEST_VOCAB
    prepare(tmp_path, chats(5, 1), chats(2, 2), SMALLEST_VOCAB)
    call_stage("tokenizer", tmp_path)
    tokenizer = ChatTokenizer.load(tmp_path / "data/tokenizer")
    assert tokenizer.vocab_size == SMALLEST_VOCAB
    assert len(tokenizer.encode("naïve")) == len("naïve".encode())
