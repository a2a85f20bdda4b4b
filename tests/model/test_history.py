"""A conversation that outgrows seq_len loses its oldest turns, and nothing else."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.history import fit_chat, room_for_reply
from model.tokenizer import ChatTokenizer

ROLES = st.sampled_from(["system", "user", "assistant"])
CHATS = st.lists(
    st.builds(
        lambda role, length: {"role": role, "content": "a dog " * length},
        ROLES,
        st.integers(0, 12),
    ),
    min_size=1,
    max_size=8,
)


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def test_what_fits_is_whole(tokenizer: ChatTokenizer) -> None:
    chat = [message("user", "hello"), message("assistant", "hi"), message("user", "how are you?")]
    ids, dropped = fit_chat(tokenizer, chat, 1_000, 100)
    assert ids == tokenizer.encode_chat(chat, add_generation_prompt=True)
    assert dropped == 0


def test_the_oldest_turn_goes_with_its_reply(tokenizer: ChatTokenizer) -> None:
    chat = [
        message("system", "be brief"),
        message("user", "one " * 10),
        message("assistant", "first"),
        message("user", "two " * 10),
        message("assistant", "second"),
        message("user", "three"),
    ]
    whole = len(tokenizer.encode_chat(chat, add_generation_prompt=True))
    ids, dropped = fit_chat(tokenizer, chat, whole + 3, 4)
    assert dropped == 2
    assert ids == tokenizer.encode_chat([chat[0], *chat[3:]], add_generation_prompt=True)


def test_a_quarter_is_kept_for_the_reply() -> None:
    assert room_for_reply(256, 1_000) == 64
    assert room_for_reply(256, 10) == 10
    assert room_for_reply(256, 0) == 1


def test_a_long_last_message_takes_of_the_reply_s_room(tokenizer: ChatTokenizer) -> None:
    chat = [message("user", "before"), message("user", "x" * 50)]
    alone = len(tokenizer.encode_chat(chat, add_generation_prompt=True))
    ids, dropped = fit_chat(tokenizer, chat, alone + 1, 1_000)
    assert (len(ids), dropped) == (alone, 0)
    with pytest.raises(ValueError, match=f"have {alone} tokens: no room for a reply"):
        fit_chat(tokenizer, chat, alone, 1_000)


@settings(max_examples=200)
@given(chat=CHATS, seq_len=st.integers(8, 120), new=st.integers(0, 60))
def test_for_any_conversation(
    tokenizer: ChatTokenizer, chat: list[dict[str, str]], seq_len: int, new: int
) -> None:
    head = next((i for i, m in enumerate(chat) if m["role"] != "system"), len(chat))
    starts = [
        i
        for i, (before, this) in enumerate(pairwise(chat), 1)
        if i >= head and this["role"] == "user" and (before["role"] != "user" or i == head)
    ]
    starts = sorted({*starts, head})
    sizes = {
        start: len(tokenizer.encode_chat([*chat[:head], *chat[start:]], add_generation_prompt=True))
        for start in starts
    }
    try:
        ids, dropped = fit_chat(tokenizer, chat, seq_len, new)
    except ValueError:
        assert sizes[starts[-1]] >= seq_len
        return
    # The longest tail of turns that leaves room; the last turn in any case.
    room = seq_len - room_for_reply(seq_len, new)
    fits = [start for start in starts if sizes[start] <= room] or [starts[-1]]
    assert dropped == fits[0] - head
    kept = [*chat[:head], *chat[fits[0] :]]
    assert ids == tokenizer.encode_chat(kept, add_generation_prompt=True)
    assert len(ids) < seq_len
