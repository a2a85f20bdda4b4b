"""The benchmark of the server works. What it measures is not judged here."""

from pathlib import Path

import pytest
import torch

from model.config import ModelConfig
from model.tokenizer import ChatTokenizer
from model.transformer import Transformer
from tests.benchmarks import serving as benchmark
from tests.builders import chats
from tests.model.serve.running import serving
from tests.model.stub_engine import StubEngine
from tests.model.tiny import write_folder


@pytest.fixture(scope="module")
def tokenizer() -> ChatTokenizer:
    words = (message["content"] for chat in chats(60, 1) for message in chat)
    return ChatTokenizer.train(words, 500)


def test_prompts_are_as_long_as_said(tokenizer: ChatTokenizer) -> None:
    texts = benchmark.prompts(tokenizer, 5, 1)
    assert len(set(texts)) == 5
    for text in texts:
        ids = tokenizer.encode_chat([{"role": "user", "content": text}], True)
        assert benchmark.PROMPT_TOKENS - 16 < len(ids) <= benchmark.PROMPT_TOKENS


def test_every_client_s_tokens_are_counted(
    tokenizer: ChatTokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = StubEngine(tokenizer, lambda prompt: ["a "] * 7)
    with serving({"stub": engine}) as running:
        url = f"{running.url}/v1"
        benchmark.measure("server", url, "stub", tokenizer, 2)
        with pytest.raises(SystemExit, match=r"the server answered: HTTP/1\.1 404"):
            benchmark.measure("server", url, "other", tokenizer, 1)
    rows = [line.split("|")[1:3] for line in capsys.readouterr().out.splitlines()]
    assert rows == [[" server ", " 1 "], [" server ", " 16 "]]
    assert len(engine.asked) == 2 + 2 * 1 + 2 * 16
    assert engine.asked[-1][1].max_new_tokens == benchmark.NEW_TOKENS


def test_a_row_says_tokens_of_all_by_the_time_of_all() -> None:
    timings = [benchmark.Timing(100, 0.01, 0.5), benchmark.Timing(50, 0.03, 1.5)]
    assert benchmark.row("x", 2, timings, 2.0) == "| x | 2 | 75 | 20 ms (30) | 1.000 s |"


def test_the_engine_alone_is_measured(
    tokenizer: ChatTokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(1)
    tokenizer.save(tmp_path)
    config = ModelConfig(tokenizer.vocab_size, 32, 1, 2, 1, 48, seq_len=256)
    folder = write_folder(tmp_path / "model", Transformer(config), tmp_path)
    benchmark.measure_engine(folder, tokenizer, 1)
    rows = capsys.readouterr().out.splitlines()
    assert [row.split("|")[2] for row in rows] == [" 1 ", " 16 "]
