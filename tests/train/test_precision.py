"""Mixed precision takes what the device is good at, and insists when told to."""

from typing import Any

import pytest
import torch
from torch import Tensor

from stages.train import precision
from stages.train.loss import TrainingLoss, piece_loss
from stages.train.precision import Precision
from tests.builders import tiny_model

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("setting", "native", "name"),
    [
        (False, True, "float32"),
        (True, True, "bfloat16"),
        (True, False, "float32"),
        ("bf16", False, "bfloat16"),
        ("fp16", True, "float16"),
    ],
)
def test_the_dtype_follows_from_setting_and_device(
    monkeypatch: pytest.MonkeyPatch, setting: Any, native: bool, name: str
) -> None:
    monkeypatch.setattr(precision, "_cpu_has_bf16", lambda: native)
    chosen = Precision(setting, CPU)
    assert chosen.name == name
    assert chosen.scaler.is_enabled() is (name == "float16")
    model = tiny_model()
    network = TrainingLoss(model, chosen.dtype)
    seen: list[torch.dtype] = []

    def piece(hidden: Tensor, head: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
        seen.extend((hidden.dtype, head.dtype))
        return piece_loss(hidden, head, *rest)

    network.piece = piece
    for block in model.blocks:
        block.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    ids = torch.arange(8).view(1, 8)
    nats = network(ids, ids, None)
    assert set(seen) == {getattr(torch, name)}
    assert len(seen) == len(model.blocks) + 2
    # Nothing that is kept has it.
    assert nats.dtype == torch.float32
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
