"""Servers that run while a test does, and ways to talk to them."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.serve.app import make_app
from model.serve.guard import Access
from model.serve.limits import Limits
from model.serve.served import Served
from model.serve.server import Server
from tests.model.tiny import ROOT

SOON = 30.0  # seconds after which a test gives up; nothing is judged by it


@dataclass(frozen=True)
class Answer:
    """A response: its status, headers with lower-case names, and body."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error, whose shape is checked."""
        content = self.json()
        assert set(content) == {"error"}
        error: dict[str, Any] = content["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert isinstance(error["message"], str)
        assert error["message"]
        assert "\n" not in error["message"]
        assert len(error["message"]) <= 500
        return error


@dataclass(frozen=True)
class Running:
    """Where a server listens."""

    port: int
    models: tuple[Served, ...] = ()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=SOON)

    def send(self, raw: bytes) -> Answer:
        """The answer to ``raw`` bytes on a connection of their own."""
        with self.connect() as connection:
            connection.sendall(raw)
            return read_answer(connection)

    def ask(
        self,
        method: str,
        path: str,
        content: object = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """The answer to a request with a JSON body (or bytes, as they are)."""
        return self.send(self.request(method, path, content, headers))

    def request(
        self,
        method: str,
        path: str,
        content: object = None,
        headers: Mapping[str, str] | None = None,
    ) -> bytes:
        body = content if isinstance(content, bytes) else b""
        if content is not None and not isinstance(content, bytes):
            body = json.dumps(content).encode()
        fields = {"host": f"127.0.0.1:{self.port}", "content-length": str(len(body))}
        if content is not None:
            fields["content-type"] = "application/json"
        fields.update({name.lower(): value for name, value in (headers or {}).items()})
        lines = [f"{method} {path} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in fields.items()]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + body

    def chat(self, text: str = "hello", **settings: object) -> Answer:
        content = {"messages": [{"role": "user", "content": text}], **settings}
        return self.ask("POST", "/v1/chat/completions", content)


def read_answer(connection: socket.socket) -> Answer:
    """Reads one whole response."""
    with connection.makefile("rb") as stream:
        status = stream.readline()
        if status.startswith(b"HTTP/1.1 100 "):
            stream.readline()
            status = stream.readline()
        if not status:
            raise ConnectionError("closed without an answer")
        headers = {}
        while (line := stream.readline()) not in (b"\r\n", b""):
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.lower()] = value.strip()
        if "content-length" in headers:
            body = stream.read(int(headers["content-length"]))
        else:
            body = b""
            while size := int(stream.readline() or b"0", 16):
                body += stream.read(size)
                stream.readline()
        return Answer(int(status.split()[1]), headers, body)


def wait_until(true: Callable[[], object], seconds: float = SOON) -> float:
    """Waits until ``true()`` is; the seconds that it took."""
    begun = time.monotonic()
    while not true():
        assert time.monotonic() - begun < seconds, "waited in vain"
        time.sleep(0.005)
    return time.monotonic() - begun


@contextmanager
def serving(
    engines: Mapping[str, Any], *, access: Access | None = None, limits: Limits | None = None
) -> Iterator[Running]:
    """A server of these engines in a thread of this process."""
    limits = limits or Limits()
    models = tuple(Served(name, engine, limits.waiting) for name, engine in engines.items())
    app = make_app(models, access or Access(), limits)
    server = Server(app, [served.scheduler for served in models], limits)
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
    thread.start()
    try:
        wait_until(lambda: server.started)
        yield Running(port, models)
    finally:
        server.should_exit = True
        thread.join(SOON)
        assert not thread.is_alive()


@contextmanager
def serving_process(
    *folders: Path | str, options: tuple[str, ...] = (), **environment: str
) -> Iterator[tuple[Running, subprocess.Popen[str]]]:
    """``python -m model.serve`` as a process; what it says goes to its ``stderr``."""
    process = subprocess.Popen(
        [sys.executable, "-m", "model.serve", *map(str, folders), "--port", "0", *options],
        cwd=ROOT,
        env={**os.environ, **environment},
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )
    try:
        assert process.stderr is not None
        said = []
        while not (match := re.search(r"at http://127\.0\.0\.1:(\d+)", line := _line(process))):
            said.append(line)
            assert line, said
        yield Running(int(match[1])), process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(SOON)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        process.stderr.close()


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    return process.stderr.readline()
