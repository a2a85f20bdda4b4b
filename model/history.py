"""Fitting a conversation that has grown into the model's ``seq_len``."""

from collections.abc import Mapping, Sequence
from typing import Any

from model.tokenizer import ChatTokenizer

Messages = Sequence[Mapping[str, Any]]


def room_for_reply(seq_len: int, max_new_tokens: int) -> int:
    """Tokens kept free for a reply: what it may take, but at most a quarter of ``seq_len``."""
    return max(1, min(max_new_tokens, seq_len // 4))


def fit_chat(
    tokenizer: ChatTokenizer, messages: Messages, seq_len: int, max_new_tokens: int
) -> tuple[list[int], int]:
    """Ids of a conversation, ready for a reply, and how many of its messages were left out.

    System messages at the beginning stay. Of the others the oldest go, turn by turn (a user's
    message and what follows it up to the user's next), until ``room_for_reply`` is free. The last
    turn is kept whole, even where it leaves less room.

    Raises ValueError as ``encode_chat``, and when system messages and last turn leave no room.
    """
    head = next((i for i, m in enumerate(messages) if m.get("role") != "system"), len(messages))
    turns = _turns(messages, head)
    limit = seq_len - room_for_reply(seq_len, max_new_tokens)
    # From the newest turn back: what is too old is never encoded.
    first = turns[-1] if turns else len(messages)
    ids = tokenizer.encode_chat([*messages[:head], *messages[first:]], add_generation_prompt=True)
    if len(ids) >= seq_len:
        raise ValueError(
            f"the last message and the system prompt have {len(ids):,} tokens: "
            f"no room for a reply in the model's {seq_len:,}"
        )
    size = len(ids)
    for start in reversed(turns[:-1]):
        # The beginning-of-text token is counted once, with the last turn.
        size += len(tokenizer.encode_chat(messages[start:first])) - 1
        if size > limit:
            break
        first = start
    kept = [*messages[:head], *messages[first:]]
    return tokenizer.encode_chat(kept, add_generation_prompt=True), first - head


def _turns(messages: Messages, head: int) -> list[int]:
    """Where turns begin: at ``head``, and at each of the user's messages after another's."""
    return [
        place
        for place in range(head, len(messages))
        if place == head
        or (messages[place].get("role") == "user" and messages[place - 1].get("role") != "user")
    ]
