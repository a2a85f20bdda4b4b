"""lm-evaluation-harness runs on a model folder, as model/INTEROPERABILITY.md says, and agrees."""

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from math import log
from pathlib import Path
from typing import Any

import pytest
import torch

from model.loading import load
from model.tokenizer import ChatTokenizer
from model.transformer import Transformer
from tests.model.tiny import ROOT, chat_config, lively_transformer, write_folder

PAGE = (ROOT / "model/INTEROPERABILITY.md").read_text(encoding="utf-8")
SECTION = PAGE.split("## lm-evaluation-harness")[1].split("\n## ")[0]


def write_files(folder: Path) -> None:
    """The files that the page shows, each under the name in its first line."""
    found = re.findall(r"^```(?:yaml|json)\n# (\S+)\n(.*?)^```", SECTION, flags=re.M | re.S)
    assert [name for name, _ in found] == ["pets.yaml", "pets.jsonl", "notes.yaml", "notes.jsonl"]
    for name, content in found:
        (folder / "tasks").mkdir(exist_ok=True)
        target = folder / ("tasks" if name.endswith(".yaml") else "") / name
        target.write_text(content, encoding="utf-8")


def commands() -> list[list[str]]:
    (block,) = re.findall(r"^```text\n(.*?)^```", SECTION, flags=re.M | re.S)
    lines = block.replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.startswith("lm_eval")]


def logprob(model: Transformer, context: list[int], rest: list[int]) -> float:
    with torch.no_grad():
        logs = model(torch.tensor([context + rest]))[0].log_softmax(-1)
    return sum(float(logs[len(context) - 1 + i, token]) for i, token in enumerate(rest))


def records(folder: Path, name: str) -> list[dict[str, Any]]:
    lines = (folder / name).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="needs pip install 'lm-eval[hf]'"
)
def test_the_pages_commands_give_our_own_figures(tmp_path: Path, tokenizer_folder: Path) -> None:
    tokenizer = ChatTokenizer.load(tokenizer_folder)
    config = chat_config(tokenizer, seq_len=256)
    write_folder(tmp_path / "models/chat", lively_transformer(**vars(config)), tokenizer_folder)
    write_files(tmp_path)
    plain, chat = commands()
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    for command, name in ((plain, "plain"), (chat, "chat")):
        subprocess.run(
            [sys.executable, "-m", "lm_eval", *command[1:], "--log_samples", "--output_path", name],
            cwd=tmp_path,
            env={**os.environ, **offline},
            check=True,
            capture_output=True,
        )

    model, _ = load(tmp_path / "models/chat")
    notes = [record["text"] for record in records(tmp_path, "notes.jsonl")]
    nats = -sum(logprob(model, [tokenizer.bos_id], tokenizer.encode(text)) for text in notes)
    expected = nats / log(2) / sum(len(text.encode()) for text in notes)
    (results,) = (tmp_path / "plain").rglob("results_*.json")
    found = json.loads(results.read_text(encoding="utf-8"))["results"]["notes"]
    assert found["bits_per_byte,none"] == pytest.approx(expected, abs=1e-4)

    for name in ("plain", "chat"):
        (samples,) = (tmp_path / name).rglob("samples_pets_*.jsonl")
        for sample in map(json.loads, samples.read_text(encoding="utf-8").splitlines()):
            question = sample["doc"]["question"]
            asked = [{"role": "user", "content": question}]
            if name == "chat":
                context, gap = tokenizer.encode_chat(asked, add_generation_prompt=True), ""
            else:
                context, gap = tokenizer.encode(question), " "
            for choice, (answer,) in zip(sample["doc"]["choices"], sample["resps"], strict=True):
                expected = logprob(model, context, tokenizer.encode(gap + choice))
                assert float(answer[0]) == pytest.approx(expected, abs=1e-3)
