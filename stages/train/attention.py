"""Causal attention for compiled training on a CPU: products of whole matrices, softmax between.

torch's fused kernel for CPUs reaches a fifth of what the matrix products alone reach. Here the
queries are cut into chunks that see no key behind them (so that half of the products are left
out), scores of a chunk are made, used and dropped as in FlashAttention (Dao et al. 2022), and
torch.compile fuses all between two products. Forward and backward of a layer, bfloat16, two Zen 5
cores, batch x heads/kv x length: 4 x 12/4 x 512 took 17 ms instead of 54, 32 x 2/1 x 256 took 7.7
instead of 24 (medians of 10). Without compilation eager.py has another.
"""

from typing import Any

import torch
from torch import Tensor

LEAST_CHUNK, CHUNKS = 128, 4


def chunks(length: int, most: int) -> list[tuple[int, int]]:
    """Bounds of the chunks of queries, at most ``most``.

    Smaller ones than LEAST_CHUNK make small products; the larger, the more scores are held, and
    computed although they are hidden.
    """
    size = max(LEAST_CHUNK, -(-length // most))
    return [(first, min(first + size, length)) for first in range(0, length, size)]


def document_starts(documents: Tensor) -> Tensor:
    """Where the document of each token begins, int32, from its number; both (batch, length).

    Numbers must not fall within a sequence. Beside a mask of every query and key, nothing to read.
    """
    return torch.searchsorted(documents, documents, out_int32=True)


def _scores(q: Tensor, k: Tensor, starts: Tensor | None, first: int, count: int) -> Tensor:
    """Scaled scores in float32, (groups, queries, keys); -inf where a query must not look.

    ``q`` holds, for each group, ``count`` queries of each of its heads, from position ``first`` on;
    ``k`` the keys up to the last of them.
    """
    scores = torch.bmm(q, k.transpose(1, 2)).float() * q.shape[-1] ** -0.5
    return torch.where(_allowed(q, k, starts, first, count), scores, float("-inf"))


def _scores_by_key(q: Tensor, k: Tensor, starts: Tensor | None, first: int, count: int) -> Tensor:
    """The same as (groups, keys, queries).

    The backward pass wants them so. Besides, a compiler that saw the forward pass's product again
    would keep it in memory from there.
    """
    scores = torch.bmm(k, q.transpose(1, 2)).float() * q.shape[-1] ** -0.5
    allowed = _allowed(q, k, starts, first, count).transpose(1, 2)
    return torch.where(allowed, scores, float("-inf"))


def _allowed(q: Tensor, k: Tensor, starts: Tensor | None, first: int, count: int) -> Tensor:
    """Which keys each query of ``_scores`` may look at: (groups or 1, queries, keys)."""
    query = torch.arange(first, first + count, device=q.device, dtype=torch.int32).unsqueeze(1)
    key = torch.arange(k.shape[1], device=q.device, dtype=torch.int32)
    allowed = (key <= query).unsqueeze(0)
    groups, heads = 1, q.shape[1] // count
    if starts is not None:
        allowed = allowed & (key >= starts[:, first : first + count].unsqueeze(2))
        groups = q.shape[0] // starts.shape[0]
    # Alike for the groups of a sequence and the heads of a group.
    return allowed[:, None, None].expand(-1, groups, heads, -1, -1).flatten(0, 1).flatten(1, 2)


class _ChunkedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None) -> Tensor:
        batch, heads, length, width = q.shape
        groups, shared = batch * k.shape[1], heads // k.shape[1]
        q = q.reshape(groups, shared, length, width)
        k, v = k.reshape(groups, length, width), v.reshape(groups, length, width)
        outputs, sums = [], []
        for first, last in chunks(length, CHUNKS):
            count = last - first
            part = q[:, :, first:last].reshape(groups, shared * count, width)
            scores = _scores(part, k[:, :last], starts, first, count)
            largest = scores.amax(-1, keepdim=True)
            exponentials = (scores - largest).exp()
            total = exponentials.sum(-1, keepdim=True)
            output = torch.bmm(exponentials.to(q.dtype), v[:, :last]).float() / total
            outputs.append(output.to(q.dtype).view(groups, shared, count, width))
            sums.append((largest + total.log()).view(groups, shared, count, 1))
        output, log_sums = torch.cat(outputs, 2), torch.cat(sums, 2)
        ctx.save_for_backward(q, k, v, starts, output, log_sums)
        return output.view(batch, heads, length, width)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, starts, output, log_sums = ctx.saved_tensors
        (grad,) = grads
        batch, (groups, shared, length, width) = grad.shape[0], q.shape
        grad = grad.reshape(q.shape)
        # Row sums of softmax x its gradient, by way of the output.
        row_sums = (grad.float() * output.float()).sum(-1, keepdim=True)
        q_grads = []
        k_grad = torch.zeros(k.shape, dtype=torch.float32, device=k.device)
        v_grad = torch.zeros_like(k_grad)
        for first, last in chunks(length, CHUNKS):
            count = last - first
            rows = (groups, shared * count, -1)
            part, part_grad, part_log_sums, part_row_sums = (
                tensor[:, :, first:last].reshape(rows) for tensor in (q, grad, log_sums, row_sums)
            )
            scores = _scores_by_key(part, k[:, :last], starts, first, count)
            softmax = (scores - part_log_sums.transpose(1, 2)).exp()
            softmax_grad = torch.bmm(v[:, :last], part_grad.transpose(1, 2)).float()
            scores_grad = softmax * (softmax_grad - part_row_sums.transpose(1, 2)) * width**-0.5
            scores_grad, softmax = scores_grad.to(q.dtype), softmax.to(q.dtype)
            v_grad[:, :last] += torch.bmm(softmax, part_grad)
            k_grad[:, :last] += torch.bmm(scores_grad, part)
            q_grad = torch.bmm(scores_grad.transpose(1, 2), k[:, :last])
            q_grads.append(q_grad.view(groups, shared, count, width))
        shape = (batch, -1, length, width)
        return (
            torch.cat(q_grads, 2).view(shape),
            k_grad.to(k.dtype).view(shape),
            v_grad.to(v.dtype).view(shape),
            None,
        )


def chunked_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """As ``model.transformer.fused_attention``, causal, for as many keys as queries.

    ``mask`` is ``document_starts``. Memory is that of a quarter of the scores.
    """
    assert causal or mask is not None
    assert q.shape[2] == k.shape[2]
    output: Tensor = _ChunkedAttention.apply(q, k, v, mask)
    return output
