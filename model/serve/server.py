"""uvicorn with time limits that it does not have, and an end that clients hear of."""

import asyncio
import contextlib
import logging
import signal
import socket
import threading
from collections.abc import Generator, Sequence
from typing import Any

import h11
import orjson
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from model.serve.errors import ApiError, too_busy
from model.serve.guard import App
from model.serve.limits import Limits
from model.serve.scheduler import Scheduler, report

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Bytes that a client may send ahead while its last request is answered.
PIPELINED_BYTES = 1 << 16


def connection_class(limits: Limits) -> type[H11Protocol]:
    """HTTP connections that end when a client sends, or reads, too slowly."""

    class Connection(H11Protocol):
        _header_timer: asyncio.TimerHandle | None = None
        _stalled_timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > limits.connections:
                self._answer(too_busy("too many connections are open"))
            else:
                self._expect_headers()

        def connection_lost(self, exc: Exception | None) -> None:
            self._cancel(self._header_timer)
            self._cancel(self._stalled_timer)
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            if self.transport.is_closing():
                return
            super().data_received(data)
            if self.conn.their_state is h11.IDLE:
                self._expect_headers()
            else:
                self._cancel(self._header_timer)
                self._header_timer = None
            # uvicorn stops reading when a client sends its next request ahead, and would not notice
            # that the client goes away meanwhile.
            ahead = len(self.conn.trailing_data[0])
            if ahead > PIPELINED_BYTES:
                self.transport.abort()
            elif ahead:
                self.flow.resume_reading()

        def send_400_response(self, msg: str) -> None:
            self._answer(ApiError(400, msg))

        def pause_writing(self) -> None:
            super().pause_writing()
            self._stalled_timer = self.loop.call_later(limits.stalled_seconds, self.transport.abort)

        def resume_writing(self) -> None:
            self._cancel(self._stalled_timer)
            super().resume_writing()

        def _expect_headers(self) -> None:
            if self._header_timer is None:
                self._header_timer = self.loop.call_later(
                    limits.header_seconds, self._headers_are_late
                )

        def _headers_are_late(self) -> None:
            message = f"the request's headers were not there after {limits.header_seconds:g} s"
            self._answer(ApiError(408, message))

        def _answer(self, error: ApiError) -> None:
            """Answers on the connection itself, before there is a request, and closes it."""
            if self.transport.is_closing():
                return
            body = orjson.dumps(error.body())
            fields = {
                **error.headers,
                "content-type": "application/json",
                "content-length": str(len(body)),
                "connection": "close",
            }
            with contextlib.suppress(h11.LocalProtocolError):
                response = h11.Response(status_code=error.status, headers=list(fields.items()))
                for event in (response, h11.Data(data=body), h11.EndOfMessage()):
                    self.transport.write(self.conn.send(event) or b"")
            self.transport.close()

        @staticmethod
        def _cancel(timer: asyncio.TimerHandle | None) -> None:
            if timer is not None:
                timer.cancel()

    return Connection


class Server(uvicorn.Server):
    """Stops on SIGINT and SIGTERM: live replies have a moment to end, then end with an error."""

    def __init__(self, app: App, schedulers: Sequence[Scheduler], limits: Limits) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=connection_class(limits),
                ws="none",
                log_config=None,
                log_level="critical",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=1,
            )
        )
        # asyncio warns of clients that go away while they are written to: they may.
        logging.getLogger("asyncio").setLevel(logging.ERROR)
        self._schedulers = schedulers
        self._grace_seconds = limits.grace_seconds

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serves until a signal comes."""
        asyncio.get_running_loop().set_exception_handler(_report)
        await super().serve(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """As uvicorn's, but the signal is not raised again at the end: stopping is no failure."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Ends replies, then connections."""
        for server in self.servers:
            server.close()
        for scheduler in self._schedulers:
            scheduler.refuse()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._grace_seconds):
                while any(s.unfinished for s in self._schedulers) and not self.force_exit:
                    await asyncio.sleep(0.02)
        for scheduler in self._schedulers:
            scheduler.close()
        await super().shutdown(sockets)


def _report(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """asyncio's own report would show the exception's message, which may hold a user's text."""
    error = context.get("exception")
    if error is not None:
        report(error)
