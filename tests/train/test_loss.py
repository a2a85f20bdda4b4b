"""The head's loss in pieces is the cross-entropy that torch computes, and so are its gradients."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from stages.scoring import IGNORED
from stages.train import loss
from stages.train.data_order import Batch
from stages.train.loss import TrainingLoss, head_loss
from tests.builders import STREAM_VOCAB, tiny_model

ROWS, VOCAB, WIDTH = 13, 11, 5


def make_inputs(ignored: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(ROWS, WIDTH, generator=generator)
    weight = torch.randn(VOCAB, WIDTH, generator=generator)
    labels = torch.randint(0, VOCAB, (ROWS,), generator=generator)
    labels[ignored] = IGNORED
    return hidden, weight, labels


def reference(
    hidden: Tensor, weight: Tensor, labels: Tensor, scale: float
) -> tuple[float, Tensor, Tensor]:
    """torch's cross-entropy in float64: sum, and the gradients of ``scale`` times it."""
    hidden, weight = (t.detach().double().requires_grad_() for t in (hidden, weight))
    nats = F.cross_entropy(hidden @ weight.T, labels, ignore_index=IGNORED, reduction="sum")
    (nats * scale).backward()
    assert hidden.grad is not None
    assert weight.grad is not None
    return float(nats.detach()), hidden.grad, weight.grad


@pytest.mark.parametrize("rows_per_piece", [1, 4, ROWS - 1, ROWS, 10 * ROWS])
@pytest.mark.parametrize(
    "ignored", [[], [0, 5, 12], [0, 1, 2, 3], list(range(1, ROWS)), list(range(ROWS))]
)
@pytest.mark.parametrize("scale", [1.0, 0.37, 1024.0])
def test_loss_and_gradients_are_those_of_cross_entropy(
    monkeypatch: pytest.MonkeyPatch, rows_per_piece: int, ignored: list[int], scale: float
) -> None:
    monkeypatch.setattr(loss, "LOGITS_PER_PIECE", {"cpu": rows_per_piece * VOCAB})
    monkeypatch.setattr(loss, "TOKENS_PER_PIECE", 1)
    hidden, weight, labels = make_inputs(ignored)
    expected, hidden_grad, weight_grad = reference(hidden, weight, labels, scale)
    hidden.requires_grad_()
    weight.requires_grad_()
    nats = head_loss(hidden, weight, labels)
    (nats * scale).backward()
    assert nats.item() == pytest.approx(expected, rel=1e-6, abs=1e-9)
    torch.testing.assert_close(hidden.grad, hidden_grad.float(), rtol=1e-5, atol=2e-6 * scale)
    torch.testing.assert_close(weight.grad, weight_grad.float(), rtol=1e-5, atol=2e-6 * scale)
    assert hidden.grad is not None
    assert not hidden.grad[ignored].any()


def test_a_piece_is_at_least_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "LOGITS_PER_PIECE", {"cpu": 1})
    monkeypatch.setattr(loss, "TOKENS_PER_PIECE", 1)
    hidden, weight, labels = make_inputs([2])
    expected, _, _ = reference(hidden, weight, labels, 1.0)
    assert head_loss(hidden, weight, labels).item() == pytest.approx(expected)


def test_leading_dimensions_are_rows() -> None:
    hidden, weight, labels = make_inputs([3])
    flat = head_loss(hidden[:12], weight, labels[:12])
    folded = head_loss(hidden[:12].view(3, 4, WIDTH), weight, labels[:12].view(3, 4))
    assert flat.item() == folded.item()


def test_large_logits_neither_overflow_nor_lose_the_loss() -> None:
    hidden, weight, labels = make_inputs([])
    expected, hidden_grad, _ = reference(hidden * 1e4, weight, labels, 1.0)
    big = (hidden * 1e4).requires_grad_()
    nats = head_loss(big, weight, labels)
    nats.backward()
    assert nats.item() == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(big.grad, hidden_grad.float(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_products_keep_a_float32_loss_and_the_inputs_dtypes(
    dtype: torch.dtype,
) -> None:
    hidden, weight, labels = make_inputs([1])
    expected, hidden_grad, weight_grad = reference(hidden, weight, labels, 1.0)
    hidden.requires_grad_()
    weight.requires_grad_()
    nats = head_loss(hidden.to(dtype), weight, labels)
    nats.backward()
    assert nats.dtype == torch.float32
    assert nats.item() == pytest.approx(expected, rel=0.02)
    for tensor, exact in ((hidden, hidden_grad), (weight, weight_grad)):
        assert tensor.grad is not None
        assert tensor.grad.dtype == torch.float32
        torch.testing.assert_close(tensor.grad, exact.float(), rtol=0.05, atol=0.05)


def test_what_is_not_finite_is_not_hidden() -> None:
    hidden, weight, labels = make_inputs([])
    hidden[3, 2] = torch.nan
    assert torch.isnan(head_loss(hidden, weight, labels))


def pieces_of(tokens: int, vocab: int) -> list[int]:
    """The sizes of the pieces that the loss of so many tokens is made of."""
    sizes: list[int] = []

    def piece(hidden: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
        sizes.append(len(hidden))
        return hidden.new_zeros(()), torch.zeros_like(hidden)

    weight = torch.zeros(vocab, 2)
    head_loss(torch.zeros(tokens, 2), weight, torch.zeros(tokens, dtype=torch.int64), piece)
    return sizes


@pytest.mark.parametrize("tokens", [1, 511, 1000, 2048, 12_288])
@pytest.mark.parametrize("vocab", [300, 4096, 32_000])
def test_pieces_cover_the_tokens_and_keep_their_limits(tokens: int, vocab: int) -> None:
    sizes = pieces_of(tokens, vocab)
    assert sum(sizes) == tokens
    assert max(sizes) <= max(loss.TOKENS_PER_PIECE, loss.LOGITS_PER_PIECE["cpu"] // vocab)


@pytest.mark.parametrize(
    ("tokens", "vocab"),
    [
        (2048, 4096),
        (8192, 4096),
        (12_288, 32_000),
        (2048, 5000),
    ],
)
def test_pieces_have_one_size_so_that_one_compilation_serves_all(tokens: int, vocab: int) -> None:
    sizes = pieces_of(tokens, vocab)
    assert len(sizes) > 1
    assert len(set(sizes)) == 1


class Largest(TorchDispatchMode):
    """Notes the number of elements of the largest tensor that is made while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(  # type: ignore[override]
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_logits_of_a_batch_are_never_whole_in_memory(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    tokens, vocab, width, rows = 256, 128, 8, 32
    monkeypatch.setattr(loss, "TOKENS_PER_PIECE", 1)
    monkeypatch.setattr(loss, "LOGITS_PER_PIECE", {"cpu": rows * vocab})
    hidden = torch.randn(tokens, width).requires_grad_()
    weight = torch.randn(vocab, width).requires_grad_()
    labels = torch.randint(0, vocab, (tokens,))
    with Largest() as largest:
        head_loss(hidden.to(dtype), weight, labels).backward()
    assert largest.elements == rows * vocab
    with Largest() as whole:
        F.cross_entropy(hidden @ weight.T, labels).backward()
    assert whole.elements == tokens * vocab  # the measure sees what it is to see


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("document_mask", [False, True])
def test_the_network_and_its_loss_in_one_are_the_networks_cross_entropy(
    per_token: bool, document_mask: bool
) -> None:
    model = tiny_model()
    generator = torch.Generator().manual_seed(2)
    inputs = torch.randint(0, STREAM_VOCAB, (3, 16), generator=generator)
    labels = torch.randint(0, STREAM_VOCAB, (3, 16), generator=generator)
    labels[1, :7] = IGNORED
    documents = torch.arange(16).div(5, rounding_mode="floor").expand(3, 16)
    batch = Batch(inputs, labels, documents if document_mask else None, 0)
    network = TrainingLoss(model, torch.float32)
    logits = model(inputs, documents=batch.documents)
    expected = F.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none"
    )
    if per_token:
        nats = network(inputs, labels, batch.documents, per_token=True)
        torch.testing.assert_close(nats, expected.view(3, 16))
    else:
        nats = network(inputs, labels, batch.documents)
        torch.testing.assert_close(nats, expected.sum())
