"""Generation: the tokens that transformers' greedy search makes, and the promises of its limits."""

import gc
import weakref
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from model.engine import Engine, Sampling
from model.generate import generate_with_cache
from model.loading import load
from model.tokenizer import ChatTokenizer
from model.transformer import Transformer
from tests.model.tiny import chat_config, lively_transformer, write_folder


def greedy_ids(
    model: Transformer, tokenizer: ChatTokenizer, prompt: Sequence[int], count: int
) -> list[int]:
    """Greedy ids up to the end of the turn."""
    sampling = Sampling(max_new_tokens=count, temperature=0)
    pieces = Engine(model, tokenizer, slots=1).stream(prompt, sampling)
    return [token for piece in pieces for token in piece.token_ids]


PROMPTS = ["hello there", "", "what is <|user|>?", "Grüße aus Köln! 👋", "the dog " * 8]


@pytest.fixture(scope="module", params=[False, True], ids=["llama", "qwen3"])
def folder(
    request: pytest.FixtureRequest,
    tokenizer: ChatTokenizer,
    tokenizer_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    config = chat_config(tokenizer, qk_norm=request.param, tie_embeddings=False, seq_len=128)
    model = lively_transformer(seed=1, **vars(config))
    return write_folder(tmp_path_factory.mktemp("model"), model, tokenizer_folder)


@pytest.fixture(scope="module")
def opened(folder: Path) -> tuple[Transformer, ChatTokenizer]:
    return load(folder)


@pytest.fixture(scope="module")
def peer(folder: Path) -> tuple[Any, Any]:
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_text_is_that_of_transformers(
    opened: tuple[Transformer, ChatTokenizer], peer: tuple[Any, Any], prompt: str
) -> None:
    model, tokenizer = opened
    their_model, their_tokenizer = peer
    inputs = their_tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], add_generation_prompt=True, return_tensors="pt"
    )
    length = inputs["input_ids"].shape[1]
    output = their_model.generate(**inputs, do_sample=False, max_new_tokens=24)[0, length:]
    expected = output.tolist()
    if tokenizer.end_id in expected:
        expected.remove(tokenizer.end_id)
    ids = inputs["input_ids"][0].tolist()
    assert greedy_ids(model, tokenizer, ids, 24) == expected
    text = generate_with_cache(model, tokenizer, prompt, max_length=24, temperature=0)
    assert text == their_tokenizer.decode(output, skip_special_tokens=True)


def test_greedy_tokens_vary_and_one_reply_ends_by_itself(
    opened: tuple[Transformer, ChatTokenizer],
) -> None:
    # Guards the test above: models that repeat one token would make it easy to pass.
    model, tokenizer = opened
    replies = []
    for prompt in PROMPTS:
        ids = tokenizer.encode_chat([{"role": "user", "content": prompt}], True)
        replies.append(tuple(greedy_ids(model, tokenizer, ids, 24)))
    assert len(set(replies)) == len(replies)
    assert all(len(set(reply)) > 3 for reply in replies)
    assert min(len(reply) for reply in replies) < 24 == max(len(reply) for reply in replies)


# --- a model that says what it is told to


@pytest.fixture(scope="module")
def parrot(tokenizer: ChatTokenizer) -> Callable[..., Transformer]:
    """Makes a model whose reply is the given ids, followed by ``last`` for ever."""

    def make(reply: Sequence[int], last: int, seq_len: int = 64) -> Transformer:
        vocab_size = tokenizer.vocab_size
        config = chat_config(
            tokenizer, d_model=vocab_size, num_heads=2, tie_embeddings=False, seq_len=seq_len
        )
        model = Transformer(config).eval()
        chain = [tokenizer.role_ids["assistant"], *reply, last, last]
        assert len(set(chain[:-1])) == len(chain) - 1, "each token has one successor"
        with torch.no_grad():
            for weight in model.blocks.parameters():
                weight.zero_()  # what remains is a table: token -> logits of the next
            model.embedding.weight.copy_(torch.eye(vocab_size))
            model.head.weight.zero_()
            for token, successor in pairwise(chain):
                model.head.weight[successor, token] = 10.0
        return model

    return make


@pytest.fixture(scope="module")
def letters(tokenizer: ChatTokenizer) -> list[int]:
    """Ids of single letters, each a token of its own."""
    ids = [tokenizer.encode(letter) for letter in "abcdefghij"]
    assert all(len(each) == 1 for each in ids)
    return [each[0] for each in ids]


Parrot = Callable[..., Transformer]


@pytest.mark.parametrize("temperature", [0.0, 0.1])
@pytest.mark.parametrize("prompt", ["say it", "", "<|assistant|>"])
def test_a_reply_ends_with_its_turn_and_leaves_the_end_token_out(
    parrot: Parrot,
    tokenizer: ChatTokenizer,
    letters: list[int],
    prompt: str,
    temperature: float,
) -> None:
    model = parrot(letters, tokenizer.end_id)
    assert (
        generate_with_cache(model, tokenizer, prompt, temperature=temperature, seed=0)
        == "abcdefghij"
    )


def test_a_reply_that_ends_at_once_is_empty(parrot: Parrot, tokenizer: ChatTokenizer) -> None:
    assert generate_with_cache(parrot([], tokenizer.end_id), tokenizer, "hi", temperature=0) == ""


def test_control_tokens_that_the_model_makes_are_not_shown(
    parrot: Parrot, tokenizer: ChatTokenizer, letters: list[int]
) -> None:
    reply = [letters[0], tokenizer.role_ids["user"], letters[1]]
    model = parrot(reply, tokenizer.end_id)
    assert generate_with_cache(model, tokenizer, "hi", temperature=0) == "ab"


@pytest.mark.parametrize("max_length", [0, 1, 4, 9, 10, 11])
def test_max_length_counts_new_tokens(
    parrot: Parrot, tokenizer: ChatTokenizer, letters: list[int], max_length: int
) -> None:
    model = parrot(letters, tokenizer.end_id)
    for prompt in ("hi", "a much longer prompt than that"):
        text = generate_with_cache(model, tokenizer, prompt, max_length=max_length, temperature=0)
        assert text == "abcdefghij"[:max_length]


def test_the_default_max_length_is_a_hundred(
    parrot: Parrot, tokenizer: ChatTokenizer, letters: list[int]
) -> None:
    model = parrot([], letters[0], seq_len=256)
    assert generate_with_cache(model, tokenizer, "hi", temperature=0) == "a" * 100


@pytest.mark.parametrize("room", [1, 2, 7])
def test_prompt_and_reply_fill_seq_len_exactly_and_then_stop(
    parrot: Parrot, tokenizer: ChatTokenizer, letters: list[int], room: int
) -> None:
    prompt = tokenizer.encode_chat([{"role": "user", "content": "hi"}], True)
    model = parrot([], letters[0], seq_len=len(prompt) + room)
    assert greedy_ids(model, tokenizer, prompt, 1000) == [letters[0]] * room
    text = generate_with_cache(model, tokenizer, "hi", max_length=1000, temperature=0)
    assert text == "a" * room


@pytest.mark.parametrize("excess", [0, 1, 30])
def test_a_prompt_that_leaves_no_room_is_a_value_error(
    parrot: Parrot, tokenizer: ChatTokenizer, letters: list[int], excess: int
) -> None:
    length = len(tokenizer.encode_chat([{"role": "user", "content": "a" * (5 + excess)}], True))
    model = parrot([], letters[0], seq_len=length - excess)
    with pytest.raises(ValueError, match=f"the prompt has {length} tokens: no room"):
        generate_with_cache(model, tokenizer, "a" * (5 + excess))


# --- prompts and settings


def test_a_text_prompt_is_one_user_message(opened: tuple[Transformer, ChatTokenizer]) -> None:
    model, tokenizer = opened
    messages = ({"role": "user", "content": "hello there"},)
    expected = generate_with_cache(model, tokenizer, "hello there", 12, temperature=0)
    assert generate_with_cache(model, tokenizer, messages, 12, temperature=0) == expected
    assert generate_with_cache(model, tokenizer, list(messages), 12, temperature=0) == expected


def test_every_message_of_a_conversation_counts(
    opened: tuple[Transformer, ChatTokenizer],
) -> None:
    model, tokenizer = opened
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "hi"},
        {"role": "user", "content": "what is the answer?"},
    ]
    ids = tokenizer.encode_chat(messages, add_generation_prompt=True)
    expected = tokenizer.decode(greedy_ids(model, tokenizer, ids, 12))
    assert generate_with_cache(model, tokenizer, messages, 12, temperature=0) == expected
    assert generate_with_cache(model, tokenizer, messages[-1:], 12, temperature=0) != expected
    with pytest.raises(ValueError, match="unknown role 'tool'"):
        generate_with_cache(model, tokenizer, [{"role": "tool", "content": "x"}])


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (None, "the prompt must be text or a list of messages, not None"),
        (5, "the prompt must be text or a list of messages, not 5"),
        ({"role": "user", "content": "x"}, "the prompt must be .* a list of messages, not {'con"),
        (b"x", "a message must be {'role': …, 'content': text}, not 120"),
        (["x"], "a message must be {'role': …, 'content': text}, not 'x'"),
        ([None], "a message must be {'role': …, 'content': text}, not None"),
        ([{}], "a message must be {'role': …, 'content': text}, not {}"),
        ([{"role": "user"}], "a message must be {'role': …, 'content': text}, not {'role'"),
        ([{"role": "user", "content": None}], "a message must be .*'content': None"),
        ([{"role": "user", "content": ["x"] * 99}], "a message must be .*'content': .*'x'"),
        ([{"content": "x"}], "a message must be {'role': …, 'content': text}, not {'content'"),
        ([{"role": ["user"], "content": "x"}], "a message must be .*'role': \\['user'"),
    ],
)
def test_a_prompt_of_another_kind_is_a_value_error_of_one_short_line(
    opened: tuple[Transformer, ChatTokenizer], prompt: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        generate_with_cache(*opened, prompt)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


def test_the_same_seed_gives_the_same_text(opened: tuple[Transformer, ChatTokenizer]) -> None:
    model, tokenizer = opened
    before = torch.get_rng_state()
    texts = [generate_with_cache(model, tokenizer, "hello", 20, seed=seed) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    assert torch.equal(torch.get_rng_state(), before)


def test_without_a_seed_the_global_one_decides(opened: tuple[Transformer, ChatTokenizer]) -> None:
    model, tokenizer = opened
    texts = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        texts.append(generate_with_cache(model, tokenizer, "hello", 20))
    assert texts[0] == texts[1] != texts[2]
    assert generate_with_cache(model, tokenizer, "hello", 20) != texts[2]


@pytest.mark.parametrize("limit", [{"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-30}])
def test_sampling_at_its_narrowest_is_greedy(
    opened: tuple[Transformer, ChatTokenizer], limit: dict[str, Any]
) -> None:
    model, tokenizer = opened
    greedy = generate_with_cache(model, tokenizer, "hello", 20, temperature=0)
    assert generate_with_cache(model, tokenizer, "hello", 20, **limit) == greedy
    assert generate_with_cache(model, tokenizer, "hello", 20, temperature=1.0, seed=0) != greedy


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"max_length": -1}, "max_new_tokens -1 is below 0"),
        ({"temperature": -1.0}, "temperature -1.0"),
        ({"top_k": 0}, "top_k 0"),
        ({"top_p": 0.0}, "top_p 0.0"),
        ({"max_length": 0, "top_p": 1.5}, "top_p 1.5"),
    ],
)
def test_a_setting_out_of_range_is_a_value_error(
    opened: tuple[Transformer, ChatTokenizer], setting: dict[str, Any], message: str
) -> None:
    model, tokenizer = opened
    with pytest.raises(ValueError, match=message):
        generate_with_cache(model, tokenizer, "hello", **setting)


# --- what generation leaves behind


@pytest.fixture
def dropping(tokenizer: ChatTokenizer) -> Transformer:
    return lively_transformer(
        **vars(chat_config(tokenizer, dropout=0.5, tie_embeddings=False, seq_len=64))
    )


@pytest.mark.parametrize("training", [True, False])
def test_generation_is_without_dropout_and_leaves_the_mode_as_it_was(
    dropping: Transformer, tokenizer: ChatTokenizer, training: bool
) -> None:
    expected = generate_with_cache(dropping.eval(), tokenizer, "hello", 20, temperature=0)
    dropping.train(training)
    assert generate_with_cache(dropping, tokenizer, "hello", 20, temperature=0) == expected
    assert all(module.training == training for module in dropping.modules())


def test_a_model_can_be_trained_after_it_has_generated(
    dropping: Transformer, tokenizer: ChatTokenizer
) -> None:
    generate_with_cache(dropping, tokenizer, "hello", 5)
    dropping.train()(torch.tensor([[1, 2, 3]])).sum().backward()
    assert all(weight.grad is not None for weight in dropping.parameters())


@pytest.mark.parametrize("how", ["in place", "behind the back", "another tensor"])
def test_a_reply_is_that_of_the_weights_as_they_are_now(tokenizer: ChatTokenizer, how: str) -> None:
    config = vars(chat_config(tokenizer, tie_embeddings=False, seq_len=64))
    model, other = lively_transformer(seed=1, **config), lively_transformer(seed=1, **config)
    first = generate_with_cache(model, tokenizer, "hello", 20, temperature=0)
    assert generate_with_cache(model, tokenizer, "hello", 20, temperature=0) == first
    for changed in (model, other):
        weight = changed.blocks[1].feed_forward.down.weight
        with torch.no_grad():
            if how == "in place":
                weight[3, 5] += 100
            elif how == "behind the back":
                weight.data.numpy()[3, 5] += 100
            else:
                weight = weight.clone()
                weight[3, 5] += 100
                changed.blocks[1].feed_forward.down.weight = torch.nn.Parameter(weight)
    second = generate_with_cache(model, tokenizer, "hello", 20, temperature=0)
    assert second == generate_with_cache(other, tokenizer, "hello", 20, temperature=0) != first


def test_a_model_that_has_generated_is_not_kept_alive(tokenizer: ChatTokenizer) -> None:
    model = lively_transformer(**vars(chat_config(tokenizer)))
    generate_with_cache(model, tokenizer, "hello", 5)
    reference = weakref.ref(model)
    del model
    gc.collect()
    assert reference() is None


def test_half_precision_weights_generate(tokenizer: ChatTokenizer) -> None:
    model = lively_transformer(**vars(chat_config(tokenizer))).bfloat16()
    assert generate_with_cache(model, tokenizer, "hello", 10, seed=1) is not None
