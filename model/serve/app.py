"""The web application: the API of OpenAI over one engine a model, and the chat page."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

import orjson
from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from model.serve.errors import ApiError
from model.serve.exchange import ClientGone, Exchange
from model.serve.guard import Access, Guard
from model.serve.limits import Limits
from model.serve.protocol import ChatRequest, CompletionRequest, Generation, first_error
from model.serve.replies import ChatShape, Envelope, Json, Progress, Shape, TextShape, usage_of
from model.serve.served import Served

PAGE = Path(__file__).parent / "page"
PAGE_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
# Of a plain completion whose length nobody named, as OpenAI has it.
COMPLETION_TOKENS = 16
# nginx's word for it; the client that it is meant for is gone.
CLIENT_CLOSED_REQUEST = 499

R = TypeVar("R", bound=Generation)


def make_app(models: Sequence[Served], access: Access, limits: Limits) -> Guard:
    """The application that serves ``models``, guarded."""
    return Guard(_api(_Models(models), limits), access, limits)


class _Models:
    """The models by name, in the order of the command line."""

    def __init__(self, models: Sequence[Served]) -> None:
        self._models = {served.name: served for served in models}

    def all(self) -> list[Served]:
        return list(self._models.values())

    def get(self, name: str | None) -> Served:
        """The model of that name; without a name, the only one. Raises ApiError."""
        if name is None:
            if len(self._models) > 1:
                raise ApiError(400, f"model is missing: {self._names()}", param="model")
            return next(iter(self._models.values()))
        if name not in self._models:
            raise ApiError(
                404,
                f"there is no model {name[:100]!r} here: {self._names()}",
                param="model",
                code="model_not_found",
            )
        return self._models[name]

    def _names(self) -> str:
        return "use " + " or ".join(self._models)


def _api(models: _Models, limits: Limits) -> FastAPI:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        for served in models.all():
            served.scheduler.start(asyncio.get_running_loop())
        yield
        for served in models.all():
            served.scheduler.close()
        for served in models.all():
            await asyncio.to_thread(served.scheduler.join, limits.grace_seconds)

    # No page of documentation: FastAPI's loads scripts from elsewhere.
    app = FastAPI(
        lifespan=lifespan, openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False
    )

    @app.get("/v1/models")
    async def list_models() -> Response:
        return _json({"object": "list", "data": [served.card() for served in models.all()]})

    @app.get("/v1/models/{name:path}")
    async def show_model(name: str) -> Response:
        return _json(models.get(name).card())

    @app.post("/v1/chat/completions")
    async def chat(
        request: Request, body: Annotated[ChatRequest, Depends(_body(ChatRequest))]
    ) -> Response:
        served = models.get(body.model)
        new_tokens = _new_tokens(body, limits, served.seq_len, served.seq_len)
        ids, dropped = await asyncio.to_thread(served.chat_ids, body, new_tokens)
        more = {"dropped_messages": dropped} if body.truncation == "auto" else {}
        answer = _Answer(served, partial(ChatShape, served.names), more)
        return await answer.respond(request, body, [ids], new_tokens, limits)

    @app.post("/v1/completions")
    async def complete(
        request: Request, body: Annotated[CompletionRequest, Depends(_body(CompletionRequest))]
    ) -> Response:
        served = models.get(body.model)
        new_tokens = _new_tokens(body, limits, COMPLETION_TOKENS, served.seq_len)
        if len(body.prompt) > limits.choices:
            raise ApiError(400, f"more than {limits.choices} prompts", param="prompt")
        prompts = await asyncio.to_thread(lambda: [served.prompt_ids(p) for p in body.prompt])
        answer = _Answer(served, partial(TextShape, served.names), {})
        return await answer.respond(request, body, prompts, new_tokens, limits)

    @app.api_route("/health", methods=["GET", "HEAD"])
    async def health() -> Response:
        for served in models.all():
            if not served.scheduler.alive:
                raise ApiError(503, f"the model {served.name} has failed", code="engine_failed")
        return _json({"status": "ok"})

    for path, (name, kind) in PAGE_FILES.items():
        app.add_api_route(path, _file(name, kind), methods=["GET", "HEAD"])

    @app.exception_handler(ApiError)
    async def refused(request: Request, error: ApiError) -> Response:
        return _json(error.body(), error.status, error.headers)

    @app.exception_handler(HTTPException)
    async def not_routed(request: Request, error: HTTPException) -> Response:
        message = f"{error.detail}: {request.method[:20]} {request.url.path[:100]}"
        refusal = ApiError(error.status_code, message)
        return _json(refusal.body(), error.status_code, dict(error.headers or {}))

    return app


def _json(content: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(content), status, headers, "application/json")


def _file(name: str, kind: str) -> Callable[[], Awaitable[Response]]:
    content = (PAGE / name).read_bytes()

    async def send() -> Response:
        return Response(content, media_type=kind, headers={"cache-control": "no-cache"})

    return send


def _body(kind: type[R]) -> Callable[[Request], Awaitable[R]]:
    """A dependency: the request's body as ``kind``."""

    async def parse(request: Request) -> R:
        # A form of another web page can send other types without asking first.
        media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media != "application/json":
            raise ApiError(415, "the body must be JSON: Content-Type: application/json")
        try:
            values = orjson.loads(await request.body())
        except orjson.JSONDecodeError as error:
            raise ApiError(400, f"the body is not valid JSON: {error}") from None
        try:
            return kind.model_validate(values)
        except ValidationError as error:
            raise first_error(error) from None

    return parse


def _new_tokens(body: Generation, limits: Limits, default: int, seq_len: int) -> int:
    return min(body.asked_tokens() or default, limits.new_tokens or seq_len, seq_len)


class _Answer:
    """How the replies to one request are sent: whole, or as a stream of events."""

    def __init__(self, served: Served, make_shape: Callable[[], Shape], more: Json) -> None:
        """``more`` goes into the whole answer, or the first chunks of a stream."""
        self._served = served
        self._make_shape = make_shape
        self._more = more

    async def respond(
        self,
        request: Request,
        body: Generation,
        prompts: Sequence[Sequence[int]],
        new_tokens: int,
        limits: Limits,
    ) -> Response:
        """Makes ``n`` replies to each of ``prompts``. Raises ApiError."""
        samplings = body.samplings(new_tokens, limits)
        work = [(ids, sampling) for ids in prompts for sampling in samplings]
        if len(work) > limits.choices:
            raise ApiError(400, f"more than {limits.choices} replies at once", param="n")
        self._prompt_tokens = sum(map(len, prompts))
        self._envelope = Envelope(self._make_shape(), self._served.name)
        self._shapes = [self._make_shape() for _ in work]
        self._progress = [Progress() for _ in work]
        self._with_logprobs = body.asked_logprobs() is not None
        exchange = Exchange(self._served.scheduler, work)
        exchange.watch(request)
        if body.stream:
            with_usage = bool(body.stream_options and body.stream_options.include_usage)
            return StreamingResponse(
                self._events(exchange, with_usage), media_type="text/event-stream"
            )
        try:
            return _json(await self._whole(exchange))
        except ClientGone:
            return Response(status_code=CLIENT_CLOSED_REQUEST)

    async def _whole(self, exchange: Exchange) -> Json:
        with exchange:
            async for news in exchange.news():
                for index, pieces in news:
                    self._progress[index].add(pieces)
        choices = []
        for index, (shape, one) in enumerate(zip(self._shapes, self._progress, strict=True)):
            logprobs = one.logprobs if self._with_logprobs else None
            choice = shape.choice("".join(one.texts), logprobs)
            choices.append({"index": index, "finish_reason": one.finish, **choice})
        return self._envelope.whole(choices, self._usage(), self._more)

    async def _events(self, exchange: Exchange, with_usage: bool) -> AsyncIterator[bytes]:
        usage: Json = {"usage": None} if with_usage else {}
        with exchange:
            try:
                more = {**self._more, **usage}
                for index, shape in enumerate(self._shapes):
                    opening = shape.opening()
                    if opening is not None:
                        yield self._event(index, opening, None, more)
                async for news in exchange.news():
                    for event in self._chunks(news, usage):
                        yield event
            except ClientGone:
                return
            except ApiError as error:
                yield _sse(error.body())
                return
        if with_usage:
            yield _sse(self._envelope.chunk([], {"usage": self._usage()}))
        yield b"data: [DONE]\n\n"

    def _chunks(self, news: list[tuple[int, list[Any]]], more: Json) -> list[bytes]:
        events = []
        for index, pieces in news:
            shape, last = self._shapes[index], Progress()
            last.add(pieces)
            self._progress[index].tokens += last.tokens
            text, logprobs = "".join(last.texts), last.logprobs
            if text or (logprobs and self._with_logprobs):
                delta = shape.delta(text, logprobs if self._with_logprobs else None)
                events.append(self._event(index, delta, None, more))
            if last.finish is not None:
                events.append(self._event(index, shape.delta("", None), last.finish, more))
        return events

    def _event(self, index: int, delta: Json, finish: str | None, more: Json) -> bytes:
        choice = {"index": index, "finish_reason": finish, **delta}
        return _sse(self._envelope.chunk([choice], more))

    def _usage(self) -> Json:
        return usage_of(self._prompt_tokens, sum(one.tokens for one in self._progress))


def _sse(content: object) -> bytes:
    return b"data: " + orjson.dumps(content) + b"\n\n"
