"""The OpenAI-compatible API: chat, raw continuation, the list of models, health, metrics; and the web page.

    POST /v1/chat/completions    POST /v1/completions    GET /v1/models    GET /health    GET /metrics    GET /

What comes over our Unix socket needs nothing else, for the socket's file permissions say who may connect; the rest must
pass the guard (`guard.py`) and keep within the limits (`limits.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Collection
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from picollm.infer.engine import Engine, prompt_room
from picollm.infer.sampling import Sampling
from picollm.run.errors import UserError
from picollm.serve import page
from picollm.serve.answers import Answering, EventStream, Generation, unless_gone
from picollm.serve.guard import Guard
from picollm.serve.hub import ModelHub, Unavailable, UnknownModel
from picollm.serve.limits import RETRY_AFTER_S, Busy, Gate, Limits
from picollm.serve.listen import serve
from picollm.serve.metrics import CONTENT_TYPE, Labels, Metrics
from picollm.serve.protocol import BadRequest, ChatRequest, CompletionRequest, Envelope, Request, error_body, read
from picollm.text.chat import Message as ChatMessage
from picollm.text.chat import TooLong, render_prompt

__all__ = ["Limits", "ModelHub", "create_app", "serve"]

CLIENT_LEFT = 499  # nobody reads it; the code that web servers count such requests under


def create_app(
    models: ModelHub,
    token: str | None,
    *,
    hosts: Collection[str] | None = None,
    origins: Collection[str] = (),
    limits: Limits | None = None,
) -> Starlette:
    """The application. For `token`, `hosts` and `origins` see `Guard`; without a token it is for loopback only."""

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        models.worker.close()

    limits, metrics = limits or Limits(), Metrics()
    app = Starlette(
        routes=[
            Route("/v1/chat/completions", _chat, methods=["POST"]),
            Route("/v1/completions", _completion, methods=["POST"]),
            Route("/v1/models", _models, methods=["GET"]),
            Route("/v1/models/{name:path}", _model, methods=["GET"]),
            Route("/health", _health, methods=["GET"]),
            Route("/metrics", _metrics, methods=["GET"]),
            *page.routes(),
        ],
        middleware=[
            Middleware(_Counted, metrics=metrics),
            Middleware(Guard, token=token, hosts=hosts, origins=origins),
        ],
        exception_handlers={UserError: _refused, HTTPException: _http_error, Exception: _broken},
        lifespan=lifespan,
    )
    app.state.models, app.state.limits, app.state.metrics = models, limits, metrics
    app.state.gate = Gate(limits)
    app.state.guarded = token is not None or hosts is not None
    app.state.token = token
    return app


class _Counted:
    """Counts requests by path and status. Paths that there are not count as one, so that nobody can fill the memory."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status = CLIENT_LEFT

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, send_and_note)
        except Exception:
            status = 500
            raise
        finally:
            self.metrics.add("picollm_requests_total", path=_known_path(scope), status=str(status))


def _known_path(scope: Scope) -> str:
    routes = (route for route in scope["app"].routes if route.matches(scope)[0] is not Match.NONE)
    return next((route.path for route in routes), "other")


async def _health(http: HttpRequest) -> Response:
    return _json({"status": "ok"})


async def _metrics(http: HttpRequest) -> Response:
    state = http.app.state
    hub: ModelHub = state.models
    gate: Gate = state.gate
    loaded: dict[Labels, float] = {(("model", name),): float(hub.info(name)["loaded"]) for name in hub.names}
    text = state.metrics.text({
        "picollm_waiting_requests": ("gauge", "requests in the queue", {(): gate.waiting}),
        "picollm_active_answers": ("gauge", "answers being made", {(): gate.active}),
        "picollm_model_loaded": ("gauge", "1 for a model in memory", loaded),
        "picollm_model_loads_total": ("counter", "how often a model was loaded",
                                      {(("model", name),): count for name, count in dict(hub.loads).items()}),
    })  # fmt: skip
    return Response(text, media_type=CONTENT_TYPE)


async def _models(http: HttpRequest) -> Response:
    hub: ModelHub = http.app.state.models
    return _json({"object": "list", "data": [_card(hub, name) for name in hub.names]})


async def _model(http: HttpRequest) -> Response:
    hub: ModelHub = http.app.state.models
    return _json(_card(hub, hub.check(http.path_params["name"])))


def _card(hub: ModelHub, name: str) -> dict[str, Any]:
    info = hub.info(name)
    return {"id": name, "object": "model", "created": info.pop("created"), "owned_by": "picollm", "picollm": info}


async def _chat(http: HttpRequest) -> Response:
    request = read(await _body(http), ChatRequest)
    conversation = request.conversation(http.app.state.limits.messages)
    sampling = request.sampling()
    return await _answer(http, request, sampling, [(lambda engine: _rendered(conversation, engine, sampling), 0)])


def _rendered(conversation: list[ChatMessage], engine: Engine, sampling: Sampling) -> list[int]:
    """The conversation as ids, without its oldest exchanges when it outgrows the context. Raises `BadRequest`."""
    room = prompt_room(engine.context, sampling.max_tokens)
    try:
        return render_prompt(conversation, engine.tok, max_tokens=room)  # type: ignore[arg-type]
    except TooLong as error:
        raise BadRequest(str(error), param="messages", code="context_length_exceeded") from None
    except UserError as error:
        raise BadRequest(str(error), param="messages") from None


async def _completion(http: HttpRequest) -> Response:
    request = read(await _body(http), CompletionRequest)

    def raw(text: str) -> Callable[[Engine], list[int]]:
        return lambda engine: [engine.tok.bos_id, *engine.tok.encode(text)]

    return await _answer(http, request, request.sampling(), [(raw(text), len(text)) for text in request.prompts()])


async def _answer(
    http: HttpRequest, request: Request, sampling: Sampling, prompts: list[tuple[Callable[[Engine], list[int]], int]]
) -> Response:
    """Generate for every prompt, given with its length in characters, and answer in one piece or as a stream."""
    state, chat = http.app.state, isinstance(request, ChatRequest)
    name, seeds = state.models.check(request.model), request.seeds()
    generations = [
        Generation(state.models, name, make, sampling, seed, chat=chat, offset=length)
        for make, length in prompts
        for seed in seeds
    ]
    answering = Answering(state.models, state.gate, state.metrics, state.limits, generations, len(seeds))
    with_tools = isinstance(request, ChatRequest) and request.show_tools
    envelope = Envelope(chat=chat, model=name, with_usage=request.with_usage, with_tools=with_tools)
    if request.stream:
        source = await unless_gone(http.receive, answering.open())
        return EventStream(source, envelope) if source else Response(status_code=CLIENT_LEFT)
    body = await unless_gone(http.receive, answering.whole(envelope))
    return Response(status_code=CLIENT_LEFT) if body is None else _json(body)


async def _body(http: HttpRequest) -> bytes:
    limits: Limits = http.app.state.limits
    parts, size = [], 0
    try:
        async with asyncio.timeout(limits.body_s):
            async for part in http.stream():
                parts.append(part)
                size += len(part)
                if size > limits.body:
                    raise BadRequest(f"the request is larger than {limits.body:,} bytes; shorten it", status=413)
    except TimeoutError:
        raise BadRequest(f"the request did not arrive within {limits.body_s:g} s", status=408) from None
    except ClientDisconnect:
        raise BadRequest("the client left before its request was whole", status=CLIENT_LEFT) from None
    return b"".join(parts)


def _json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(content), status, headers, media_type="application/json")


async def _refused(http: HttpRequest, error: Exception) -> Response:
    later = {"retry-after": str(RETRY_AFTER_S)}
    match error:
        case UnknownModel():
            return _json(error_body(str(error), param="model", code="model_not_found"), 404)
        case BadRequest():
            return _json(error_body(str(error), param=error.param, code=error.code), error.status)
        case Busy(status=429):
            return _json(error_body(str(error), kind="rate_limit_error", code="rate_limit_exceeded"), 429, later)
        case Busy() | Unavailable():
            return _json(error_body(str(error), kind="server_error", code="unavailable"), 503, later)
    return _json(error_body(str(error)), 400)


async def _http_error(http: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{http.method} {http.url.path}: {error.detail}"
    return _json(error_body(message), error.status_code, dict(error.headers or {}))


async def _broken(http: HttpRequest, error: Exception) -> Response:
    return _json(error_body(f"the server failed: {error!r}", kind="server_error"), 500)
