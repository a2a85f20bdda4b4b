"""What training on a CPU computes in ways of its own is what torch computes."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.config import ModelConfig
from model.transformer import Attention, RMSNorm, Transformer, fused_attention, rms_norm
from stages.train import eager
from stages.train.eager import train_eagerly
from stages.train.loss import TrainingLoss

CONFIG = ModelConfig(
    vocab_size=61, d_model=32, num_layers=2, num_heads=4, kv_heads=2, d_ff=48, seq_len=40
)


def normalise(
    function: object, x: Tensor, weight: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Output and gradients of input and weight."""
    assert callable(function)
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    output = function(x, weight, 1e-5)
    x_grad, weight_grad = torch.autograd.grad(output, (x, weight), grad)
    return output.detach(), x_grad, weight_grad


@settings(max_examples=60)
@given(
    rows=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    width=st.integers(1, 70),
    scale=st.sampled_from([1e-4, 1.0, 1e3]),
    seed=st.integers(0, 1000),
)
def test_a_norm_and_its_gradients_are_those_of_torch(
    rows: list[int], width: int, scale: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*rows, width, generator=generator) * scale
    weight = torch.rand(width, generator=generator) + 0.5
    grad = torch.randn(*rows, width, generator=generator)
    ours = normalise(eager.rms_norm, x, weight, grad)
    doubles = normalise(rms_norm, x.double(), weight.double(), grad.double())
    theirs = normalise(rms_norm, x, weight, grad)
    # What a gradient of the input is the difference of.
    terms = grad.norm() / x.square().mean(-1).add(1e-5).sqrt().min()
    for mine, other, truth in zip(ours, theirs, doubles, strict=True):
        allowed = (other.double() - truth).norm()
        assert (mine.double() - truth).norm() <= 3 * allowed + 1e-6 * (truth.norm() + terms)


@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16])
def test_a_norm_in_bfloat16_is_as_near_to_the_truth_as_torch(weight_dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    x, grad = (torch.randn(2, 50, 64, generator=generator).bfloat16() for _ in range(2))
    weight = (torch.rand(64, generator=generator) + 0.5).to(weight_dtype)
    truths = normalise(rms_norm, x.double(), weight.double(), grad.double())
    ours = normalise(eager.rms_norm, x, weight, grad)
    theirs = normalise(rms_norm, x, weight, grad)
    for mine, other, truth, like in zip(ours, theirs, truths, (x, x, weight), strict=True):
        assert mine.dtype == like.dtype
        allowed = (other.double() - truth).norm()
        assert (mine.double() - truth).norm() <= 1.1 * allowed


def test_heads_lie_apart_in_memory() -> None:
    """As queries do, which are normalised as views."""
    x = torch.randn(2, 7, 3, 16).transpose(1, 2)
    weight, grad = torch.ones(16), torch.randn(2, 3, 7, 16)
    for mine, other in zip(
        normalise(eager.rms_norm, x, weight, grad),
        normalise(rms_norm, x, weight, grad),
        strict=True,
    ):
        torch.testing.assert_close(mine, other)


def losses_and_gradients(
    eagerly: bool, dtype: torch.dtype, documents: Tensor | None
) -> dict[str, Tensor]:
    """Summed nats of a fixed batch and the gradients of all weights."""
    torch.manual_seed(3)
    model = Transformer(replace(CONFIG, qk_norm=True))
    if eagerly:
        train_eagerly(model, dtype)
    generator = torch.Generator().manual_seed(4)
    ids = torch.randint(CONFIG.vocab_size, (3, 41), generator=generator)
    loss = TrainingLoss(model, dtype)(ids[:, :-1], ids[:, 1:], documents)
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert len(gradients) == len(list(model.parameters()))
    return {"loss": loss.detach(), **gradients}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_learns_the_same(dtype: torch.dtype, masked: bool) -> None:
    documents = torch.arange(40).div(11, rounding_mode="floor").expand(3, -1) if masked else None
    truth = losses_and_gradients(False, torch.float32, documents)
    usual = losses_and_gradients(False, dtype, documents)
    ours = losses_and_gradients(True, dtype, documents)
    for name, exact in truth.items():
        error, allowed = ((got[name] - exact).norm() / exact.norm() for got in (ours, usual))
        assert error <= 2.5 * allowed + 1e-5, name


def test_attention_is_replaced_where_it_is_quicker() -> None:
    for dtype, ours in (torch.bfloat16, True), (torch.float32, False), (torch.float16, False):
        model = Transformer(CONFIG)
        train_eagerly(model, dtype)
        modules = list(model.modules())
        attends = {module.attend for module in modules if isinstance(module, Attention)}
        norms = {module.normalise for module in modules if isinstance(module, RMSNorm)}
        assert attends == {eager.softmax_attention if ours else fused_attention}
        assert norms == {eager.rms_norm}
