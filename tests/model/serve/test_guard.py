"""Who may ask, from where, and how slowly."""

import socket
import time
from collections.abc import Iterator

import pytest

from model.serve.guard import Access, is_loopback
from model.serve.limits import Limits
from model.tokenizer import ChatTokenizer
from tests.model.serve.running import SOON, Running, read_answer, serving, wait_until
from tests.model.stub_engine import StubEngine

KEY = "sk-a-key"


@pytest.fixture(scope="module")
def server(tokenizer: ChatTokenizer) -> Iterator[Running]:
    """One with short limits, and a name of its own."""
    limits = Limits(header_seconds=0.5, body_seconds=0.5, connections=12, body=100_000)
    access = Access(hosts=frozenset({"parley.example"}))
    engine = StubEngine(tokenizer, lambda prompt: ["Yes"])
    with serving({"stub": engine}, access=access, limits=limits) as running:
        yield running


@pytest.fixture(scope="module")
def locked(tokenizer: ChatTokenizer) -> Iterator[Running]:
    """One that asks for a key."""
    engine = StubEngine(tokenizer, lambda prompt: ["Yes"])
    with serving({"stub": engine}, access=Access(key=KEY)) as running:
        yield running


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST:80", "127.0.0.1:99", "127.9.9.9", "[::1]:5", "parley.example:8000"],
)
def test_its_own_names_are_known(server: Running, host: str) -> None:
    assert server.ask("GET", "/v1/models", headers={"host": host}).status == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "localhost.evil.example", "10.0.0.1", "[::2]", "localhost@evil.example",
     "evil.example/localhost", "", "localhost:port", "127.0.0.1.nip.io", "[localhost]"],
)  # fmt: skip
def test_a_name_that_points_here_is_not_enough(server: Running, host: str) -> None:
    for path in ("/", "/v1/models", "/health"):
        answer = server.ask("GET", path, headers={"host": host})
        assert (answer.status, answer.error["code"]) == (403, "host_not_allowed")


def test_two_hosts_or_none_are_refused(server: Running) -> None:
    two = b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\nhost: evil.example\r\n\r\n"
    assert server.send(two).status in (400, 403)
    assert server.send(b"GET /v1/models HTTP/1.1\r\n\r\n").status == 400
    assert server.send(b"GET /v1/models HTTP/1.0\r\n\r\n").status == 403


def test_a_server_for_the_network_is_known_by_its_addresses() -> None:
    access = Access(bound="0.0.0.0", hosts=frozenset({"my-server"}))
    for host in ("192.168.1.5", "::1", "localhost", "my-server"):
        assert access.knows_host(host)
    assert not access.knows_host("evil.example")
    assert [is_loopback(h) for h in ("127.0.0.1", "::1", "localhost")] == [True] * 3
    assert [is_loopback(h) for h in ("0.0.0.0", "::", "10.0.0.1", "my-server", "")] == [False] * 5


@pytest.mark.parametrize(
    "origin",
    ["https://evil.example", "null", "http://localhost:1", "http://127.0.0.1", "file://", "",
     "http://127.0.0.1:PORT.evil.example", "http://evil.example@127.0.0.1:PORT"],
)  # fmt: skip
def test_pages_of_others_are_refused(server: Running, origin: str) -> None:
    headers = {"origin": origin.replace("PORT", str(server.port))}
    for method, path in (("POST", "/v1/chat/completions"), ("GET", "/v1/models"), ("OPTIONS", "/")):
        answer = server.ask(method, path, headers=headers)
        assert (answer.status, answer.error["code"]) == (403, "origin_not_allowed")
        assert not any(name.startswith("access-control") for name in answer.headers)


def test_its_own_page_may_ask(server: Running) -> None:
    answer = server.ask("GET", "/v1/models", headers={"origin": server.url})
    assert answer.status == 200
    assert not any(name.startswith("access-control") for name in answer.headers)


def test_every_answer_has_the_headers_that_keep_browsers_safe(server: Running) -> None:
    for path in ("/", "/v1/models", "/nothing"):
        headers = server.ask("GET", path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["content-security-policy"].startswith(
            "default-src 'none'; script-src 'self'"
        )
        assert "unsafe" not in headers["content-security-policy"]
        assert "server" not in headers
    assert server.ask("GET", "/v1/models").headers["cache-control"] == "no-store"


# --- the key


@pytest.mark.parametrize(
    "given",
    [None, "", KEY, "Bearer", "Bearer wrong", f"Bearer {KEY}x", f"Basic {KEY}", f"Bearer  x {KEY}",
     "Bearer sk-a-kéy"],
)  # fmt: skip
def test_without_the_key_nothing_is_told(locked: Running, given: str | None) -> None:
    headers = {} if given is None else {"authorization": given}
    for method, path in (("GET", "/v1/models"), ("POST", "/v1/completions"), ("GET", "/v1/x")):
        answer = locked.ask(method, path, headers=headers)
        assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")
        assert answer.headers["www-authenticate"] == "Bearer"


def test_with_the_key_all_is_as_usual(locked: Running) -> None:
    for given in (f"Bearer {KEY}", f"bearer {KEY}"):
        assert locked.ask("GET", "/v1/models", headers={"authorization": given}).status == 200
    # The page, which asks for the key, and health have nothing to hide.
    assert locked.ask("GET", "/").status == 200
    assert locked.ask("GET", "/health").json() == {"status": "ok"}


# --- slow and large


def chunked(port: int, size: int) -> bytes:
    head = f"POST /v1/completions HTTP/1.1\r\nhost: localhost:{port}\r\n"
    head += "content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
    return head.encode() + f"{size:x}\r\n".encode() + b"x" * size + b"\r\n0\r\n\r\n"


def test_a_large_body_is_refused_with_and_without_its_length(server: Running) -> None:
    for raw in (
        server.request("POST", "/v1/completions", b"x" * 100_001),
        chunked(server.port, 100_001),
        chunked(server.port, 3_000_000),
    ):
        answer = server.send(raw)
        assert (answer.status, answer.error["code"]) == (413, "request_too_large")
    assert server.send(chunked(server.port, 1_000)).status == 400


def test_a_length_alone_is_enough_to_refuse(server: Running) -> None:
    for length in ("100001", "9" * 18):
        head = server.request("POST", "/v1/completions", b"", {"content-length": length})
        answer = server.send(head)
        assert answer.status == 413
        assert answer.headers["connection"] == "close"


@pytest.mark.parametrize(
    "start", [b"", b"G", b"GET / HTTP/1.1\r\nhost: localhost\r\n", b"GET / HTTP/1.1\r\nx: y"]
)
def test_headers_that_never_end_are_not_waited_for(server: Running, start: bytes) -> None:
    with server.connect() as connection:
        connection.sendall(start)
        answer = read_answer(connection)
        assert (answer.status, answer.error["message"]) == (
            408,
            "the request's headers were not there after 0.5 s",
        )
        assert connection.recv(1) == b""


def cut_off(connection: socket.socket, data: bytes) -> bool:
    """Whether the server ends a connection on which ``data`` trickles in."""
    begun = time.monotonic()
    try:
        while time.monotonic() - begun < SOON:
            connection.sendall(data)
            time.sleep(0.05)
    except OSError:
        return True
    return False


def test_headers_that_trickle_are_not_waited_for(server: Running) -> None:
    with server.connect() as connection:
        connection.sendall(server.request("GET", "/health"))
        assert read_answer(connection).status == 200
        # On a connection that was used before, too.
        assert cut_off(connection, b"g")


def test_a_body_that_trickles_is_not_waited_for(server: Running) -> None:
    with server.connect() as connection:
        connection.sendall(
            server.request("POST", "/v1/completions", b"{", {"content-length": "100"})
        )
        answer = read_answer(connection)
        assert answer.status == 408
        assert answer.headers["connection"] == "close"


@pytest.mark.parametrize(
    "raw",
    [b"\r\n\r\n\0\1\2", b"hello\r\n\r\n", b"GET / HTTP/1.1\r\nho st: x\r\n\r\n",
     b"GET /\xff HTTP/1.1\r\nhost: localhost\r\n\r\n",
     b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: x\r\n\r\n",
     b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
     b"GET / HTTP/1.1\r\nhost: localhost\r\nx: " + b"y" * 200_000 + b"\r\n\r\n",
     b"GET /" + b"y" * 200_000 + b" HTTP/1.1\r\nhost: localhost\r\n\r\n"],
    ids=lambda value: str(value)[:30],
)  # fmt: skip
def test_what_is_not_http_is_answered_in_kind(server: Running, raw: bytes) -> None:
    with server.connect() as connection:
        # What is refused early may be closed before all of it is sent.
        try:
            connection.sendall(raw)
            answer = read_answer(connection)
        except ConnectionError:
            return
        assert answer.status == 400
        assert answer.error["type"] == "invalid_request_error"


def test_more_connections_than_allowed_are_told_so(server: Running) -> None:
    held: list[socket.socket] = []
    try:
        for _ in range(12):
            held.append(server.connect())
        time.sleep(0.1)
        with server.connect() as one_more:
            answer = read_answer(one_more)
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    finally:
        for connection in held:
            connection.close()

    def welcome() -> bool:
        with server.connect() as connection:
            connection.sendall(server.request("GET", "/health"))
            return read_answer(connection).status == 200

    wait_until(welcome)
