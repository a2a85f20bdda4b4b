"""What every request passes first: whose it is, where it comes from, and how large it is.

Web pages of others can send requests to a server on this machine through the browser that shows
them. ``Host`` guards against those that let their own name point here (DNS rebinding), ``Origin``
against all others; without CORS headers a browser shows them nothing of a reply.
"""

import asyncio
import hmac
import ipaddress
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import orjson

from model.serve.errors import ApiError
from model.serve.limits import Limits
from model.serve.scheduler import report

Message = dict[str, Any]
Scope = dict[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
App = Callable[[Any, Receive, Send], Awaitable[None]]

LOCAL_NAMES = frozenset({"localhost"})
HOST = re.compile(r"(?:\[([0-9a-fA-F:.]{2,45})\]|([a-zA-Z0-9._-]{1,255}))(?::[0-9]{1,5})?")
# What a refused client may still send before its connection is closed: some clients read the
# answer only when they have sent all.
DISCARDED_BYTES = 8 << 20
DISCARD_SECONDS = 1.0

SECURITY_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"x-frame-options", b"DENY"),
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        b"img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
]


@dataclass(frozen=True)
class Access:
    """Who may ask. ``hosts`` are the names of this server besides those of ``bound``."""

    bound: str = "127.0.0.1"
    hosts: frozenset[str] = frozenset()
    key: str | None = None

    def knows_host(self, name: str) -> bool:
        """Whether a request for the host ``name`` (without its port) may be for this server.

        Bound to the loopback device: its names. Else any address in figures too: a page can't make
        a browser send those unless it was loaded from there.
        """
        name = name.lower()
        if name in LOCAL_NAMES or name in self.hosts:
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        return address.is_loopback or not is_loopback(self.bound)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server bound to ``host``."""
    if host in LOCAL_NAMES:
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Guard:
    """ASGI middleware: refuses what may not pass, and reads bodies within their limits.

    The application finds the whole body at once, and no exception of its own leaves this place.
    """

    def __init__(self, app: App, access: Access, limits: Limits) -> None:
        self._app = app
        self._access = access
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        request = _Request(scope, receive, send)
        try:
            try:
                self._check(scope)
                body = await request.read(self._limits)
            except ApiError as error:
                await request.refuse(error)
                return
            await self._app(scope, request.replay(body), request.send)
        except _Gone:
            return
        except Exception as error:
            report(error)
            if not request.started:
                await request.refuse(ApiError(500, "the server failed at this request"))

    def _check(self, scope: Scope) -> None:
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        hosts = _values(headers, b"host")
        if len(hosts) != 1 or not self._access.knows_host(_host_name(hosts[0])):
            raise ApiError(
                403,
                "this server does not go by that Host (--allow-host NAME adds one)",
                code="host_not_allowed",
            )
        for origin in _values(headers, b"origin"):
            if not _same_origin(origin, hosts[0]):
                raise ApiError(
                    403, "requests from other web pages are refused", code="origin_not_allowed"
                )
        if self._access.key is not None and scope["path"].startswith("/v1"):
            self._check_key(_values(headers, b"authorization"))

    def _check_key(self, given: list[str]) -> None:
        assert self._access.key is not None
        expected = f"Bearer {self._access.key}".encode("latin-1")
        # The scheme's name may be written in any case (RFC 9110).
        words = given[0].split(None, 1) if len(given) == 1 else []
        shown = f"Bearer {words[1]}" if len(words) == 2 and words[0].lower() == "bearer" else ""
        if not hmac.compare_digest(shown.encode("latin-1"), expected):
            raise ApiError(
                401,
                "a key is needed: Authorization: Bearer KEY",
                code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )


class _Gone(Exception):
    """The client went away while it was read from."""


class _Request:
    """One request's way in and out."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._whole = False
        self.started = False

    async def read(self, limits: Limits) -> bytes:
        """The body. Raises ApiError when it is too large or too slow, _Gone."""
        too_large = ApiError(
            413, f"the body is larger than {limits.body:,} bytes", code="request_too_large"
        )
        for length in _values(self._scope["headers"], b"content-length"):
            if length.isascii() and length.isdigit() and int(length[:20]) > limits.body:
                raise too_large
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(limits.body_seconds):
                async for part in self._parts():
                    parts.append(part)
                    size += len(part)
                    if size > limits.body:
                        parts.clear()  # the error's traceback would keep them for a while
                        raise too_large
        except TimeoutError:
            raise ApiError(408, f"the body was not there after {limits.body_seconds:g} s") from None
        return b"".join(parts)

    async def _parts(self) -> AsyncIterator[bytes]:
        while not self._whole:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise _Gone
            self._whole = not message.get("more_body", False)
            yield message.get("body", b"")

    def replay(self, body: bytes) -> Receive:
        """The request's messages for the application: the body, then the client's departure."""
        first = True

        async def receive() -> Message:
            nonlocal first
            if first:
                first = False
                return {"type": "http.request", "body": body, "more_body": False}
            message: Message = await self._receive()
            return message

        return receive

    async def send(self, message: Message) -> None:
        """Sends what the application answers, with the headers that every answer has."""
        if message["type"] == "http.response.start":
            self.started = True
            given = list(message.get("headers", []))
            names = {name.lower() for name, _ in given}
            given += [header for header in SECURITY_HEADERS if header[0] not in names]
            if b"cache-control" not in names:
                given.append((b"cache-control", b"no-store"))
            message = {**message, "headers": given}
        await self._send(message)

    async def refuse(self, error: ApiError) -> None:
        """Answers with ``error``, and closes the connection if the body is not read to its end."""
        headers = dict(error.headers)
        if not self._whole:
            await self._discard()
            headers["connection"] = "close"
        for message in response(error.status, error.body(), headers):
            await self.send(message)

    async def _discard(self) -> None:
        left = DISCARDED_BYTES
        try:
            async with asyncio.timeout(DISCARD_SECONDS):
                async for part in self._parts():
                    left -= len(part)
                    if left < 0:
                        return
        except TimeoutError:
            return


def response(status: int, content: object, headers: dict[str, str]) -> list[Message]:
    """ASGI messages of a JSON response."""
    body = orjson.dumps(content)
    fields = {**headers, "content-type": "application/json", "content-length": str(len(body))}
    return [
        {
            "type": "http.response.start",
            "status": status,
            "headers": [(k.encode("latin-1"), v.encode("latin-1")) for k, v in fields.items()],
        },
        {"type": "http.response.body", "body": body},
    ]


def _values(headers: list[tuple[bytes, bytes]], name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in headers if key.lower() == name]


def _host_name(host: str) -> str:
    """The name in a Host header, without port and brackets; '' if it can't be read."""
    match = HOST.fullmatch(host)
    return (match[1] or match[2]) if match else ""


def _same_origin(origin: str, host: str) -> bool:
    """Whether a page of ``origin`` was loaded from ``host``."""
    scheme, _, place = origin.partition("://")
    return scheme in ("http", "https") and place.lower() == host.lower()
