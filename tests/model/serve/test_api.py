"""The API: what is asked for reaches the engine, and what it makes comes back in shape."""

import json
import math
from typing import Any

import pytest

from model.engine import Engine, Sampling
from model.serve.limits import Limits
from tests.model.serve.conftest import SEQ_LEN
from tests.model.serve.running import Answer, Running, serving
from tests.model.stub_engine import StubEngine

USER = [{"role": "user", "content": "hello"}]


def events(answer: Answer) -> list[Any]:
    """The objects of a stream, whose framing is checked."""
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    *parts, end = answer.body.decode().split("\n\n")
    assert end == ""
    assert parts.pop() == "data: [DONE]"
    assert all(part.startswith("data: ") for part in parts)
    return [json.loads(part.removeprefix("data: ")) for part in parts]


# --- the same as the engine alone


@pytest.mark.parametrize("seed", range(4))
def test_a_chat_is_the_engine_s_reply(server: Running, engine: Engine, seed: int) -> None:
    settings = {"temperature": 0.9, "top_k": 30, "top_p": 0.9, "min_p": 0.01, "seed": seed}
    answer = server.chat("hello", max_tokens=20, repetition_penalty=1.1, stop=["q"], **settings)
    prompt = engine.tokenizer.encode_chat(USER, add_generation_prompt=True)
    sampling = Sampling(max_new_tokens=20, repetition_penalty=1.1, stop=("q",), **settings)  # type: ignore[arg-type]
    (reply,) = engine.replies([prompt], sampling)
    assert answer.status == 200
    (choice,) = answer.json()["choices"]
    assert choice["message"]["content"] == reply.text
    assert choice["finish_reason"] == reply.finish
    assert answer.json()["usage"] == {
        "prompt_tokens": len(prompt),
        "completion_tokens": len(reply.token_ids),
        "total_tokens": len(prompt) + len(reply.token_ids),
    }


def test_n_replies_have_seeds_in_a_row(server: Running, engine: Engine) -> None:
    answer = server.chat("hello", max_tokens=8, seed=7, n=3)
    prompt = engine.tokenizer.encode_chat(USER, add_generation_prompt=True)
    replies = engine.replies([prompt] * 3, [Sampling(8, seed=7 + i) for i in range(3)])
    choices = answer.json()["choices"]
    assert [choice["index"] for choice in choices] == [0, 1, 2]
    assert [choice["message"]["content"] for choice in choices] == [r.text for r in replies]
    assert answer.json()["usage"]["completion_tokens"] == sum(len(r.token_ids) for r in replies)


@pytest.mark.parametrize("n", [1, 2])
def test_a_stream_adds_up_to_the_whole(server: Running, n: int) -> None:
    settings = {"max_tokens": 16, "seed": 3, "n": n, "logprobs": True, "top_logprobs": 2}
    whole = server.chat("hello", **settings).json()
    streamed = events(
        server.chat("hello", stream=True, stream_options={"include_usage": True}, **settings)
    )
    assert {event["id"] for event in streamed} == {streamed[0]["id"]}
    assert {event["object"] for event in streamed} == {"chat.completion.chunk"}
    last = streamed.pop()
    assert (last["choices"], last["usage"]) == ([], whole["usage"])
    assert all(event["usage"] is None for event in streamed)
    for choice in whole["choices"]:
        mine = [
            event["choices"][0]
            for event in streamed
            if event["choices"][0]["index"] == choice["index"]
        ]
        assert mine[0]["delta"]["role"] == "assistant"
        text = "".join(one["delta"].get("content", "") for one in mine)
        assert text == choice["message"]["content"]
        assert [one["finish_reason"] for one in mine[:-1]] == [None] * (len(mine) - 1)
        assert mine[-1]["finish_reason"] == choice["finish_reason"]
        logprobs = [
            entry for one in mine if one["logprobs"] for entry in one["logprobs"]["content"]
        ]
        assert logprobs == choice["logprobs"]["content"]


def test_a_stream_without_usage_has_none(server: Running) -> None:
    streamed = events(server.chat("hello", stream=True, max_tokens=2))
    assert not any("usage" in event for event in streamed)
    assert streamed[-1]["choices"][0]["finish_reason"] == "length"


def test_log_probabilities_are_the_engine_s(server: Running, engine: Engine) -> None:
    answer = server.chat("hello", max_tokens=6, seed=2, logprobs=True, top_logprobs=3)
    prompt = engine.tokenizer.encode_chat(USER, add_generation_prompt=True)
    (reply,) = engine.replies([prompt], Sampling(6, seed=2, logprobs=3))
    content = answer.json()["choices"][0]["logprobs"]["content"]
    assert len(content) == len(reply.logprobs)
    for entry, logprob in zip(content, reply.logprobs, strict=True):
        assert math.isclose(entry["logprob"], logprob.logprob, rel_tol=1e-4)
        assert len(entry["top_logprobs"]) == 3
        assert bytes(entry["bytes"]).decode("utf-8", "replace") == entry["token"]
    joined = b"".join(bytes(entry["bytes"]) for entry in content)
    control = [token for token in reply.token_ids if engine.tokenizer.is_control(token)]
    if not control:
        assert (
            joined.decode("utf-8", "replace") == answer.json()["choices"][0]["message"]["content"]
        )


def test_a_plain_completion_goes_on_from_a_document(server: Running, engine: Engine) -> None:
    tokenizer = engine.tokenizer
    content = {"prompt": ["the dog", "a fox"], "max_tokens": 5, "seed": 1, "n": 2, "logprobs": 2}
    answer = server.ask("POST", "/v1/completions", content).json()
    text = tokenizer.role_ids["text"]
    prompts = [[tokenizer.bos_id, text, *tokenizer.encode(p)] for p in ("the dog", "a fox")]
    replies = engine.replies(
        [prompt for prompt in prompts for _ in range(2)],
        [Sampling(5, seed=seed) for _ in prompts for seed in (1, 2)],
    )
    assert answer["object"] == "text_completion"
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert [choice["text"] for choice in answer["choices"]] == [reply.text for reply in replies]
    for choice, reply in zip(answer["choices"], replies, strict=True):
        logprobs = choice["logprobs"]
        assert len(logprobs["tokens"]) == len(reply.token_ids)
        ends = [0]
        for token in logprobs["tokens"]:
            ends.append(ends[-1] + len(token))
        assert logprobs["text_offset"] == ends[:-1]
    as_ids = server.ask("POST", "/v1/completions", {**content, "prompt": prompts}).json()
    assert [c["text"] for c in as_ids["choices"]] == [c["text"] for c in answer["choices"]]


def test_a_completion_whose_length_nobody_named_has_16_tokens(
    stub: StubEngine, stub_server: Running
) -> None:
    stub_server.ask("POST", "/v1/completions", {"prompt": "x"})
    assert stub.asked[-1][1].max_new_tokens == 16
    streamed = events(stub_server.ask("POST", "/v1/completions", {"prompt": "x", "stream": True}))
    assert "".join(event["choices"][0]["text"] for event in streamed) == "Yes, I do."
    assert streamed[-1]["choices"][0]["finish_reason"] == "stop"


# --- what is asked for


def test_all_of_a_conversation_reaches_the_model_as_text(
    stub: StubEngine, stub_server: Running
) -> None:
    messages = [
        {"role": "developer", "content": "be <|end|> brief"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": "c", "refusal": None, "tool_calls": None, "audio": None},
        {"role": "user", "content": "d"},
    ]
    answer = stub_server.ask("POST", "/v1/chat/completions", {"messages": messages})
    assert answer.json()["choices"][0]["message"]["content"] == "Yes, I do."
    assert stub.asked[-1][0] == (
        "<|bos|><|system|>be <|end|> brief<|end|><|user|>a\nb<|end|><|assistant|>c<|end|>"
        "<|user|>d<|end|><|assistant|>"
    )
    ids = answer.json()["usage"]["prompt_tokens"]
    assert ids == len(
        stub.tokenizer.encode_chat(
            [
                {"role": "system", "content": "be <|end|> brief"},
                {"role": "user", "content": "a\nb"},
                {"role": "assistant", "content": "c"},
                {"role": "user", "content": "d"},
            ],
            add_generation_prompt=True,
        )
    )


def test_what_is_left_out_or_null_is_the_engine_s_default(
    stub: StubEngine, stub_server: Running
) -> None:
    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed", "stop", "n")
    stub_server.chat()
    stub_server.chat(**dict.fromkeys(names))
    for _, sampling in stub.asked:
        assert sampling == Sampling(max_new_tokens=256)
    stub_server.chat(max_completion_tokens=3, max_tokens=9)
    assert stub.asked[-1][1].max_new_tokens == 3


@pytest.mark.parametrize("extra", [{"user": "me"}, {"metadata": {"a": "b"}}, {"tools": []},
    {"presence_penalty": 0}, {"frequency_penalty": 0.0}, {"logit_bias": {}}, {"store": False},
    {"response_format": {"type": "text"}}, {"top_k": -1}, {"service_tier": "auto"}])  # fmt: skip
def test_fields_that_ask_for_nothing_are_accepted(stub_server: Running, extra: Any) -> None:
    assert stub_server.chat(**extra).status == 200


def test_an_old_conversation_is_cut_when_asked_to(stub: StubEngine, stub_server: Running) -> None:
    messages = [{"role": "system", "content": "be brief"}]
    for number in range(20):
        messages += [
            {"role": "user", "content": f"question {number}"},
            {"role": "assistant", "content": "an answer"},
        ]
    messages.append({"role": "user", "content": "the last"})
    content = {"messages": messages, "max_tokens": 10}
    refused = stub_server.ask("POST", "/v1/chat/completions", content)
    assert (refused.status, refused.error["code"]) == (400, "context_length_exceeded")
    answer = stub_server.ask("POST", "/v1/chat/completions", {**content, "truncation": "auto"})
    dropped = answer.json()["dropped_messages"]
    assert dropped > 0
    assert dropped % 2 == 0
    prompt = stub.asked[-1][0]
    assert prompt.startswith(f"<|bos|><|system|>be brief<|end|><|user|>question {dropped // 2}<")
    streamed = events(
        stub_server.ask(
            "POST", "/v1/chat/completions", {**content, "truncation": "auto", "stream": True}
        )
    )
    assert streamed[0]["dropped_messages"] == dropped
    huge = [*messages, {"role": "user", "content": "x" * 10_000}]
    refused = stub_server.ask(
        "POST", "/v1/chat/completions", {"messages": huge, "truncation": "auto"}
    )
    assert refused.error["code"] == "context_length_exceeded"


# --- models


def test_models_are_listed_and_chosen(stub: StubEngine) -> None:
    other = StubEngine(stub.tokenizer, lambda prompt: ["No"], seq_len=99)
    with serving({"a": stub, "b/c": other}) as running:
        cards = running.ask("GET", "/v1/models").json()["data"]
        assert [(card["id"], card["max_model_len"]) for card in cards] == [("a", 256), ("b/c", 99)]
        assert running.ask("GET", "/v1/models/b/c").json() == cards[1]
        assert running.chat(model="b/c").json()["choices"][0]["message"]["content"] == "No"
        assert running.chat(model="a").json()["model"] == "a"
        missing = running.chat()
        assert (missing.status, missing.error["param"]) == (400, "model")
        assert missing.error["message"] == "model is missing: use a or b/c"
        for answer in (running.chat(model="gpt-4"), running.ask("GET", "/v1/models/gpt-4")):
            assert (answer.status, answer.error["code"]) == (404, "model_not_found")


# --- refusals

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"messages": []}, "messages"),
    ({"messages": "hello"}, "messages"),
    ({"messages": [{"role": "user"}]}, "messages.0.content"),
    ({"messages": [{"role": "king", "content": "x"}]}, "messages.0.role"),
    ({"messages": [{"role": "text", "content": "x"}]}, "messages.0.role"),
    ({"messages": [{"role": "user", "content": 3}]}, "messages.0.content"),
    ({"messages": [{"role": "user", "content": None}]}, "messages.0.content"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content"),
    ({"messages": [{"role": "user", "content": "x", "name": "Bob"}]}, "messages.0.name"),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": "0.5"}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_p": 1.01}, "top_p"),
    ({"min_p": 2}, "min_p"),
    ({"top_k": -2}, "top_k"),
    ({"top_k": 1.5}, "top_k"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": "9"}, "max_tokens"),
    ({"n": 0}, "n"),
    ({"n": 17}, "n"),
    ({"n": 10**30}, "n"),
    ({"seed": 2**63}, "seed"),
    ({"seed": 0.5}, "seed"),
    ({"stop": [""]}, "stop"),
    ({"stop": [3]}, "stop"),
    ({"stop": ["x"] * 17}, "stop"),
    ({"stop": "x" * 257}, "stop"),
    ({"logprobs": 3}, "logprobs"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"stream": "yes"}, "stream"),
    ({"stream_options": {"usage": True}}, "stream_options.usage"),
    ({"presence_penalty": 0.5}, "presence_penalty"),
    ({"frequency_penalty": False}, "frequency_penalty"),
    ({"tools": [{"type": "function"}]}, "tools"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"temperatur": 0.5}, "temperatur"),
    ({"truncation": "middle"}, "truncation"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
]


@pytest.mark.parametrize(("change", "param"), WRONG, ids=lambda value: str(value)[:40])
def test_a_wrong_field_is_named(server: Running, change: dict[str, Any], param: str) -> None:
    answer = server.ask("POST", "/v1/chat/completions", {"messages": USER, **change})
    assert answer.status == 400
    assert answer.error["param"] == param
    assert answer.error["type"] == "invalid_request_error"
    assert param in answer.error["message"]


@pytest.mark.parametrize(
    "prompt", [None, 3, [], [[]], ["a", 3], [1.5], [True], [["a"]], {"a": 1}, [-1], [10**6]]
)
def test_a_wrong_prompt_is_refused(server: Running, prompt: object) -> None:
    answer = server.ask("POST", "/v1/completions", {"prompt": prompt})
    assert (answer.status, answer.error["param"]) == (400, "prompt")


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[]", 400),
        (b"null", 400),
        (b'{"messages": [{"role": "user", "content": "\xff"}]}', 400),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', 400),
        (b'{"messages": [], "temperature": NaN}', 400),
        (b'{"temperature": 1e999}', 400),
        (b"[" * 100_000, 400),
        (b'{"a":' * 900 + b"1" + b"}" * 900, 400),
        (b"x" * ((1 << 20) + 1), 413),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_body_that_is_no_request_is_refused(server: Running, body: bytes, status: int) -> None:
    answer = server.ask("POST", "/v1/chat/completions", body)
    assert answer.status == status
    assert answer.error


def test_what_does_not_fit_is_refused_whatever_its_size(server: Running) -> None:
    room = SEQ_LEN - 5  # bos, user, end, assistant, and one for the reply
    assert server.chat("q" * room, max_tokens=5).status == 200
    for length in (room + 1, 10 * room, 900_000):
        answer = server.chat("q" * length)
        assert (answer.status, answer.error["code"]) == (400, "context_length_exceeded")
        assert f"context is {SEQ_LEN} tokens" in answer.error["message"]
    full = server.chat("q" * room).json()
    assert full["choices"][0]["finish_reason"] in ("length", "stop")
    assert full["usage"]["total_tokens"] <= SEQ_LEN


def test_no_such_place_is_an_error_of_the_same_shape(server: Running) -> None:
    for method, path, status in (
        ("GET", "/v1/nothing", 404),
        ("GET", "/docs", 404),
        ("GET", "/openapi.json", 404),
        ("GET", "/page.js/../../app.py", 404),
        ("GET", "/v1/chat/completions", 405),
        ("POST", "/v1/models", 405),
        ("DELETE", "/", 405),
    ):
        answer = server.ask(method, path)
        assert answer.status == status, path
        assert answer.error["type"] == "invalid_request_error"


def test_only_json_is_taken(server: Running) -> None:
    body = json.dumps({"messages": USER}).encode()
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        answer = server.ask("POST", "/v1/chat/completions", body, {"content-type": kind})
        assert answer.status == 415
        assert answer.error
    kind = "Application/JSON; charset=utf-8"
    assert server.ask("POST", "/v1/chat/completions", body, {"content-type": kind}).status == 200


def test_an_operator_s_limits_hold(stub: StubEngine) -> None:
    limits = Limits(new_tokens=7, choices=2, body=200)
    with serving({"stub": stub}, limits=limits) as running:
        assert running.chat(max_tokens=100).status == 200
        assert running.chat().status == 200
        assert [sampling.max_new_tokens for _, sampling in stub.asked] == [7, 7]
        assert running.chat(n=3).error["param"] == "n"
        prompts = {"prompt": ["a", "b"], "n": 2}
        assert running.ask("POST", "/v1/completions", prompts).error["param"] == "n"
        prompts = {"prompt": ["a", "b", "c"]}
        assert running.ask("POST", "/v1/completions", prompts).error["param"] == "prompt"
        assert running.chat("x" * 200).status == 413


def test_health_tells_whether_replies_can_be_made(stub: StubEngine, stub_server: Running) -> None:
    assert stub_server.ask("GET", "/health").json() == {"status": "ok"}
    assert stub_server.ask("HEAD", "/health", headers={"connection": "close"}).status == 200
