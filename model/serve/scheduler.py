"""One thread that owns a model's engine: replies that wait together are generated together."""

import asyncio
import contextlib
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from model.engine import Piece, Sampling
from model.serve.errors import ApiError, too_busy

# Prompt tokens that one step takes in, so that live replies don't wait long for new ones' prompts.
PROMPT_TOKENS = 512
# Between two deliveries to the clients, for which the event loop is woken.
DELIVERY_SECONDS = 0.01


class SlotEngine(Protocol):
    """What the scheduler needs of ``model.engine.Engine``."""

    slots: int

    @property
    def free(self) -> int:
        """Slots that are free now."""
        ...

    def add(
        self, prompt: Sequence[int], sampling: Sampling, end: Collection[int] | None = None
    ) -> int:
        """Puts a prompt into a free slot; its handle."""
        ...

    def step(self) -> list[tuple[int, Piece]]:
        """One more token for every live reply."""
        ...

    def cancel(self, handle: int) -> None:
        """Frees a slot."""
        ...


@dataclass
class News:
    """What is new of a reply. It ends with an error, or with a piece that has ``finish``."""

    pieces: list[Piece] = field(default_factory=list)
    error: ApiError | None = None


@dataclass(eq=False)
class Job:
    """A reply to make. ``receive`` is called in the event loop with what is new of it."""

    prompt: Sequence[int]
    sampling: Sampling
    receive: Callable[[News], None]


class Scheduler:
    """The queue before an engine's slots, first come, first served."""

    def __init__(self, engine: SlotEngine, waiting: int) -> None:
        """At most ``waiting`` replies wait for a slot."""
        self._engine = engine
        self._capacity = engine.slots + waiting
        self._loop: asyncio.AbstractEventLoop | None = None
        self._changed = threading.Condition()
        # Shared with the thread, under the condition's lock.
        self._waiting: deque[Job] = deque()
        self._cancelled: set[Job] = set()
        self._unfinished = 0
        self._accepts = True
        self._closed = False
        # The thread's own.
        self._live: dict[int, Job] = {}
        self._outbox: dict[Job, News] = {}
        self._delivered = 0.0
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Starts the thread; news go to ``loop``."""
        self._loop = loop
        self._thread.start()

    @property
    def unfinished(self) -> int:
        """Replies that wait or are being made."""
        return self._unfinished

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queues all of ``jobs``, or none: raises ApiError (503) when there is no room for them."""
        with self._changed:
            if not self._accepts:
                raise too_busy("the server is stopping")
            if self._unfinished + len(jobs) > self._capacity:
                raise too_busy(f"{self._unfinished} replies are under way or waiting: try again")
            self._unfinished += len(jobs)
            self._waiting.extend(jobs)
            self._changed.notify()

    def cancel(self, jobs: Sequence[Job]) -> None:
        """Nobody waits for these any more; finished ones are ignored."""
        with self._changed:
            self._cancelled.update(jobs)
            self._changed.notify()

    def refuse(self) -> None:
        """Takes no more, and ends those that wait for a slot; live replies go on."""
        with self._changed:
            self._accepts = False
            waiting, self._waiting = list(self._waiting), deque()
            self._unfinished -= len(waiting)
        for job in waiting:
            job.receive(News(error=too_busy("the server is stopping")))

    def close(self) -> None:
        """Ends the thread after its present step; live replies end with an error."""
        self.refuse()
        with self._changed:
            self._closed = True
            self._changed.notify()

    def join(self, seconds: float) -> None:
        """Waits for the thread to end."""
        if self._thread.is_alive():
            self._thread.join(seconds)

    @property
    def alive(self) -> bool:
        """Whether replies can be made."""
        return self._thread.is_alive()

    # What follows runs in the thread.

    def _run(self) -> None:
        reason = "the server is stopping"
        try:
            while self._next_step():
                try:
                    if self._live:
                        for handle, piece in self._engine.step():
                            self._take(handle, piece)
                except Exception as error:
                    report(error)
                    self._fail("the model failed at this reply")
                self._deliver()
        except Exception as error:  # the engine can't even free its slots
            report(error)
            reason = "the model has failed"
        with self._changed:
            self._accepts = False
            waiting, self._waiting = list(self._waiting), deque()
            self._unfinished = 0
        for job in (*waiting, *self._live.values()):
            self._news(job).error = too_busy(reason)
        self._deliver(now=True)

    def _next_step(self) -> bool:
        """Waits for work, frees and fills slots; False when the scheduler was closed."""
        with self._changed:
            while not (self._closed or self._waiting or self._live):
                self._cancelled.clear()
                self._changed.wait()
            if self._closed:
                return False
            gone, self._cancelled = self._cancelled, set()
            if gone:
                kept = [job for job in self._waiting if job not in gone]
                self._unfinished -= len(self._waiting) - len(kept)
                self._waiting = deque(kept)
        for handle in [handle for handle, job in self._live.items() if job in gone]:
            self._engine.cancel(handle)
            self._finish(handle)
        tokens = 0
        for _ in range(self._engine.free):
            with self._changed:
                if not self._waiting or tokens >= PROMPT_TOKENS:
                    break
                job = self._waiting.popleft()
            tokens += len(job.prompt)
            self._admit(job)
        return True

    def _admit(self, job: Job) -> None:
        try:
            self._live[self._engine.add(job.prompt, job.sampling)] = job
        except ValueError as error:
            with self._changed:
                self._unfinished -= 1
            self._news(job).error = ApiError(400, str(error))

    def _news(self, job: Job) -> News:
        return self._outbox.setdefault(job, News())

    def _take(self, handle: int, piece: Piece) -> None:
        self._news(self._live[handle]).pieces.append(piece)
        if piece.finish is not None:
            self._finish(handle)

    def _finish(self, handle: int) -> None:
        del self._live[handle]
        with self._changed:
            self._unfinished -= 1

    def _fail(self, reason: str) -> None:
        """The engine broke: its live replies end, the next ones find it empty."""
        for handle, job in list(self._live.items()):
            self._engine.cancel(handle)
            self._finish(handle)
            self._news(job).error = ApiError(503, reason, code="engine_failed")

    def _deliver(self, now: bool = False) -> None:
        if not self._outbox:
            return
        moment = time.monotonic()
        if not now and self._live and moment - self._delivered < DELIVERY_SECONDS:
            return
        self._delivered = moment
        outbox, self._outbox = self._outbox, {}
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # a closed loop: nobody is left to hear of it
            self._loop.call_soon_threadsafe(_hand_out, outbox)


def _hand_out(outbox: dict[Job, News]) -> None:
    for job, news in outbox.items():
        job.receive(news)


def report(error: BaseException) -> None:
    """Where a bug showed, on stderr. Without its message, which may hold a user's text."""
    trace = "".join(traceback.format_tb(error.__traceback__))
    print(f"serve: {type(error).__name__}\n{trace}", end="", file=sys.stderr, flush=True)
