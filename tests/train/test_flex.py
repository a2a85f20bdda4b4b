"""FlexAttention as compiled training on a GPU uses it computes what torch's own kernels do.

It has a backward pass on a CPU only in the form that the compiler takes apart, without kernels.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import flex_attention as flex_module
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from model.config import ModelConfig
from model.transformer import Transformer, document_mask, fused_attention
from stages.train.checkpointing import checkpoint_activations
from stages.train.flex import LEAST_HEAD, FlexibleAttention, serves
from stages.train.loss import TrainingLoss

LENGTH, VOCAB = 256, 300
CONFIG = ModelConfig(VOCAB, 64, 2, 4, 2, 96, LENGTH)


@pytest.fixture
def _traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No refusal of gradients on a CPU, and a compiler that knows nothing yet."""
    monkeypatch.setattr(flex_module, "_validate_device", lambda *_: None)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def traced(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    return torch.compile(function, dynamic=False, backend="aot_eager", **options)


def batch(seed: int, documents: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    generator = torch.Generator().manual_seed(seed)
    inputs, labels = (torch.randint(VOCAB, (2, LENGTH), generator=generator) for _ in range(2))
    begins = torch.rand(2, LENGTH, generator=generator) < 0.03
    return inputs, labels, begins.cumsum(1) if documents else None


def results(network: TrainingLoss, given: tuple[Tensor, Tensor, Tensor | None]) -> list[Tensor]:
    """The loss, and the gradients of all weights."""
    network.zero_grad()
    loss = network(*given)
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in network.parameters() if p.grad is not None)]


@pytest.mark.usefixtures("_traced")
@pytest.mark.parametrize("how", ["none", "selective", "full"])
@pytest.mark.parametrize("by_block", [False, True])
@pytest.mark.parametrize("documents", [False, True])
def test_losses_and_gradients_are_those_of_torchs_kernels_and_it_compiles_once(
    documents: bool, by_block: bool, how: str
) -> None:
    torch.manual_seed(0)
    network = TrainingLoss(Transformer(CONFIG), torch.float32)
    given = [batch(seed, documents) for seed in range(3)]
    expected = [results(network, one) for one in given]
    assert all(gradient.norm() > 1e-3 for gradient in expected[0])
    nats = network(*given[0], per_token=True).detach()

    model, attention = network.model, FlexibleAttention(LENGTH, "cpu", by_block)
    model.attend_by(attention, attention.document_mask)
    checkpoint_activations(model, how)
    if by_block:
        attention.create = traced(create_block_mask)
        for block in model.blocks:
            block.forward = traced(block.forward, fullgraph=True)
    else:
        network.features = traced(model.features, fullgraph=True)
    for step, one in enumerate(given):
        with torch._dynamo.config.patch(error_on_recompile=step > 0):
            ours = results(network, one)
        for mine, theirs in zip(ours, expected[step], strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-3)
    # Validation is by torch's kernels.
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        torch.testing.assert_close(network(*given[0], per_token=True), nats)


def test_blocks_that_hide_all_are_left_out() -> None:
    attention = FlexibleAttention(512, "cpu", False)
    assert attention.causal.sparsity() == pytest.approx(100 * 6 / 16)
    numbers = torch.arange(4).repeat_interleave(128)[None]
    apart = attention.document_mask(numbers)
    assert isinstance(apart, BlockMask)
    assert apart.sparsity() == pytest.approx(100 * 12 / 16)
    with torch.no_grad():
        assert torch.equal(attention.document_mask(numbers), document_mask(numbers))


def test_narrow_heads_are_left_to_torch() -> None:
    assert serves(LEAST_HEAD)
    assert not serves(LEAST_HEAD - 1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a GPU's kernels")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("documents", [False, True])
def test_kernels_of_a_gpu_are_as_near_to_the_truth_as_torchs(
    documents: bool, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    heads = [torch.randn(2, count, 300, 64, device="cuda", dtype=dtype) for count in (6, 2, 2, 6)]
    q, k, v = (x.requires_grad_() for x in heads[:3])
    numbers = (torch.rand(2, 300, device="cuda") < 0.03).cumsum(1)
    attention = FlexibleAttention(300, "cuda", False)

    def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        mask = attention.document_mask(numbers) if documents else None
        return attention(q, k, v, mask, mask is None)

    def theirs(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return fused_attention(
            q, k, v, document_mask(numbers) if documents else None, not documents
        )

    def run(attend: Callable[..., Tensor], dtype: torch.dtype) -> list[Tensor]:
        inputs = [x.detach().to(dtype).requires_grad_() for x in (q, k, v)]
        output = attend(*inputs)
        return [output, *torch.autograd.grad(output, inputs, heads[3].to(dtype))]

    exact = run(theirs, torch.float64)
    torch._dynamo.reset()
    flexible = torch.compile(ours, dynamic=False, fullgraph=True)
    for mine, other, truth in zip(run(flexible, dtype), run(theirs, dtype), exact, strict=True):
        error, allowed = ((x.double() - truth).norm() / truth.norm() for x in (mine, other))
        assert error < 3 * allowed + 1e-6
