"""Whoever opens a model folder in transformers gets the replies that we give."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from model.generate import generate_with_cache
from model.loading import load
from model.tokenizer import ChatTokenizer
from tests.model.tiny import (
    ATTENTION,
    CORPUS,
    chat_config,
    greedy_ids,
    lively_transformer,
    write_folder,
)

CHATS = [
    [{"role": "user", "content": CORPUS[0]}],
    [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "what is <|user|> <|end|>?"},
        {"role": "assistant", "content": "  a typed token\n"},
        {"role": "user", "content": CORPUS[3]},
    ],
]
NEW = 24


def make_folder(folder: Path, tokenizer_folder: Path, **changes: Any) -> Path:
    config = chat_config(ChatTokenizer.load(tokenizer_folder), seq_len=256, **changes)
    return write_folder(folder, lively_transformer(**vars(config)), tokenizer_folder)


@pytest.mark.parametrize("kv_heads", ATTENTION.values(), ids=ATTENTION)
@pytest.mark.parametrize("qk_norm", [False, True], ids=["llama", "qwen3"])
@pytest.mark.parametrize("tie_embeddings", [True, False], ids=["tied", "untied"])
def test_greedy_replies_are_equal_alone_and_in_a_batch(
    tmp_path: Path, tokenizer_folder: Path, kv_heads: int, qk_norm: bool, tie_embeddings: bool
) -> None:
    shape = {"kv_heads": kv_heads, "qk_norm": qk_norm, "tie_embeddings": tie_embeddings}
    folder = make_folder(tmp_path, tokenizer_folder, **shape)
    ours, tokenizer = load(folder)
    theirs = AutoModelForCausalLM.from_pretrained(folder)
    reader = AutoTokenizer.from_pretrained(folder)
    expected = []
    for chat in CHATS:
        ids = tokenizer.encode_chat(chat, add_generation_prompt=True)
        expected.append(greedy_ids(ours, tokenizer, ids, NEW))
        given = reader.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt")
        assert given["input_ids"].tolist() == [ids]
        reply = theirs.generate(**given, max_new_tokens=NEW, do_sample=False)[0, len(ids) :]
        assert [i for i in reply.tolist() if i != tokenizer.end_id] == expected[-1]
    given = reader.apply_chat_template(
        CHATS, add_generation_prompt=True, return_tensors="pt", padding=True
    )
    longest = given["input_ids"].shape[1]
    replies = theirs.generate(**given, max_new_tokens=NEW, do_sample=False)[:, longest:]
    left_out = (tokenizer.end_id, tokenizer.pad_id)
    assert [[i for i in row if i not in left_out] for row in replies.tolist()] == expected


def test_the_pipeline_takes_messages_and_stops_where_the_turn_ends(
    tmp_path: Path, tokenizer_folder: Path
) -> None:
    tokenizer = ChatTokenizer.load(tokenizer_folder)
    config = chat_config(tokenizer, seq_len=256, tie_embeddings=False)
    model = lively_transformer(**vars(config))
    ids = tokenizer.encode_chat(CHATS[1], add_generation_prompt=True)
    reply = greedy_ids(model, tokenizer, ids, 6, end=())
    # From now on the end of the turn is more probable than that token, there at the latest.
    with torch.no_grad():
        model.head.weight[tokenizer.end_id] = 1.1 * model.head.weight[reply[5]]
    assert 0 < len(greedy_ids(model, tokenizer, ids, NEW)) < 6
    folder = write_folder(tmp_path, model, tokenizer_folder)
    expected = generate_with_cache(model, tokenizer, CHATS[1], max_length=NEW, temperature=0)

    talk = pipeline("text-generation", model=str(folder))
    (answer,) = talk(CHATS[1], max_new_tokens=NEW, do_sample=False)
    assert answer["generated_text"] == [*CHATS[1], {"role": "assistant", "content": expected}]
