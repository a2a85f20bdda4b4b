"""The replies to one request, as the event loop sees them."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from types import TracebackType

from starlette.requests import Request

from model.engine import Piece, Sampling
from model.serve.scheduler import Job, News, Scheduler


class ClientGone(Exception):
    """The client went away: nobody reads the rest."""


class Exchange:
    """Replies under way for one request; leaving its ``with`` block frees their slots."""

    def __init__(
        self, scheduler: Scheduler, work: Sequence[tuple[Sequence[int], Sampling]]
    ) -> None:
        """Queues a reply for each prompt and its settings. Raises ApiError (503)."""
        self._scheduler = scheduler
        self._jobs = [
            Job(prompt, sampling, self._receiver(index))
            for index, (prompt, sampling) in enumerate(work)
        ]
        self._news: dict[int, list[Piece]] = {}
        self._unfinished = set(range(len(self._jobs)))
        self._error: Exception | None = None
        self._changed = asyncio.Event()
        self._watcher: asyncio.Task[None] | None = None
        scheduler.submit(self._jobs)

    def watch(self, request: Request) -> None:
        """From now on, frees the slots when the client goes away."""
        self._watcher = asyncio.get_running_loop().create_task(self._wait_for_departure(request))

    async def news(self) -> AsyncIterator[list[tuple[int, list[Piece]]]]:
        """What is new, by the reply's number, until all are finished.

        Raises ApiError when a reply can't go on, ClientGone.
        """
        while True:
            await self._changed.wait()
            self._changed.clear()
            news, self._news = self._news, {}
            if news:
                yield list(news.items())
            if self._error is not None:
                raise self._error
            if not self._unfinished:
                return

    def close(self) -> None:
        """Frees the slots of what is not finished."""
        if self._watcher is not None:
            self._watcher.cancel()
        if self._unfinished:
            self._scheduler.cancel([self._jobs[index] for index in self._unfinished])
            self._unfinished = set()

    def __enter__(self) -> "Exchange":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    async def _wait_for_departure(self, request: Request) -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        self._watcher = None
        self.close()
        self._end(ClientGone())

    def _end(self, error: Exception) -> None:
        self._error = self._error or error
        self._changed.set()

    def _receiver(self, index: int) -> Callable[[News], None]:
        def receive(news: News) -> None:
            if index not in self._unfinished:
                return
            if news.pieces:
                self._news.setdefault(index, []).extend(news.pieces)
                if news.pieces[-1].finish is not None:
                    self._unfinished.discard(index)
            if news.error is not None:
                self._unfinished.discard(index)
                self._end(news.error)
            self._changed.set()

        return receive
