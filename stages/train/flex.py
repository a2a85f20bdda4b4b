"""Attention for compiled training on a GPU: FlexAttention (Dong et al. 2024).

torch's own kernels for GPUs repeat their gradients only in a slow way, and take a mask slowly too:
it is read whole by each head of each layer, and what it hides is computed all the same. Here blocks
of 128 x 128 that hold nothing a query may see are left out, inside the others the documents are
compared, and results repeat as they are. Forward and backward of a layer on an H100, bfloat16,
batch x heads/kv x length 32 x 12/4 x 1024, the others told to repeat (medians of 12): causal 1.05
ms, torch's 1.51; within documents 0.96, torch's 4.24.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from model.transformer import document_mask, fused_attention

LEAST_HEAD = 16  # the narrowest that its kernels multiply


def serves(head_dim: int) -> bool:
    """Whether FlexAttention has kernels for heads of this width."""
    return head_dim >= LEAST_HEAD


class FlexibleAttention:
    """As ``model.transformer.fused_attention`` (and that itself where no gradient is wanted).

    To be compiled with the blocks of a network whose sequences are ``length`` long.
    """

    def __init__(self, length: int, device: torch.device | str, by_block: bool) -> None:
        """``by_block``: each block is compiled by itself, and what makes the masks is not."""
        self.causal = create_block_mask(_causal, None, None, length, length, device=str(device))
        self.create: Callable[..., BlockMask] = create_block_mask
        if by_block:
            self.create = torch.compile(create_block_mask, dynamic=False)

    def document_mask(self, documents: Tensor) -> BlockMask | Tensor:
        """What a call takes as mask, of numbers of documents (batch, length)."""
        if not torch.is_grad_enabled():
            return document_mask(documents)
        numbers = documents.to(torch.int32)
        batch, length = numbers.shape

        def seen(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return (query >= key) & (numbers[row, query] == numbers[row, key])

        return self.create(seen, batch, None, length, length, device=numbers.device)

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, mask: BlockMask | Tensor | None, causal: bool
    ) -> Tensor:
        blocks = self.causal if causal and torch.is_grad_enabled() else mask
        if not isinstance(blocks, BlockMask):
            return fused_attention(q, k, v, blocks, causal)
        output = flex_attention(q, k, v, block_mask=blocks, enable_gqa=q.shape[1] != k.shape[1])
        assert isinstance(output, Tensor)
        return output


def _causal(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return query >= key
