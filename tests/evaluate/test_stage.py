"""The evaluation stage as it is run: the same measures every time, of the right model alone."""

import csv
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from model import load
from stages import scoring
from stages.conversations import SPLITS, read_split
from stages.corpus import TokenStream, read_manifest
from stages.errors import DataError
from stages.files import rounded
from stages.scoring import score
from tests.builders import (
    build_data,
    call_stage,
    contents,
    error_lines,
    exit_code,
    run_stage,
    tiny_params,
    write_params,
)

WRITTEN = {
    "calibration.csv",
    "context.csv",
    "conversations.html",
    "eval.json",
    "replies.csv",
    "roles.csv",
    "samples.json",
    "samples.md",
    "turns.csv",
}
MEASURES = {"loss", "perplexity", "bits_per_byte", "tokens", "bytes"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data and a model trained on it."""
    root = build_data(tmp_path_factory.mktemp("trained"))
    call_stage("train", root)
    return root


def copy_of(trained: Path, root: Path) -> Path:
    """The inputs of the stage, and no result."""
    for name in ("data", "models"):
        shutil.copytree(trained / name, root / name)
    write_params(root, tiny_params())
    return root


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    return copy_of(trained, tmp_path)


@pytest.fixture(scope="module")
def evaluated(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where ``python -m stages.evaluate`` has run."""
    root = copy_of(trained, tmp_path_factory.mktemp("evaluated"))
    code, stderr = run_stage("evaluate", root)
    assert code == 0, stderr
    return root


def results(root: Path) -> dict[str, bytes]:
    return {k: v for k, v in contents(root / "metrics").items() if ".local." not in k}


def test_the_metrics_are_there_and_true(evaluated: Path) -> None:
    root = evaluated
    metrics = json.loads((root / "metrics/eval.json").read_text(encoding="utf-8"))
    assert set(metrics) == MEASURES | {
        "accuracy",
        "assistant",
        "baselines",
        "calibration_error",
        "contamination",
        "replies",
        "validation_sha256",
    }
    assert set(metrics["assistant"]) == MEASURES
    assert set(metrics["baselines"]) == {"uniform", "unigram", "bigram", "bzip2"}
    assert all(set(value) == {"bits_per_byte"} for value in metrics["baselines"].values())

    manifest = read_manifest(root / "data/shards", root / "models/chat")
    counts = manifest["splits"]["validation"]
    assert metrics["validation_sha256"] == manifest["validation_sha256"]
    model, _ = load(root / "models/chat")
    stream = TokenStream(manifest, "validation", root / "data/shards")
    exact = score(model, stream)
    for values, nats, tokens, size in (
        (metrics, exact.nats, exact.tokens, counts["bytes"]),
        (
            metrics["assistant"],
            exact.assistant_nats,
            exact.assistant_tokens,
            counts["assistant_bytes"],
        ),
    ):
        assert (values["tokens"], values["bytes"]) == (tokens, size)
        assert values["loss"] == rounded(nats / tokens)
        assert values["perplexity"] == pytest.approx(math.exp(values["loss"]), rel=1e-3)
        assert values["bits_per_byte"] == rounded(nats / math.log(2) / size)
    # Every token but the first and those that begin a document.
    assert exact.tokens == counts["tokens"] - counts["documents"]


def test_two_evaluations_write_the_same_bytes(evaluated: Path, copy: Path) -> None:
    call_stage("evaluate", copy)
    assert set(results(copy)) == WRITTEN
    assert results(copy) == results(evaluated)


def rows_of(root: Path, name: str) -> list[dict[str, str]]:
    text = (root / f"metrics/{name}.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


def test_every_table_adds_up_to_the_whole(evaluated: Path) -> None:
    metrics = json.loads((evaluated / "metrics/eval.json").read_text(encoding="utf-8"))
    for name in ("context", "turns", "roles"):
        rows = rows_of(evaluated, name)
        tokens = [int(row["tokens"]) for row in rows]
        assert sum(tokens) == metrics["tokens"]
        nats = sum(float(row["loss"]) * count for row, count in zip(rows, tokens, strict=True))
        assert nats / metrics["tokens"] == pytest.approx(metrics["loss"], rel=1e-4)
        # Bytes follow from bits and bits per byte: those of the text, however it is divided.
        sizes = [
            float(row["loss"]) * count / math.log(2) / float(row["bits_per_byte"])
            for row, count in zip(rows, tokens, strict=True)
            if row["bits_per_byte"]
        ]
        assert sum(sizes) == pytest.approx(metrics["bytes"], rel=1e-3)
    rows = rows_of(evaluated, "calibration")
    assert sum(int(row["tokens"]) for row in rows) == metrics["tokens"]
    right = sum(float(row["accuracy"]) * int(row["tokens"]) for row in rows)
    assert right / metrics["tokens"] == pytest.approx(metrics["accuracy"], rel=1e-3)


def flat(values: dict[str, Any], before: str = "") -> dict[str, Any]:
    """Nested numbers by their joined keys."""
    result = {}
    for key, value in values.items():
        if value is None or isinstance(value, str):
            continue
        inner = flat(value, f"{before}{key}.") if isinstance(value, dict) else {before + key: value}
        result.update(inner)
    return result


def test_the_same_numbers_whatever_the_batch_and_the_threads(
    evaluated: Path, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "LOGITS_PER_BATCH", 5 * 32 * 300)
    # Replies are not what this is about, and threads wait for one another at such small products.
    fewer = {"evaluate.prompts": [], "evaluate.openings": 0, "evaluate.max_new_tokens": 1}
    write_params(copy, tiny_params({"runtime.threads": 2, **fewer}))
    call_stage("evaluate", copy)
    first, second = (
        flat(json.loads((root / "metrics/eval.json").read_text(encoding="utf-8")))
        for root in (evaluated, copy)
    )
    for key in first.keys() | second.keys():
        if not key.startswith("replies."):
            assert second[key] == pytest.approx(first[key], rel=2e-4), key
    for name in ("context", "turns", "roles", "calibration"):
        for one, other in zip(rows_of(evaluated, name), rows_of(copy, name), strict=True):
            for key in one:
                if key == "part":
                    assert one[key] == other[key]
                elif one[key]:
                    assert float(one[key]) == pytest.approx(float(other[key]), rel=1e-3)


def test_bits_per_byte_are_of_the_same_bytes_whatever_the_vocabulary(
    evaluated: Path, tmp_path: Path
) -> None:
    """Truncation, packing and control tokens change no byte that is counted."""
    root = build_data(
        tmp_path,
        {"tokenizer.vocab_size": 264, "model.seq_len": 12, "shards.tokens_per_shard": 50},
    )
    call_stage("train", root)
    call_stage("evaluate", root)
    mine, other = (
        json.loads((folder / "metrics/eval.json").read_text(encoding="utf-8"))
        for folder in (root, evaluated)
    )
    text = b"".join(
        message["content"].encode()
        for messages in read_split("validation", root / "data/conversations")
        for message in messages
    )
    for metrics in (mine, other):
        assert metrics["bytes"] == len(text)
    assert mine["validation_sha256"] == other["validation_sha256"]
    assert mine["assistant"]["bytes"] == other["assistant"]["bytes"]
    assert mine["tokens"] > other["tokens"]
    # What does not look at tokens at all is the same.
    assert mine["baselines"]["bzip2"] == other["baselines"]["bzip2"]
    for key in ("ngrams", "conversations"):
        assert mine["contamination"][key] == other["contamination"][key]
    # A uniform guess costs ln(vocabulary) a token: the bits are those over these bytes.
    uniform = mine["tokens"] * math.log2(264) / len(text)
    assert mine["baselines"]["uniform"]["bits_per_byte"] == pytest.approx(uniform, rel=1e-4)


def test_other_conversations_than_those_of_the_shards_are_refused(copy: Path) -> None:
    file = copy / "data/conversations/validation.jsonl"
    file.write_bytes(file.read_bytes().split(b"\n", 1)[1])
    with pytest.raises(DataError, match="not what data/shards was made of"):
        call_stage("evaluate", copy)
    assert not (copy / "metrics").exists()


def test_a_tampered_tokenizer_is_refused_with_3(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It means the same, but its bytes are not those that made the shards."""
    file = copy / "models/chat/tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8"))), encoding="utf-8")
    assert exit_code("evaluate", copy) == 3
    (line,) = error_lines(capsys.readouterr().err)
    assert "another tokenizer" in line
    assert not (copy / "metrics").exists()


def test_the_prompts_stand_escaped_on_the_page(evaluated: Path) -> None:
    page = (evaluated / "metrics/samples.md").read_text(encoding="utf-8")
    assert "**user:** Hello \\*there\\*!\n" in page
    assert "<b>" not in page.replace("\\<", "")


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def cut(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])

    return change


def reshape(folder: Path) -> None:
    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**values, "hidden_size": 32}))


@pytest.mark.parametrize(
    "change",
    [
        without("config.json"),
        without("model.safetensors"),
        without("tokenizer.json"),
        cut("config.json"),
        cut("model.safetensors"),
        cut("tokenizer.json"),
        reshape,
    ],
)
def test_a_damaged_model_folder_is_a_data_error(copy: Path, change: Callable[[Path], None]) -> None:
    change(copy / "models/chat")
    with pytest.raises(DataError, match="dvc repro"):
        call_stage("evaluate", copy)
    assert not (copy / "metrics").exists()


def test_plain_text_is_evaluated_without_an_assistant(tmp_path: Path) -> None:
    splits = {
        split: [[{"role": "text", "content": f"{split} {n}: " + "words " * 20}] for n in range(9)]
        for split in SPLITS
    }
    root = build_data(tmp_path, {"train.max_steps": 1}, splits)  # type: ignore[arg-type]
    call_stage("train", root)
    call_stage("evaluate", root)
    metrics = json.loads((root / "metrics/eval.json").read_text(encoding="utf-8"))
    assert "assistant" not in metrics
    assert metrics["bits_per_byte"] > 0
