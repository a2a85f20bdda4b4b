"""The official client of the OpenAI API understands all that comes back."""

import asyncio
from collections.abc import Iterator

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from model.engine import Engine
from model.serve.guard import Access
from model.serve.limits import Limits
from model.tokenizer import ChatTokenizer
from model.transformer import Transformer
from tests.model.serve.running import Running, serving, wait_until
from tests.model.stub_engine import StubEngine
from tests.model.tiny import chat_config, lively

KEY, ANY = "sk-1", "any"
HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def server(tokenizer: ChatTokenizer) -> Iterator[Running]:
    model = lively(Transformer(chat_config(tokenizer, seq_len=96)))
    with serving({"tiny": Engine(model, tokenizer, slots=4)}, access=Access(key=KEY)) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0) as client:
        yield client


def test_models(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "parley"


def test_chat_whole_and_streamed(client: OpenAI) -> None:
    settings = {"model": "tiny", "messages": HELLO, "max_tokens": 12, "seed": 1, "n": 2}
    whole = client.chat.completions.create(**settings, logprobs=True, top_logprobs=2)
    assert whole.usage is not None
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    for choice in whole.choices:
        assert choice.finish_reason in ("stop", "length")
        assert choice.logprobs is not None
        assert len(choice.logprobs.content[0].top_logprobs) == 2
    texts = ["", ""]
    usage = None
    stream = client.chat.completions.create(
        **settings, stream=True, stream_options={"include_usage": True}
    )
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == [choice.message.content for choice in whole.choices]
    assert usage == whole.usage


def test_the_client_s_own_gathering_of_a_stream(stub_server: Running) -> None:
    with (
        OpenAI(base_url=f"{stub_server.url}/v1", api_key=ANY) as client,
        client.chat.completions.stream(model="stub", messages=HELLO) as stream,
    ):
        contents = [event.delta for event in stream if event.type == "content.delta"]
        final = stream.get_final_completion()
    assert "".join(contents) == final.choices[0].message.content == "Yes, I do."
    assert final.choices[0].finish_reason == "stop"


def test_completions_whole_and_streamed(client: OpenAI) -> None:
    settings = {"model": "tiny", "prompt": ["a dog", "a fox"], "max_tokens": 8, "seed": 4}
    whole = client.completions.create(**settings, logprobs=1)
    assert [choice.index for choice in whole.choices] == [0, 1]
    assert whole.choices[0].logprobs is not None
    texts = ["", ""]
    for chunk in client.completions.create(**settings, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == [choice.text for choice in whole.choices]


def test_extra_settings(client: OpenAI) -> None:
    def ask(**extra: object) -> str:
        reply = client.chat.completions.create(
            model="tiny", messages=HELLO, max_tokens=12, seed=1, extra_body=extra
        )
        return reply.choices[0].message.content or ""

    assert ask(top_k=1) == ask(top_k=1, min_p=0.5)
    assert ask(top_k=1) != ask()


def test_async(server: Running, client: OpenAI) -> None:
    async def ask() -> list[str]:
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key=KEY) as client:
            replies = await asyncio.gather(
                *(
                    client.chat.completions.create(
                        model="tiny", messages=HELLO, max_tokens=8, seed=seed
                    )
                    for seed in range(6)
                )
            )
            return [reply.choices[0].message.content or "" for reply in replies]

    alone = [
        client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=8, seed=seed)
        for seed in range(6)
    ]
    assert asyncio.run(ask()) == [reply.choices[0].message.content for reply in alone]


def test_errors_are_the_client_s_own(server: Running, client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-4", messages=HELLO)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as long:
        client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "x" * 500}]
        )
    assert long.value.code == "context_length_exceeded"
    assert long.value.param == "messages"
    with pytest.raises(openai.BadRequestError) as hot:
        client.chat.completions.create(model="tiny", messages=HELLO, temperature=-1)
    assert hot.value.param == "temperature"
    stranger = OpenAI(base_url=f"{server.url}/v1", api_key=ANY, max_retries=0)
    with stranger, pytest.raises(openai.AuthenticationError):
        stranger.models.list()


def test_a_closed_stream_frees_its_slot_and_a_full_server_is_tried_again(
    tokenizer: ChatTokenizer,
) -> None:
    engine = StubEngine(tokenizer, lambda p: ["w "] * 9_999, slots=1, pause=0.01, seq_len=20_000)
    with (
        serving({"slow": engine}, limits=Limits(waiting=1, grace_seconds=0)) as running,
        OpenAI(base_url=f"{running.url}/v1", api_key=ANY, max_retries=0) as client,
    ):
        streams = [
            client.chat.completions.create(model="slow", messages=HELLO, stream=True)
            for _ in range(2)
        ]
        with pytest.raises(openai.InternalServerError) as full:
            client.chat.completions.create(model="slow", messages=HELLO)
        assert full.value.status_code == 503
        assert full.value.response.headers["retry-after"] == "1"
        next(iter(streams[0]))
        for stream in streams:
            stream.close()
        scheduler = running.models[0].scheduler
        assert wait_until(lambda: scheduler.unfinished == 0) < 1
        patient = client.with_options(max_retries=3)
        answer = patient.chat.completions.create(model="slow", messages=HELLO, max_tokens=2)
        assert answer.choices[0].message.content == "w w "


def test_an_error_within_a_stream_is_raised(tokenizer: ChatTokenizer) -> None:
    engine = StubEngine(tokenizer, lambda p: ["w "] * 999, pause=0.01, seq_len=20_000)
    with (
        serving({"breaks": engine}) as running,
        OpenAI(base_url=f"{running.url}/v1", api_key=ANY, max_retries=0) as client,
    ):
        stream = client.chat.completions.create(model="breaks", messages=HELLO, stream=True)
        assert next(iter(stream)).choices[0].delta.role == "assistant"
        engine.broken = True
        with pytest.raises(openai.APIError, match="the model failed at this reply"):
            list(stream)
