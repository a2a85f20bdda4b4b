"""Training on a real GPU: it repeats, resumes and learns as on a CPU. Skipped without one."""

import csv
import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from model.transformer import document_mask, fused_attention
from tests.builders import finish, run_stage, start_stage
from tests.train.worlds import outputs, prepare, saves

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

ON_GPU = {
    "runtime.device": "cuda",
    "runtime.checkpoint_steps": 2,
    "model.d_model": 64,  # heads that FlexAttention takes
    "train.max_steps": 12,
    "train.document_mask": True,
    "train.optimizer": "muon",
}


def losses(root: Path) -> list[float]:
    with (root / "metrics/history.csv").open(encoding="utf-8") as file:
        return [float(row["val_loss"]) for row in csv.DictReader(file)]


def train(data: Path, root: Path, changes: dict[str, Any]) -> Path:
    prepare(data, root, {**ON_GPU, **changes})
    code, stderr = run_stage("train", root, seconds=600)
    assert code == 0, stderr
    return root


@pytest.mark.parametrize(
    "changes",
    [
        {"train.mixed_precision": "bf16"},
        {"train.mixed_precision": "fp16", "train.activation_checkpointing": "full"},
        {"train.mixed_precision": "bf16", "train.compile": True},
    ],
)
def test_killed_or_not_it_ends_with_the_same_bytes(
    data: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    whole, again = (train(data, tmp_path / name, changes) for name in ("whole", "again"))
    assert outputs(whole) == outputs(again)
    killed = prepare(data, tmp_path / "killed", {**ON_GPU, **changes})
    process = start_stage("train", killed)
    while process.poll() is None and not saves(killed):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    finish(process)
    code, stderr = run_stage("train", killed, seconds=600)
    assert code == 0, stderr
    assert outputs(killed) == outputs(whole)


@pytest.mark.parametrize("compiled", [False, True])
def test_in_float32_it_learns_as_on_a_cpu(data: Path, tmp_path: Path, compiled: bool) -> None:
    plain = {"train.mixed_precision": False, "model.dropout": 0.0, "train.optimizer": "adamw"}
    gpu = train(data, tmp_path / "gpu", {**plain, "train.compile": compiled})
    cpu = train(data, tmp_path / "cpu", {**plain, "runtime.device": "cpu"})
    assert losses(gpu) == pytest.approx(losses(cpu), rel=1e-3)


def test_the_evaluation_of_a_model_is_that_of_a_cpu(data: Path, tmp_path: Path) -> None:
    root = train(data, tmp_path / "gpu", {"train.mixed_precision": "bf16"})
    found = []
    for device in ("cuda", "cpu"):
        (root / "params.yaml").write_text(
            (root / "params.yaml").read_text().replace("device: cuda", f"device: {device}")
        )
        code, stderr = run_stage("evaluate", root)
        assert code == 0, stderr
        metrics = json.loads((root / "metrics/eval.json").read_text(encoding="utf-8"))
        found.append(metrics["bits_per_byte"])
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_a_mask_and_grouped_heads_together_hold_no_scores() -> None:
    """torch alone would make them all: 256 MiB here, and as much for the softmax of them."""
    length = 2048
    q, k, v = (
        torch.randn(1, heads, length, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        for heads in (16, 4, 4)
    )
    numbers = (torch.arange(length, device="cuda") // 100)[None]
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()

    def output(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return fused_attention(q, k, v, document_mask(numbers.to(q.device)), False)

    ours = output(q, k, v)
    ours.sum().backward()
    assert torch.cuda.max_memory_allocated() - before < 100 * 2**20
    exact = output(*(x.detach().cpu().double() for x in (q, k, v)))  # by the CPU's kernels
    assert (ours.cpu().double() - exact).norm() / exact.norm() < 0.01
