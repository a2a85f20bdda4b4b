"""Servers that several tests share."""

from collections.abc import Iterator

import pytest

from model.engine import Engine
from model.tokenizer import ChatTokenizer
from model.transformer import Transformer
from tests.model.serve.running import Running, serving
from tests.model.stub_engine import StubEngine
from tests.model.tiny import chat_config, lively

SEQ_LEN = 96


@pytest.fixture(scope="package")
def engine(tokenizer: ChatTokenizer) -> Engine:
    """A small real engine, for comparison; the server's own is another of the same weights."""
    return Engine(lively(Transformer(chat_config(tokenizer, seq_len=SEQ_LEN))), tokenizer)


@pytest.fixture(scope="package")
def server(tokenizer: ChatTokenizer) -> Iterator[Running]:
    """A server of one real model, ``tiny``."""
    model = lively(Transformer(chat_config(tokenizer, seq_len=SEQ_LEN)))
    with serving({"tiny": Engine(model, tokenizer, slots=4)}) as running:
        yield running


@pytest.fixture
def stub(tokenizer: ChatTokenizer) -> StubEngine:
    """An engine that answers "Yes, I do." to everything."""
    return StubEngine(tokenizer, lambda prompt: ["Yes", ",", " I", " do", "."])


@pytest.fixture
def stub_server(stub: StubEngine) -> Iterator[Running]:
    """A server of ``stub`` under that name."""
    with serving({"stub": stub}) as running:
        yield running
