"""The one pass of the model over the validation set, and what it tells of every token.

``stages.scoring`` cuts the stream into windows and adds up the loss; here each token is looked at
on the way: what it cost, how sure the model was, and where in its conversation it stands. A block
of tokens is handed to every watcher and then forgotten, so memory doesn't grow with the split.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from model.transformer import Transformer
from stages.corpus import Ids, TokenStream
from stages.scoring import IGNORED, Score, score

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Block:
    """Neighbouring tokens of the stream in its order; all arrays are of shape (tokens,)."""

    tokens: Ids
    predicted: Flags  # all but <|bos|>, which is given
    nats: Floats  # cross-entropy of the token; 0 where it is not predicted
    confidence: Floats  # the probability of the token that the model held most probable
    rank: Ids  # 1: no token was more probable
    context: Ids  # how many tokens the model saw before this one
    document: Ids  # which conversation, from 0
    turn: Ids  # which message of it, from 1 (its role token included); 0: <|bos|>
    role: Ids  # the role token of that message; <|bos|> before the first
    is_role: Flags


class Watcher(Protocol):
    """What gathers a measure from the blocks, which come one after another."""

    def see(self, block: Block) -> None: ...


class _Places:
    """Where tokens stand: conversation, message and role, carried from block to block.

    A stream's first token is ``<|bos|>`` and never predicted: the first block begins behind it.
    """

    def __init__(self, stream: TokenStream) -> None:
        self._roles = stream.roles
        self._document, self._turn, self._role = 0, 0, stream.roles.bos

    def of(self, tokens: Ids) -> tuple[Ids, Ids, Ids, Flags]:
        """Document, turn, role and is_role of the next ``tokens``."""
        is_bos = tokens == self._roles.bos
        is_role = np.isin(tokens, self._roles.all_roles)
        document = self._document + np.cumsum(is_bos)
        turns = self._turn + np.cumsum(is_role)
        # What the count had reached when the conversation began; it never falls.
        before = np.maximum.accumulate(np.where(is_bos, turns, 0))
        turn = turns - before
        marks = np.where(is_role | is_bos, np.arange(1, len(tokens) + 1), 0)
        latest = np.maximum.accumulate(marks)
        role = np.where(latest > 0, tokens[latest - 1], self._role)
        if len(tokens):
            self._document, self._turn = int(document[-1]), int(turn[-1])
            self._role = int(role[-1])
        return document, turn, role, is_role


def trace(model: Transformer, stream: TokenStream, watchers: Sequence[Watcher]) -> Score:
    """Scores the stream as training's validation does, and shows each token to the watchers."""
    places, last, seen = _Places(stream), len(stream) - 1, 0

    def look(inputs: Tensor, labels: Tensor, documents: Tensor | None) -> Tensor:
        nonlocal seen
        logits = model(inputs, documents=documents).float()
        nats = F.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none"
        ).view(labels.shape)
        count = min(labels.numel(), last - seen)
        tokens = stream.read(seen + 1, seen + 1 + count)
        own = logits.gather(-1, labels.clamp(min=0).unsqueeze(-1))
        # Log-probabilities are logits less this; the loss is that of the token itself.
        normaliser = nats + own.squeeze(-1)
        confidence = (logits.amax(-1) - normaliser).exp()
        rank = 1 + (logits > own).sum(-1)

        def flat(values: Tensor) -> Tensor:
            return values.flatten()[:count].cpu()

        document, turn, role, is_role = places.of(tokens)
        block = Block(
            tokens=tokens,
            predicted=tokens != stream.roles.bos,
            nats=flat(nats).double().numpy(),
            confidence=flat(confidence).double().numpy(),
            rank=flat(rank).numpy(),
            context=_context(inputs, documents)[:count],
            document=document,
            turn=turn,
            role=role,
            is_role=is_role,
        )
        seen += count
        for watcher in watchers:
            watcher.see(block)
        return nats

    return score(model, stream, nats_of=look)


def _context(inputs: Tensor, documents: Tensor | None) -> Ids:
    """Tokens that the model saw before each label: its own conversation's alone with a mask."""
    rows, length = inputs.shape
    places = np.broadcast_to(np.arange(length), (rows, length))
    if documents is None:
        return (places + 1).reshape(-1)
    numbers = documents.cpu().numpy()
    begins = np.diff(numbers, axis=1, prepend=-1) != 0
    start = np.maximum.accumulate(np.where(begins, places, 0), axis=1)
    return (places - start + 1).reshape(-1)


class Sums:
    """Nats, tokens and bytes by group, in memory for the groups alone."""

    def __init__(self, groups: int, sizes: Ids) -> None:
        """``sizes`` are the bytes of each token id's text."""
        self.nats = np.zeros(groups)
        self.tokens = np.zeros(groups, np.int64)
        self.bytes = np.zeros(groups, np.int64)
        self._sizes = sizes

    def add(self, group: Ids, block: Block) -> None:
        """Adds the predicted tokens of ``block``, each to its ``group``."""
        keep = block.predicted
        number, group = len(self.nats), group[keep]
        self.nats += np.bincount(group, block.nats[keep], number)
        self.tokens += np.bincount(group, minlength=number)
        sizes = np.bincount(group, self._sizes[block.tokens[keep]], number)
        self.bytes += sizes.round().astype(np.int64)
