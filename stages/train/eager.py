"""What training on a CPU computes in ways of its own where it isn't compiled.

torch's attention for CPUs reaches a fifth of what its matrix products alone reach, and its RMSNorm
is six operations, each with a gradient. Forward and backward in bfloat16, documents kept apart, two
Zen 5 cores, medians: attention of a layer, batch x heads/kv x length, 16 x 2/1 x 256 took 9.5 ms
instead of 16.7, 4 x 12/4 x 512 took 39 instead of 79, 6 x 12/4 x 2048 took 884 instead of 2,001;
RMSNorm of 4,096 x 128 took 1.6 ms instead of 2.4. A step of the default run takes 0.86 of its time.
In float32 attention of 256 places gains nothing (of 2,048 a quarter), and is left to torch.
"""

from typing import Any

import torch
from torch import Tensor

from model.transformer import RMSNorm, Transformer
from stages.train.attention import chunks

CHUNKS = 64
Context = Any  # of torch.autograd.Function


def train_eagerly(model: Transformer, dtype: torch.dtype) -> None:
    """Has ``model`` on a CPU, whose activations have ``dtype``, compute as this module does."""
    if dtype == torch.bfloat16:
        model.attend_by(softmax_attention, document_bias)
    for module in model.modules():
        if isinstance(module, RMSNorm):
            module.normalise = rms_norm


def document_bias(documents: Tensor) -> Tensor:
    """What ``softmax_attention`` takes as mask, of numbers of documents (batch, length).

    Bfloat16, (batch, 1, length, length): what is added to scores, 0 for the keys of a query's own
    document up to its own place, -inf for all others.
    """
    seen = (documents.unsqueeze(-1) == documents.unsqueeze(-2)).tril().unsqueeze(1)
    return torch.zeros_like(seen, dtype=torch.bfloat16).masked_fill_(~seen, float("-inf"))


class _SoftmaxAttention(torch.autograd.Function):
    """Queries in chunks that see no key behind them; their scores are made, used and dropped, and
    made again for the gradients (Dao et al. 2022). Softmax and its gradient are one kernel each,
    which read and write bfloat16 and compute in float32; the scores themselves are bfloat16."""

    @staticmethod
    def forward(ctx: Context, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        batch, heads, length, width = q.shape
        groups, shared = batch * k.shape[1], heads // k.shape[1]
        q = (q * width**-0.5).reshape(groups, shared, length, width)
        k, v = k.reshape(groups, length, width), v.reshape(groups, length, width)
        output = torch.empty_like(q)
        for first, last in chunks(length, CHUNKS):
            softmax = _softmax(q, k, bias, first, last)
            output[:, :, first:last] = _by_head(torch.bmm(softmax, v[:, :last]), shared)
        ctx.save_for_backward(q, k, v, bias)
        return output.view(batch, heads, length, width)

    @staticmethod
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, bias = ctx.saved_tensors
        (grad,) = grads
        batch, (_, shared, length, width) = grad.shape[0], q.shape
        grad = grad.reshape(q.shape)
        q_grad = torch.empty_like(q)
        k_grad = torch.zeros(k.shape, dtype=torch.float32)
        v_grad = torch.zeros(v.shape, dtype=torch.float32)
        for first, last in chunks(length, CHUNKS):
            softmax = _softmax(q, k, bias, first, last)
            part, part_grad = _rows(q, first, last), _rows(grad, first, last)
            softmax_grad = torch.bmm(part_grad, v[:, :last].transpose(1, 2))
            scores_grad = torch._softmax_backward_data(softmax_grad, softmax, -1, softmax.dtype)
            q_grad[:, :, first:last] = _by_head(torch.bmm(scores_grad, k[:, :last]), shared)
            k_grad[:, :last] += torch.bmm(scores_grad.transpose(1, 2), part)
            v_grad[:, :last] += torch.bmm(softmax.transpose(1, 2), part_grad)
        shape = (batch, -1, length, width)
        return (
            q_grad.mul_(width**-0.5).view(shape),
            k_grad.to(k.dtype).view(shape),
            v_grad.to(v.dtype).view(shape),
            None,
        )


def _softmax(q: Tensor, k: Tensor, bias: Tensor | None, first: int, last: int) -> Tensor:
    """Of the scaled queries ``first`` to ``last``: (groups, heads x queries, ``last`` keys)."""
    scores = torch.bmm(_rows(q, first, last), k[:, :last].transpose(1, 2))
    if bias is None:
        count = last - first
        behind = scores.new_full((count, count), float("-inf")).triu_(1)
        scores.view(-1, count, last)[:, :, first:].add_(behind)
    else:
        shape = (len(bias), -1, last - first, last)  # groups of a sequence and their heads alike
        scores.view(shape).add_(bias[:, :, first:last, :last])
    return torch.softmax(scores, -1)


def _rows(x: Tensor, first: int, last: int) -> Tensor:
    """Places ``first`` to ``last`` of all heads of a group, one below the other."""
    return x[:, :, first:last].flatten(1, 2)


def _by_head(rows: Tensor, shared: int) -> Tensor:
    return rows.unflatten(1, (shared, -1))


def softmax_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """As ``model.transformer.fused_attention``, causal, for as many keys as queries.

    ``mask`` is ``document_bias``.
    """
    assert causal or mask is not None
    assert q.shape[2] == k.shape[2]
    output: Tensor = _SoftmaxAttention.apply(q, k, v, mask)
    return output


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Context, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        output = _copy(x)
        norms = torch.linalg.vector_norm(output, dim=-1, keepdim=True)
        scale = norms.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return output.mul_(scale).mul_(weight.float()).to(x.dtype)

    @staticmethod
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, scale = ctx.saved_tensors
        (grad,) = grads
        x_grad, normalised = _copy(grad), _copy(x).mul_(scale)
        weight_grad = (x_grad * normalised).flatten(0, -2).sum(0)
        x_grad.mul_(weight.float())
        along = (x_grad * normalised).mean(-1, keepdim=True)
        x_grad.sub_(normalised.mul_(along)).mul_(scale)
        return x_grad.to(x.dtype), weight_grad.to(weight.dtype), None


def _copy(x: Tensor) -> Tensor:
    """In float32, to be changed in place: what takes two dtypes at once is not vectorised, and
    each tensor more must come from memory."""
    return x.to(torch.float32, copy=True)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``x`` (…, width) by its root mean square, times ``weight`` (width); computed in float32."""
    output: Tensor = _RMSNorm.apply(x, weight.to(x.dtype), eps)
    return output
