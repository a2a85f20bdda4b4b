"""bfloat16 weights compute, and float32 masters learn what a bfloat16 can't hold."""

from pathlib import Path
from typing import Any

import pytest
import torch

from stages.scoring import IGNORED
from stages.train.data_order import Batch
from stages.train.loss import TrainingLoss
from stages.train.master import MasterWeights
from stages.train.meter import Meter
from stages.train.optimizer import make_optimizers
from stages.train.precision import Precision
from stages.train.processes import Processes
from stages.train.update import Updater
from tests.builders import STREAM_VOCAB, tiny_model, train_params

CPU = torch.device("cpu")


def make(masters: MasterWeights, per_pass: int, **changes: Any) -> Updater:
    params = train_params(grad_clip=0.0, **changes)
    return Updater(
        TrainingLoss(masters.working, torch.bfloat16),
        make_optimizers(masters.model, params),
        Precision("bf16", CPU),
        per_pass,
        params.grad_clip,
        1,
        Processes(),
        Meter(CPU),
        masters,
    )


def some_batch() -> Batch:
    tokens = torch.randint(7, STREAM_VOCAB, (8, 17), generator=torch.Generator().manual_seed(1))
    labels = tokens[:, 1:].clone()
    labels[0] = IGNORED
    return Batch(tokens[:, :-1], labels, None, 0)


@pytest.mark.parametrize("tied", [True, False])
def test_the_copies_are_the_masters_rounded_after_every_update(tied: bool) -> None:
    masters = MasterWeights(tiny_model(tie_embeddings=tied))
    update = make(masters, 2)
    for step in range(3):
        assert update(step, some_batch(), 1.0).applied
        for master, working in zip(
            masters.model.parameters(), masters.working.parameters(), strict=True
        ):
            assert master.dtype == torch.float32
            assert working.dtype == torch.bfloat16
            assert torch.equal(master.bfloat16(), working)
            assert working.grad is None
            assert master.grad is None


def test_updates_below_a_bfloat16s_last_bit_add_up() -> None:
    masters = MasterWeights(tiny_model())
    update = make(masters, 8, lr=1e-6, weight_decay=0.0)
    before = masters.model.embedding.weight.detach().clone()
    for step in range(20):
        update(step, some_batch(), 1.0)
    moved = (masters.model.embedding.weight.detach() - before).abs()
    assert float(moved.max()) > 1e-5


def test_gradients_of_several_passes_add_up_in_float32() -> None:
    gradients = []
    for per_pass in (8, 1):
        masters = MasterWeights(tiny_model())
        network = TrainingLoss(masters.working, torch.bfloat16)
        for part in some_batch().split(per_pass):
            network(part.inputs, part.labels, part.documents).backward()
            masters.collect()
        gradients.append([p.grad.clone() for p in masters.model.parameters()])
    for whole, parts in zip(*gradients, strict=True):
        assert parts.dtype == torch.float32
        torch.testing.assert_close(parts, whole, rtol=0.05, atol=0.1 * float(whole.abs().max()))


def test_the_stage_trains_with_them(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    from tests.builders import build_data, call_stage, tiny_params, write_params

    build_data(tmp_path)
    write_params(
        tmp_path, tiny_params({"train.mixed_precision": "bf16", "train.bf16_weights": True})
    )
    call_stage("train", tmp_path)
    weights = load_file(tmp_path / "models/chat/model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    assert any(not torch.equal(w, w.bfloat16().float()) for w in weights.values())
