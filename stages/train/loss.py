"""The training loss: head and cross-entropy together, a piece of the batch at a time.

The logits of a whole batch are its largest tensor by far (tokens x vocabulary), and the usual
cross-entropy holds three of that size. Here a piece's logits are turned into the gradients of its
hidden states and the head's matrix at once, and dropped, as in Liger Kernel (Hsu et al. 2024): no
logit is computed twice, and the pieces stay in the processor's cache.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from model.transformer import Transformer
from stages.scoring import IGNORED, token_nats

# On a CPU a piece stays in the caches (16 MiB in float32); a GPU must have enough to do at once.
LOGITS_PER_PIECE = {"cpu": 2**22, "cuda": 2**27}
# A piece has at least this many tokens, so that its products are worth their overhead.
TOKENS_PER_PIECE = 512

# (hidden, head, labels, gradient of head) -> nats, gradient of hidden
PieceLoss = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def piece_loss(
    hidden: Tensor, head: Tensor, labels: Tensor, head_grad: Tensor
) -> tuple[Tensor, Tensor]:
    """Nats of a piece and the gradient of its hidden states; that of the head is added up.

    ``hidden`` is (tokens, d_model), ``head`` and ``head_grad`` (float32) are (vocab_size, d_model).
    """
    counted = (labels != IGNORED).unsqueeze(1)
    index = labels.clamp(min=0).unsqueeze(1)
    logits = (hidden @ head.T).float()
    picked = logits.gather(1, index)
    largest = logits.amax(1, keepdim=True)
    exponentials = logits.sub_(largest).exp_()
    total = exponentials.sum(1, keepdim=True)
    nats = ((total.log() + largest - picked) * counted).sum()
    # d loss / d logits = softmax - one_hot
    grad = exponentials.mul_(counted / total)
    if torch.compiler.is_compiling():  # joins the kernel that exponentiates; alone, it is slower
        one_hot = torch.arange(logits.shape[1], device=index.device) == index
        grad = torch.where(one_hot, grad - counted, grad)
    else:
        grad.scatter_add_(1, index, -counted.to(grad.dtype))
    grad = grad.to(hidden.dtype)
    head_grad += grad.T @ hidden
    return nats, grad @ head


def _rows_per_piece(tokens: int, vocab_size: int, device: str) -> int:
    """Tokens of a piece: all pieces have as many if they can, so that one compilation serves."""
    logits = LOGITS_PER_PIECE.get(device, LOGITS_PER_PIECE["cpu"])
    most = max(TOKENS_PER_PIECE, logits // vocab_size)
    fewest = -(-tokens // most)
    for pieces in range(fewest, 2 * fewest + 1):
        if tokens % pieces == 0:
            return tokens // pieces
    return -(-tokens // fewest)


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        piece: PieceLoss,
    ) -> Tensor:
        tokens, vocab_size = len(hidden), len(weight)
        rows = _rows_per_piece(tokens, vocab_size, hidden.device.type)
        head = weight.to(hidden.dtype)
        hidden_grad = torch.empty_like(hidden)
        weight_grad = torch.zeros_like(weight, dtype=torch.float32)
        nats = torch.zeros((), dtype=torch.float32, device=hidden.device)
        for start in range(0, tokens, rows):
            part = slice(start, start + rows)
            piece_nats, hidden_grad[part] = piece(hidden[part], head, labels[part], weight_grad)
            nats += piece_nats
        ctx.save_for_backward(hidden_grad, weight_grad)
        ctx.dtype = weight.dtype
        return nats

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        hidden_grad, weight_grad = ctx.saved_tensors
        (scale,) = grads
        return hidden_grad.mul_(scale), weight_grad.mul_(scale).to(ctx.dtype), None, None


def head_loss(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    piece: PieceLoss = piece_loss,
) -> Tensor:
    """Sum of the cross-entropy in nats of ``hidden @ weight.T`` against ``labels``.

    ``hidden`` is (…, d_model), ``weight`` (vocab_size, d_model), ``labels`` (…) with IGNORED where
    nothing is to be learnt. Products run in the dtype of ``hidden``, the softmax in float32.
    Differentiable once in ``hidden`` and ``weight``. ``piece`` does the work (``piece_loss``, or
    the same compiled).
    """
    loss: Tensor = _HeadLoss.apply(hidden.flatten(0, -2), weight, labels.flatten(), piece)
    return loss


class TrainingLoss(nn.Module):
    """The network and its loss as one module, as DDP and FSDP want it."""

    def __init__(self, model: Transformer, dtype: torch.dtype) -> None:
        """``dtype`` is that of activations and products."""
        super().__init__()
        self.model, self.dtype = model, dtype
        self.features: Callable[..., Tensor] = model.features
        self.piece: PieceLoss = piece_loss

    def forward(
        self, inputs: Tensor, labels: Tensor, documents: Tensor | None, per_token: bool = False
    ) -> Tensor:
        """The summed nats of a batch; with ``per_token`` those of each label, for validation."""
        if per_token:
            return token_nats(self.model, inputs, labels, documents, self.dtype)
        hidden = self.features(inputs, None, documents, self.dtype)
        return head_loss(hidden, self.model.head.weight, labels, self.piece)
