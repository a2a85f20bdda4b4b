"""Requests that wait together are made together; whoever goes away frees the place."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from model.engine import Engine
from model.serve.limits import Limits
from model.serve.scheduler import Scheduler
from model.tokenizer import ChatTokenizer
from model.transformer import Transformer
from tests.model.serve.running import Running, read_answer, serving, wait_until
from tests.model.stub_engine import StubEngine
from tests.model.tiny import chat_config, lively

ENDLESS = ["word "] * 10_000


@pytest.fixture
def slow(tokenizer: ChatTokenizer) -> StubEngine:
    """An engine of two slots that goes on for minutes, unless asked for a "short" reply."""

    def script(prompt: str) -> list[str]:
        return ["ok"] if "short" in prompt else ENDLESS

    return StubEngine(tokenizer, script, slots=2, pause=0.01, seq_len=20_000)


@pytest.fixture
def server(slow: StubEngine) -> Iterator[Running]:
    with serving({"slow": slow}, limits=Limits(waiting=2, grace_seconds=0.2)) as running:
        yield running


@contextmanager
def asking(server: Running, text: str = "endless", **settings: object) -> Iterator[socket.socket]:
    """A request under way."""
    content = {"messages": [{"role": "user", "content": text}], **settings}
    with server.connect() as connection:
        connection.sendall(server.request("POST", "/v1/chat/completions", content))
        yield connection


def unfinished(server: Running) -> int:
    return server.models[0].scheduler.unfinished


def test_those_who_wait_together_are_served_together(tokenizer: ChatTokenizer) -> None:
    engine = StubEngine(tokenizer, lambda prompt: ["a"] * 30, slots=8, pause=0.005)
    with serving({"stub": engine}) as running, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: running.chat().status, range(24)))
    assert answers == [200] * 24
    assert engine.largest_batch == 8
    # One after another they would take 24 x 31 steps.
    assert engine.steps < 24 * 31 / 2


def test_a_reply_does_not_depend_on_its_company(tokenizer: ChatTokenizer) -> None:
    model = lively(Transformer(chat_config(tokenizer, seq_len=64)))
    with serving({"tiny": Engine(model, tokenizer, slots=4)}) as running:

        def ask(number: int) -> str:
            text = "hello there " * (number % 4)
            answer = running.chat(text, seed=number, max_tokens=5 + number)
            content: str = answer.json()["choices"][0]["message"]["content"]
            return content

        alone = [ask(number) for number in range(12)]
        with ThreadPoolExecutor(12) as pool:
            together = list(pool.map(ask, range(12)))
    assert together == alone


@pytest.mark.parametrize("stream", [False, True])
def test_whoever_goes_away_frees_the_slot_within_a_second(server: Running, stream: bool) -> None:
    with asking(server, stream=stream), asking(server, stream=stream) as second:
        wait_until(lambda: unfinished(server) == 2)
        if stream:
            assert second.recv(100)
    assert wait_until(lambda: unfinished(server) == 0) < 1
    assert server.chat("short").status == 200


def test_whoever_resets_the_connection_frees_the_slot(server: Running) -> None:
    with asking(server, stream=True) as connection:
        wait_until(lambda: unfinished(server) == 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    assert wait_until(lambda: unfinished(server) == 0) < 1


def test_whoever_sends_more_and_goes_away_frees_the_slot(server: Running) -> None:
    with asking(server) as connection:
        connection.sendall(server.request("GET", "/health"))
        wait_until(lambda: unfinished(server) == 1)
    assert wait_until(lambda: unfinished(server) == 0) < 1


def test_a_request_sent_ahead_is_answered_in_turn(server: Running) -> None:
    with asking(server, "short") as connection:
        connection.sendall(server.request("GET", "/health"))
        with connection.makefile("rb") as stream:
            text = b""
            while b'"ok"}' not in text:
                text += stream.readline(10_000) if b"ok" not in text else stream.read(1)
    assert text.count(b"HTTP/1.1 200") == 2


def test_whoever_sends_too_much_ahead_is_cut_off(server: Running) -> None:
    with asking(server) as connection:
        wait_until(lambda: unfinished(server) == 1)
        with pytest.raises(ConnectionError):
            connection.sendall(b"x" * 100_000_000)
    assert wait_until(lambda: unfinished(server) == 0) < 1


def test_a_waiting_request_can_be_given_up(server: Running, slow: StubEngine) -> None:
    with asking(server), asking(server):
        wait_until(lambda: len(slow.asked) == 2)
        with asking(server, "short"):
            wait_until(lambda: unfinished(server) == 3)
        assert wait_until(lambda: unfinished(server) == 2) < 1
    wait_until(lambda: unfinished(server) == 0)
    assert len(slow.asked) == 2


def test_a_full_queue_is_said_at_once(server: Running) -> None:
    with asking(server), asking(server), asking(server), asking(server) as last:
        wait_until(lambda: unfinished(server) == 4)
        answer = server.chat("short")
        assert (answer.status, answer.error["code"]) == (503, "overloaded")
        assert answer.headers["retry-after"] == "1"
        # Several replies come in together or not at all.
        last.close()
        wait_until(lambda: unfinished(server) == 3)
        assert server.chat("short", n=2).status == 503
        assert unfinished(server) == 3
        # What needs no slot is answered meanwhile.
        assert server.ask("GET", "/health").status == 200
    wait_until(lambda: unfinished(server) == 0)
    assert server.chat("short").status == 200


def test_a_stream_is_sent_while_it_is_made(server: Running) -> None:
    with asking(server, stream=True) as connection:
        seen = b""
        while seen.count(b"word") < 5:
            seen += connection.recv(10_000)
        assert b"[DONE]" not in seen
        assert unfinished(server) == 1


def test_a_reader_that_stalls_is_cut_off(tokenizer: ChatTokenizer) -> None:
    engine = StubEngine(tokenizer, lambda p: ["x" * 40_000] * 500, seq_len=20_000)
    with serving({"stub": engine}, limits=Limits(stalled_seconds=0.3)) as running:
        with asking(running, stream=True) as connection:
            wait_until(lambda: engine.asked and unfinished(running) == 0)
            time.sleep(0.6)  # read by nobody
            received = 0
            with contextlib.suppress(ConnectionResetError):
                while part := connection.recv(1 << 20):
                    received += len(part)
            assert received < 40_000 * 500
        assert running.ask("GET", "/health").status == 200


def test_an_engine_that_breaks_is_a_503_and_the_next_is_served(
    server: Running, slow: StubEngine, capfd: pytest.CaptureFixture[str]
) -> None:
    with asking(server) as whole, asking(server, stream=True) as streamed:
        wait_until(lambda: unfinished(server) == 2)
        assert streamed.recv(100)
        slow.broken = True
        answer = read_answer(whole)
        assert (answer.status, answer.error["code"]) == (503, "engine_failed")
        text = b""
        while chunk := streamed.recv(10_000):
            text += chunk
            if b"engine_failed" in text:
                break
        assert b"[DONE]" not in text
    slow.broken = False
    assert server.chat("short").status == 200
    said = capfd.readouterr().err
    assert "RuntimeError" in said
    assert slow.complaint not in said


def test_a_server_that_stops_ends_its_replies(slow: StubEngine) -> None:
    with serving({"slow": slow}, limits=Limits(waiting=2, grace_seconds=0.2)) as running:
        connections = [running.connect() for _ in range(3)]
        for stream, connection in zip((False, True, False), connections, strict=True):
            content = {"messages": [{"role": "user", "content": "x"}], "stream": stream}
            connection.sendall(running.request("POST", "/v1/chat/completions", content))
            wait_until(lambda: unfinished(running) == len(slow.asked) or unfinished(running) == 3)
        wait_until(lambda: unfinished(running) == 3)
    # Two were being made, the third waited.
    for connection in connections[::2]:
        answer = read_answer(connection)
        assert (answer.status, answer.error["message"]) == (503, "the server is stopping")
    with connections[1].makefile("rb") as events:
        assert b"the server is stopping" in events.read()
    for connection in connections:
        connection.close()


def test_a_reply_has_a_moment_to_end(tokenizer: ChatTokenizer) -> None:
    engine = StubEngine(tokenizer, lambda prompt: ["a"] * 20, pause=0.01)
    results = []
    with serving({"stub": engine}) as running:
        thread = threading.Thread(target=lambda: results.append(running.chat()))
        thread.start()
        wait_until(lambda: engine.asked)
    thread.join()
    assert results[0].status == 200
    assert results[0].json()["choices"][0]["message"]["content"] == "a" * 20


def test_an_idle_server_rests(slow: StubEngine, server: Running) -> None:
    assert server.chat("short").status == 200
    before = slow.steps
    time.sleep(0.2)
    assert slow.steps == before


def test_a_scheduler_can_be_closed_before_it_starts(slow: StubEngine) -> None:
    scheduler = Scheduler(slow, 1)
    scheduler.close()
    scheduler.join(1)
    assert not scheduler.alive
