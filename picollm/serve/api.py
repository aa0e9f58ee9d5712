"""The OpenAI-compatible API: chat, raw continuation, the list of models, health.

    POST /v1/chat/completions    POST /v1/completions    GET /v1/models    GET /health

A bearer token is required on TCP and not on a Unix socket, whose file permissions already say who may connect. No CORS
header is ever sent: a web page of another origin cannot read an answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from picollm.infer.engine import Engine
from picollm.infer.rows import Chunk, Completion
from picollm.infer.sampling import Sampling
from picollm.run.errors import UserError
from picollm.serve.hub import Job, ModelHub, UnknownModel
from picollm.serve.listen import TRUSTED, serve
from picollm.serve.protocol import (
    BadRequest,
    ChatRequest,
    CompletionRequest,
    Envelope,
    Request,
    error_body,
    read,
    usage_of,
)
from picollm.text.chat import render_prompt

__all__ = ["ModelHub", "create_app", "serve"]

MAX_BODY = 4 * 2**20  # bytes; far beyond any context these models have


def create_app(models: ModelHub, token: str | None) -> Starlette:
    """The application. `token` None leaves TCP open too: for tests, and for `serve` on a Unix socket only."""

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        models.worker.close()

    app = Starlette(
        routes=[
            Route("/v1/chat/completions", _chat, methods=["POST"]),
            Route("/v1/completions", _completion, methods=["POST"]),
            Route("/v1/models", _models, methods=["GET"]),
            Route("/v1/models/{name}", _model, methods=["GET"]),
            Route("/health", _health, methods=["GET"]),
        ],
        middleware=[Middleware(_Guard, token=token)],
        exception_handlers={UserError: _refused, HTTPException: _http_error, Exception: _broken},
        lifespan=lifespan,
    )
    app.state.models, app.state.token = models, token
    return app


class _Guard:
    """Lets a request pass when it came over a Unix socket, asks for health, or brings the token."""

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self.app, self.token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self.token is not None and scope["path"] != "/health":
            given = next((v for k, v in scope["headers"] if k == b"authorization"), b"")
            if not scope.get(TRUSTED) and not hmac.compare_digest(given, b"Bearer " + self.token.encode()):
                body = error_body("missing or wrong bearer token", kind="authentication_error", code="invalid_api_key")
                await _json(body, 401, {"www-authenticate": "Bearer"})(scope, receive, send)
                return
        await self.app(scope, receive, send)


async def _health(request: HttpRequest) -> Response:
    return _json({"status": "ok"})


async def _models(request: HttpRequest) -> Response:
    hub: ModelHub = request.app.state.models
    return _json({"object": "list", "data": [_card(hub, name) for name in hub.names]})


async def _model(request: HttpRequest) -> Response:
    hub: ModelHub = request.app.state.models
    return _json(_card(hub, hub.check(request.path_params["name"])))


def _card(hub: ModelHub, name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": hub.created, "owned_by": "picollm", "picollm": hub.info(name)}


async def _chat(http: HttpRequest) -> Response:
    request = read(await _body(http), ChatRequest)
    conversation = request.conversation()

    def prompt(engine: Engine, sampling: Sampling) -> list[int]:
        room = engine.context - min(sampling.max_tokens, max(1, engine.context // 4))
        # Older exchanges are left out when the conversation outgrows the context; a single long message is refused.
        return render_prompt(conversation, engine.tok, max_tokens=room)  # type: ignore[arg-type]

    return await _answer(http, request, [prompt], chat=True)


async def _completion(http: HttpRequest) -> Response:
    request = read(await _body(http), CompletionRequest)

    def raw(text: str) -> Callable[[Engine, Sampling], list[int]]:
        return lambda engine, _: [engine.tok.bos_id, *engine.tok.encode(text)]

    return await _answer(http, request, [raw(text) for text in request.prompts()], chat=False)


async def _answer(
    http: HttpRequest, request: Request, prompts: list[Callable[[Engine, Sampling], list[int]]], *, chat: bool
) -> Response:
    """Start the generations, and answer in one piece or as a stream."""
    hub: ModelHub = http.app.state.models
    name = hub.check(request.model)
    sampling = request.sampling()

    def job(make: Callable[[Engine, Sampling], list[int]], seed: int) -> Job:
        def work(cancel: threading.Event) -> Iterator[Chunk | Completion | None]:
            engine = hub.engine(name)
            ids = make(engine, sampling)
            yield None  # the request is sound: a stream may open
            yield from engine.stream(ids, sampling, cancel, seed=seed, tools=chat)

        return work

    seeds = request.seeds()
    items = hub.worker.run([job(make, seed) for make in prompts for seed in seeds])
    envelope, count = Envelope(chat=chat, model=name), len(prompts) * len(seeds)
    if request.stream:
        opened = [await anext(items)]  # errors of the request surface here, while a status can still be sent
        return _EventStream(_events(items, opened, envelope, count, len(seeds), request.with_usage))
    answers = await _unless_gone(http, _collect(items, count))
    if answers is None:
        return Response(status_code=499)  # nobody reads it
    return _json(envelope.whole(answers, usage_of(_prompt_tokens(answers, len(seeds)), answers)))


def _prompt_tokens(answers: list[Completion], per_prompt: int) -> int:
    """Each prompt counts once, however many answers it has."""
    return sum(answer.prompt_tokens for answer in answers[::per_prompt])


async def _collect(items: AsyncIterator[tuple[int, Any]], count: int) -> list[Completion]:
    answers: dict[int, Completion] = {}
    async with contextlib.aclosing(items):  # type: ignore[type-var]
        async for index, item in items:
            if isinstance(item, Completion):
                answers[index] = item
    return [answers[index] for index in range(count)]


async def _unless_gone(http: HttpRequest, work: Any) -> list[Completion] | None:
    """Await `work`, or cancel it and return None as soon as the client hangs up."""

    async def gone() -> None:
        while (await http.receive())["type"] != "http.disconnect":
            pass

    answer, hangup = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait([answer, hangup], return_when=asyncio.FIRST_COMPLETED)
        return answer.result() if answer.done() else None
    finally:
        for task in (answer, hangup):
            task.cancel()
        await asyncio.gather(answer, hangup, return_exceptions=True)


async def _events(
    items: AsyncIterator[tuple[int, Any]], opened: list[tuple[int, Any]], envelope: Envelope, count: int,
    per_prompt: int, with_usage: bool,
) -> AsyncIterator[dict[str, Any] | None]:  # fmt: skip
    """Chunks of all choices as they come; None stands for the closing [DONE]."""
    answers: dict[int, Completion] = {}

    async def everything() -> AsyncIterator[tuple[int, Any]]:
        for pair in opened:
            yield pair
        async for pair in items:
            yield pair

    async with contextlib.aclosing(items):  # type: ignore[type-var]
        try:
            async for index, item in everything():
                if item is None:
                    if envelope.chat:
                        yield envelope.piece(index, None, first=True, with_usage=with_usage)
                elif isinstance(item, Completion):
                    answers[index] = item
                    yield envelope.piece(index, None, answer=item, with_usage=with_usage)
                elif item.text:
                    yield envelope.piece(index, item.text, with_usage=with_usage)
        except Exception as error:  # the status is already sent: the stream itself must say it
            yield error_body(str(error) or repr(error), kind="server_error")
            return
        if with_usage:
            ordered = [answers[index] for index in range(count)]
            yield envelope.usage_piece(usage_of(_prompt_tokens(ordered, per_prompt), ordered))
        yield None


class _EventStream(Response):
    """Server-sent events that stop being made the moment the client hangs up."""

    def __init__(self, events: AsyncIterator[dict[str, Any] | None]) -> None:
        super().__init__(None, media_type="text/event-stream", headers={"cache-control": "no-store"})
        self.events = events
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def write() -> None:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async with contextlib.aclosing(self.events):  # type: ignore[type-var]
                async for event in self.events:
                    data = b"[DONE]" if event is None else msgspec.json.encode(event)
                    await send({"type": "http.response.body", "body": b"data: " + data + b"\n\n", "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})

        async def gone() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass

        writing, hangup = asyncio.ensure_future(write()), asyncio.ensure_future(gone())
        try:
            await asyncio.wait([writing, hangup], return_when=asyncio.FIRST_COMPLETED)
            if writing.done():
                writing.result()
        finally:
            for task in (writing, hangup):
                task.cancel()
            await asyncio.gather(writing, hangup, return_exceptions=True)


async def _body(http: HttpRequest) -> bytes:
    parts, size = [], 0
    async for part in http.stream():
        parts.append(part)
        size += len(part)
        if size > MAX_BODY:
            raise BadRequest(f"the request is larger than {MAX_BODY // 2**20} MiB; shorten it", status=413)
    return b"".join(parts)


def _json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(content), status, headers, media_type="application/json")


async def _refused(http: HttpRequest, error: Exception) -> Response:
    if isinstance(error, UnknownModel):
        return _json(error_body(str(error), param="model", code="model_not_found"), 404)
    if isinstance(error, BadRequest):
        return _json(error_body(str(error), param=error.param, code=error.code), error.status)
    return _json(error_body(str(error)), 400)


async def _http_error(http: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{http.method} {http.url.path}: {error.detail}"
    return _json(error_body(message), error.status_code, dict(error.headers or {}))


async def _broken(http: HttpRequest, error: Exception) -> Response:
    return _json(error_body(f"the server failed: {error!r}", kind="server_error"), 500)
