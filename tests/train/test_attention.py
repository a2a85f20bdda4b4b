"""Attention in chunks, compiled or not, is that of torch's kernels, and so are its gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.transformer import Attend, DocumentMask, document_mask, fused_attention
from stages.train import attention, eager
from stages.train.attention import chunked_attention, chunks, document_starts
from stages.train.eager import document_bias, softmax_attention

Chunked = tuple[Attend, DocumentMask]
IN_CHUNKS: list[Chunked] = [
    (chunked_attention, document_starts),
    (softmax_attention, document_bias),
]
either = pytest.mark.parametrize("how", IN_CHUNKS, ids=["compiled", "eager"])


def make_inputs(
    batch: int, heads: int, kv_heads: int, length: int, width: int, dtype: torch.dtype, seed: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries, keys, values and a gradient of the output."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(batch, count, length, width) for count in (heads, kv_heads, kv_heads, heads)]
    q, k, v, grad = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    return q, k, v, grad


def random_documents(batch: int, length: int, seed: int) -> Tensor:
    """Documents of random lengths, other ones in each sequence, by their numbers."""
    generator = torch.Generator().manual_seed(seed)
    begins = torch.rand(batch, length, generator=generator) < 0.15
    return begins.cumsum(1)


def forward_and_backward(
    attend: Attend, inputs: tuple[Tensor, Tensor, Tensor, Tensor], mask: Tensor | None
) -> list[Tensor]:
    """Output and gradients of queries, keys and values."""
    q, k, v = (tensor.clone().requires_grad_() for tensor in inputs[:3])
    output = attend(q, k, v, mask, mask is None)
    return [output.detach(), *torch.autograd.grad(output, (q, k, v), inputs[3])]


def fused(inputs: tuple[Tensor, Tensor, Tensor, Tensor], documents: Tensor | None) -> list[Tensor]:
    """The same by torch's kernel."""
    mask = None if documents is None else document_mask(documents)
    return forward_and_backward(fused_attention, inputs, mask)


def chunked(
    how: Chunked, inputs: tuple[Tensor, Tensor, Tensor, Tensor], documents: Tensor | None
) -> list[Tensor]:
    """The same in chunks."""
    attend, mask_of = how
    mask = None if documents is None else mask_of(documents)
    return forward_and_backward(attend, inputs, mask)


HEADS = [(1, 1), (4, 4), (4, 2), (6, 2), (4, 1)]


@either
@settings(max_examples=60)
@given(
    batch=st.integers(1, 3),
    heads=st.sampled_from(HEADS),
    length=st.integers(1, 70),
    width=st.sampled_from([2, 8, 12, 64]),
    chunk=st.sampled_from([1, 5, 16]),
    masked=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_output_and_gradients_are_those_of_the_fused_kernel(
    how: Chunked,
    batch: int,
    heads: tuple[int, int],
    length: int,
    width: int,
    chunk: int,
    masked: bool,
    seed: int,
) -> None:
    inputs = make_inputs(batch, *heads, length, width, torch.float32, seed)
    documents = random_documents(batch, length, seed) if masked else None
    expected = fused(inputs, documents)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "LEAST_CHUNK", chunk)
        given_ = chunked(how, inputs, documents)
    for ours, theirs in zip(given_, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-5)


@either
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("length", [1, 127, 128, 129, 256, 300, 515])
def test_lengths_about_the_borders_of_real_chunks(how: Chunked, length: int, masked: bool) -> None:
    inputs = make_inputs(2, 4, 2, length, 16, torch.float32, length)
    documents = random_documents(2, length, 1) if masked else None
    expected = fused(inputs, documents)
    for ours, theirs in zip(chunked(how, inputs, documents), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-5)


@either
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("heads", HEADS)
def test_bfloat16_is_as_near_to_the_truth_as_the_fused_kernel(
    how: Chunked, heads: tuple[int, int], masked: bool
) -> None:
    inputs = make_inputs(2, *heads, 200, 32, torch.bfloat16, 3)
    q, k, v, grad = (tensor.float() for tensor in inputs)
    documents = random_documents(2, 200, 1) if masked else None
    exact = fused((q, k, v, grad), documents)
    ours = chunked(how, inputs, documents)
    theirs = fused(inputs, documents)
    for mine, other, truth in zip(ours, theirs, exact, strict=True):
        assert mine.dtype == torch.bfloat16
        error, allowed = ((one.float() - truth).norm() / truth.norm() for one in (mine, other))
        assert error < 0.02
        assert error < 2 * allowed + 1e-4


@either
def test_large_scores_in_float32_lose_no_more_than_in_the_fused_kernel(how: Chunked) -> None:
    q, k, v, grad = make_inputs(1, 2, 1, 40, 8, torch.float32, 0)
    inputs = (q * 100, k * 100, v, grad)
    doubles = (inputs[0].double(), inputs[1].double(), v.double(), grad.double())
    exact = fused(doubles, None)
    ours = chunked(how, inputs, None)
    theirs = fused(inputs, None)
    for mine, other, truth in zip(ours, theirs, exact, strict=True):
        error, allowed = ((one.double() - truth).norm() / truth.norm() for one in (mine, other))
        assert error < 3 * allowed + 1e-6


@given(st.integers(1, 10_000), st.sampled_from([attention.CHUNKS, eager.CHUNKS]))
def test_chunks_are_neighbours_and_few(length: int, most: int) -> None:
    bounds = chunks(length, most)
    assert [first for first, _ in bounds] == [0, *(last for _, last in bounds[:-1])]
    assert bounds[-1][1] == length
    assert len(bounds) <= most
    assert all(first < last for first, last in bounds)


def test_documents_are_known_by_where_they_begin() -> None:
    numbers = torch.tensor([[0, 0, 1, 1, 1, 2], [3, 4, 5, 5, 5, 5]])
    assert document_starts(numbers).tolist() == [[0, 0, 2, 2, 2, 5], [0, 1, 2, 2, 2, 2]]


@either
def test_what_it_cannot_do_is_refused(how: Chunked) -> None:
    attend, _ = how
    q, k, v, _ = make_inputs(1, 1, 1, 4, 2, torch.float32, 0)
    with pytest.raises(AssertionError):
        attend(q, k, v, None, False)
    with pytest.raises(AssertionError):
        attend(q[:, :, -1:], k, v, None, True)


def test_a_bias_hides_what_is_behind_a_query_and_in_other_documents() -> None:
    hidden = -float("inf")
    rows = [[0, hidden, hidden], [0, 0, hidden], [hidden, hidden, 0]]
    assert document_bias(torch.tensor([[4, 4, 7]])).tolist() == [[rows]]


def test_no_scores_are_kept_for_the_backward_pass() -> None:
    """A compiler that sees the same product in both passes keeps the first one's result."""
    torch._dynamo.reset()
    compiled = torch.compile(
        chunked_attention, backend="aot_eager_decomp_partition", fullgraph=True
    )
    for attend in (compiled, softmax_attention):
        q, k, v = (torch.rand(2, heads, 256, 16, requires_grad=True) for heads in (4, 2, 2))
        kept: list[int] = []

        def keep(tensor: Tensor, kept: list[int] = kept) -> Tensor:
            kept.append(tensor.nbytes)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            output = attend(q, k, v, None, True)
        output.sum().backward()
        assert kept
        assert max(kept) <= q.nbytes  # a chunk's scores are four times as much, or more
    torch._dynamo.reset()
