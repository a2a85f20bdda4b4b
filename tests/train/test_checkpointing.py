"""Activation checkpointing costs no bit: the same gradients from less memory."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from model.transformer import Transformer
from stages.train.checkpointing import checkpoint_activations
from stages.train.data_order import Batch
from stages.train.loss import TrainingLoss
from stages.train.precision import Precision
from tests.builders import FIRST_WORD, STREAM_VOCAB, tiny_model, train_params
from tests.train.worlds import CPU, make_updater

WAYS = ["none", "selective", "full"]
SEQUENCES, SEQ_LEN = 4, 16


def make_batch(documents: bool = False) -> Batch:
    generator = torch.Generator().manual_seed(4)
    shape = (SEQUENCES, SEQ_LEN + 1)
    tokens = torch.randint(FIRST_WORD, STREAM_VOCAB, shape, generator=generator)
    numbers = torch.arange(SEQ_LEN).div(6, rounding_mode="floor").expand(SEQUENCES, SEQ_LEN)
    return Batch(tokens[:, :-1], tokens[:, 1:], numbers if documents else None, 0)


def make_model(how: str, **changes: Any) -> Transformer:
    model = tiny_model(dropout=0.3, num_layers=3, **changes)
    checkpoint_activations(model, how)
    return model


def after_updates(how: str, setting: Any, documents: bool) -> list[Tensor]:
    """All weights after two updates of two passes each."""
    model = make_model(how)
    params = train_params(batch_size=2, grad_accum_steps=2)
    update = make_updater(model, params, Precision(setting, CPU))
    for step in range(2):
        assert update(step, make_batch(documents), 1.0).applied
    return [parameter.detach() for parameter in model.parameters()]


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("setting", [False, "bf16"])
@pytest.mark.parametrize("how", ["selective", "full"])
def test_weights_are_the_same_to_the_bit_with_dropout_on(
    how: str, setting: Any, documents: bool
) -> None:
    expected = after_updates("none", setting, documents)
    given = after_updates(how, setting, documents)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(given, expected, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("how", ["selective", "full"])
def test_gradients_are_the_same_to_the_bit(how: str, dtype: torch.dtype) -> None:
    gradients = []
    for way in ("none", how):
        network = TrainingLoss(make_model(way, qk_norm=True), dtype)
        torch.manual_seed(5)
        batch = make_batch()
        network(batch.inputs, batch.labels, batch.documents).backward()
        gradients.append([p.grad for p in network.parameters()])
    for ours, theirs in zip(*gradients, strict=True):
        assert ours is not None
        assert theirs is not None
        assert torch.equal(ours, theirs)
        assert ours.any()


def held(how: str) -> int:
    """Bytes of the tensors that autograd keeps between forward and backward, without weights."""
    model = make_model(how, d_ff=64)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = tensor
        return tensor

    batch = make_batch()
    unpack: Callable[[Tensor], Tensor] = lambda tensor: tensor  # noqa: E731
    with saved_tensors_hooks(pack, unpack):
        loss = model.features(batch.inputs).sum()
    assert torch.isfinite(loss)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def test_a_block_that_is_recomputed_holds_less() -> None:
    none, full = held("none"), held("full")
    assert full < none / 3
    # Of a block its input alone is left: as many bytes as there are activations between blocks.
    assert full >= 3 * SEQUENCES * SEQ_LEN * 16 * 4


@pytest.mark.parametrize("how", WAYS)
def test_generation_and_validation_are_as_ever(how: str) -> None:
    model, plain = make_model(how).eval(), make_model("none").eval()
    inputs = make_batch().inputs
    with torch.no_grad():
        assert torch.equal(model(inputs), plain(inputs))
    assert list(model.state_dict()) == list(plain.state_dict())
