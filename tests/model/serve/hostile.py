"""Requests that nobody with good intentions would send, by kind; each a function of chance."""

import json
import random
import socket
import struct
from collections.abc import Callable

from model.template import CONTROL_TOKENS
from tests.model.serve.running import Answer, Running, read_answer

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
Attack = Callable[[Running, random.Random], Answer | None]


def message(text: object) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": text}], "max_tokens": 4}


def garbage(chance: random.Random, depth: int = 0) -> object:
    """Any JSON value, of any size within reason."""
    kind = chance.randrange(9 if depth < 4 else 6)
    if kind == 0:
        return chance.choice([None, True, False])
    if kind == 1:
        return chance.choice([0, -1, 1, 2**31, 2**63, -(2**63) - 1, 10**30])
    if kind == 2:
        return chance.choice([0.0, -0.0, 1e308, -1e-320, 0.5])
    if kind < 6:
        return chance.choice(["", "x", "\0", "💥" * 50, "a" * 5_000, "<|end|>", "../../etc/passwd"])
    if kind == 6:
        return [garbage(chance, depth + 1) for _ in range(chance.randrange(6))]
    names = ["role", "content", "type", "text", "", "__proto__", "model", "n"]
    return {chance.choice(names): garbage(chance, depth + 1) for _ in range(chance.randrange(6))}


def wrong_types(server: Running, chance: random.Random) -> Answer:
    fields = ["model", "messages", "temperature", "top_p", "top_k", "min_p", "n", "seed", "stop",
              "stream", "max_tokens", "logprobs", "top_logprobs", "stream_options", "truncation",
              "presence_penalty", "prompt", "tools", "user", "anything"]  # fmt: skip
    content = message("hello")
    for field in chance.sample(fields, 3):
        content[field] = garbage(chance)
    return server.ask("POST", chance.choice([CHAT, TEXT]), content)


def over_long(server: Running, chance: random.Random) -> Answer:
    size = chance.choice([500, 5_000, 100_000, 900_000])
    text = chance.choice(["a", "hello ", "é", "\u0000", "💥", " "])
    return server.ask("POST", CHAT, message((text * size)[: 900_000 // len(text.encode())]))


def many_of_all(server: Running, chance: random.Random) -> Answer:
    content: dict[str, object] = message("x")
    content |= chance.choice(
        [
            {"n": 10**9},
            {"max_tokens": 10**18},
            {"stop": ["x"] * 100_000},
            {"stop": "x" * 500_000},
            {"messages": [{"role": "user", "content": "x"}] * 15_000},
            {"messages": [0] * 300_000},
            {"messages": [{"role": "user", "content": [{"type": "text", "text": ""}] * 20_000}]},
            {str(number): 1 for number in range(50_000)},
            {"logit_bias": {str(number): 1 for number in range(50_000)}},
            {"top_logprobs": 10**6, "logprobs": True},
        ]
    )
    return server.ask("POST", CHAT, content)


def many_prompts(server: Running, chance: random.Random) -> Answer:
    prompt = chance.choice(
        [["a"] * 100_000, [[1]] * 100_000, [1] * 300_000, [2**70], [-5], [[]], [[[1]]], [1, "a"]]
    )
    return server.ask("POST", TEXT, {"prompt": prompt, "max_tokens": 2})


def not_numbers(server: Running, chance: random.Random) -> Answer:
    value = chance.choice(["NaN", "Infinity", "-Infinity", "1e999", "0x10", "1_000", "--1", "01"])
    field = chance.choice(["temperature", "top_p", "min_p", "seed", "n", "repetition_penalty"])
    body = json.dumps(message("x"))[:-1] + f', "{field}": {value}}}'
    return server.ask("POST", CHAT, body.encode())


def control_tokens(server: Running, chance: random.Random) -> Answer:
    words = [*CONTROL_TOKENS, "<|", "|>", "\ufdd0", "<\ufdd0|end|>", "hello", "</s>", "{{ x }}"]
    text = "".join(chance.choices(words, k=6))
    return server.ask("POST", CHAT, message(text))


def malformed(server: Running, chance: random.Random) -> Answer:
    good = json.dumps(message("hello")).encode()
    body = bytearray(good)
    for _ in range(chance.randrange(1, 5)):
        body[chance.randrange(len(body))] = chance.randrange(256)
    broken = chance.choice(
        [bytes(body), good[: chance.randrange(len(good))], b"\xff\xfe" + good, good * 2,
         b"[" * 200_000, b'{"a":' * 5_000, b"{" + b'"a":1,' * 100_000 + b'"a":1}', b"\0" * 1_000,
         good.decode().encode("utf-16"), b'{"messages": "\xed\xa0\x80"}']
    )  # fmt: skip
    return server.ask("POST", CHAT, broken)


def wrong_place(server: Running, chance: random.Random) -> Answer:
    headers = chance.choice(
        [{"host": "evil.example"}, {"host": "localhost.evil.example:80"}, {"host": ""},
         {"origin": "https://evil.example"}, {"origin": "null"},
         {"authorization": "Bearer " + "x" * 5_000}, {"content-type": "text/plain"},
         {"content-type": "application/json; charset=utf-16"}, {"content-type": "x" * 5_000},
         {"content-encoding": "gzip"}, {"transfer-encoding": "gzip"}, {"x-a": "\x80\xff"},
         {"x-forwarded-for": "1.2.3.4", "x-forwarded-host": "evil.example"},
         {"upgrade": "websocket", "connection": "upgrade"}, {"expect": "100-continue"},
         {"range": "bytes=0-1"}, {"cookie": "a=b;" * 1_000}]
    )  # fmt: skip
    path = chance.choice([CHAT, TEXT, "/v1/models", "/", "/health", "/v1/models/" + "x" * 3_000])
    return server.ask(chance.choice(["GET", "POST", "OPTIONS"]), path, message("x"), headers)


def strange_paths(server: Running, chance: random.Random) -> Answer:
    path = chance.choice(
        ["/../../etc/passwd", "/page.js%00", "/%2e%2e/app.py", "//evil.example/", "/v1//models",
         "/v1/chat/completions/", "/?" + "q" * 5_000, "/%ff%fe", "/v1/models/..%2f..%2f", "*",
         "/;a", "http://evil.example/v1/models"]
    )  # fmt: skip
    method = chance.choice(["GET", "POST", "PUT", "DELETE", "PATCH", "TRACE", "CONNECT", "BREW"])
    return server.ask(method, path)


def large_headers(server: Running, chance: random.Random) -> Answer:
    size = chance.choice([10_000, 100_000, 400_000])
    lines = chance.choice([b"x: " + b"y" * size, b"\r\n".join([b"a: b"] * (size // 6))])
    return server.send(b"GET / HTTP/1.1\r\nhost: localhost\r\n" + lines + b"\r\n\r\n")


def not_http(server: Running, chance: random.Random) -> Answer:
    raw = chance.choice(
        [chance.randbytes(300) + b"\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 20,
         b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET / HTTP/1.1\r\nhost: localhost\r\nbad\r\n\r\n",
         b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
         b"POST / HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n"]
    )  # fmt: skip
    return server.send(raw)


def large_bodies(server: Running, chance: random.Random) -> Answer:
    size = (1 << 20) + chance.choice([1, 100_000, 4_000_000])
    if chance.random() < 0.5:
        return server.ask("POST", CHAT, b"x" * size)
    head = b"POST " + CHAT.encode() + b" HTTP/1.1\r\nhost: localhost\r\n"
    head += b"content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
    part = b"10000\r\n" + b"x" * 65_536 + b"\r\n"
    return server.send(head + part * (size // 65_536 + 1) + b"0\r\n\r\n")


def departure(server: Running, chance: random.Random) -> None:
    """Leaves at some point: within the headers, the body, the wait, the reply; by FIN or RST."""
    content = {**message("hello"), "max_tokens": 90, "n": chance.randrange(1, 4)}
    content["stream"] = chance.random() < 0.5
    raw = server.request("POST", CHAT, content)
    stage = chance.choice(["headers", "body", "wait", "reply"])
    with server.connect() as connection:
        if stage == "headers":
            connection.sendall(raw[: chance.randrange(len(raw) // 2)])
        elif stage == "body":
            connection.sendall(raw[:-5])
        else:
            connection.sendall(raw)
            if stage == "reply":
                connection.recv(chance.choice([1, 100, 5_000]))
        if chance.random() < 0.5:
            linger = struct.pack("ii", 1, 0)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)


def half_closed(server: Running, chance: random.Random) -> Answer | None:
    """Closes its own side early, or sends a second request before the first is answered."""
    raw = server.request("POST", CHAT, message("x"))
    with server.connect() as connection:
        connection.sendall(raw if chance.random() < 0.5 else raw[: len(raw) // 2])
        if chance.random() < 0.5:
            connection.shutdown(socket.SHUT_WR)
            connection.recv(1)
            return None
        connection.sendall(raw + b"G" * chance.randrange(5_000))
        return read_answer(connection)


ATTACKS: list[Attack] = [
    wrong_types, wrong_types, over_long, many_of_all, many_prompts, not_numbers, control_tokens,
    malformed, malformed, wrong_place, strange_paths, large_headers, not_http, large_bodies,
    departure, departure, half_closed,
]  # fmt: skip
