"""The chat template: transformers renders the ids that the tokenizer's own encoder gives."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2.exceptions import TemplateError
from transformers import AutoTokenizer

from model.template import CHAT_TEMPLATE, CONTROL_TOKENS, ROLE_TOKENS, UNESCAPES, escape
from model.tokenizer import ChatTokenizer
from tests.model.tiny import (
    chat_config,
    conversations,
    hostile_text,
    lively_transformer,
    write_folder,
)


@pytest.fixture(scope="module", params=["tokenizer folder", "model folder"])
def peer(
    request: pytest.FixtureRequest,
    tokenizer: ChatTokenizer,
    tokenizer_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Any:
    """The tokenizer as transformers opens it, with no argument but the folder."""
    folder = tokenizer_folder
    if request.param == "model folder":
        model = lively_transformer(**vars(chat_config(tokenizer)))
        folder = write_folder(tmp_path_factory.mktemp("model"), model, tokenizer_folder)
    return AutoTokenizer.from_pretrained(folder)


@settings(max_examples=150)
@given(messages=conversations, add_generation_prompt=st.booleans())
def test_transformers_renders_the_same_ids(
    peer: Any,
    tokenizer: ChatTokenizer,
    messages: list[dict[str, str]],
    add_generation_prompt: bool,
) -> None:
    ids = peer.apply_chat_template(
        messages, add_generation_prompt=add_generation_prompt, return_dict=False
    )
    assert ids == tokenizer.encode_chat(messages, add_generation_prompt=add_generation_prompt)
    assert peer.decode(ids, skip_special_tokens=True) == tokenizer.decode(ids)
    # The bos, a role and an end for each message, and the assistant's role for its reply.
    control = sum(tokenizer.is_control(token) for token in ids)
    assert control == 1 + 2 * len(messages) + add_generation_prompt


def test_transformers_knows_the_control_tokens(peer: Any, tokenizer: ChatTokenizer) -> None:
    assert len(peer) == tokenizer.vocab_size
    assert (peer.bos_token_id, peer.eos_token_id, peer.pad_token_id) == (
        tokenizer.bos_id,
        tokenizer.end_id,
        tokenizer.pad_id,
    )
    assert sorted(peer.all_special_ids) == list(range(len(CONTROL_TOKENS)))
    assert peer.chat_template == CHAT_TEMPLATE


@pytest.mark.parametrize("role", ["tool", "User", "", "<|user|>", "bos"])
def test_an_unknown_role_is_refused_by_both(peer: Any, tokenizer: ChatTokenizer, role: str) -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": role, "content": "x"}]
    with pytest.raises(TemplateError, match="unknown role"):
        peer.apply_chat_template(messages)
    with pytest.raises(ValueError, match="unknown role"):
        tokenizer.encode_chat(messages)


def test_a_generation_prompt_is_the_assistants_role_token(tokenizer: ChatTokenizer) -> None:
    messages = [{"role": "user", "content": "hi"}]
    assert tokenizer.encode_chat(messages, add_generation_prompt=True) == [
        tokenizer.bos_id,
        tokenizer.role_ids["user"],
        *tokenizer.encode("hi"),
        tokenizer.end_id,
        tokenizer.role_ids["assistant"],
    ]


@settings(max_examples=300)
@given(text=hostile_text)
def test_escaping_hides_every_control_token_and_can_be_undone(text: str) -> None:
    escaped = escape(text)
    assert "<|" not in escaped
    for written, meant in UNESCAPES:
        escaped = escaped.replace(written, meant)
    assert escaped == text


def test_roles_and_control_tokens_are_distinct() -> None:
    assert set(ROLE_TOKENS) == {"system", "user", "assistant", "text"}
    assert len(set(CONTROL_TOKENS)) == len(CONTROL_TOKENS) == 7
