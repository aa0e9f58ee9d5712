"""Who may ask: a token, the names this server answers to, and the web pages that may read its answers.

Without a token, on loopback, two checks stand between a web page that the person happens to visit and this server.
`Host` must name this machine, so that a foreign name made to point at 127.0.0.1 (DNS rebinding) gets nowhere; and a
browser's `Origin` must be our own page or one that was named, so that no other page can make the model work. A page
reads an answer only if CORS allows its exact origin; there is no wildcard.
"""

from __future__ import annotations

import hmac
from collections.abc import Collection

import msgspec
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from picollm.serve.listen import TRUSTED
from picollm.serve.protocol import error_body

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
OPEN_TO_ALL = ("/", "/health", "/web/", "/favicon.ico")  # a path, or with a slash at its end a folder; no secrets there
PREFLIGHT_S = 600


class Guard:
    """Middleware. Lets a request pass that came over our Unix socket, or that meets all three conditions.

    Args:
        token: the bearer token to bring; None asks for none.
        hosts: the names a `Host` header may have, without port; None allows all.
        origins: web pages' origins that may read answers, such as `https://chat.example`.
    """

    def __init__(
        self, app: ASGIApp, token: str | None, hosts: Collection[str] | None = None, origins: Collection[str] = ()
    ) -> None:
        self.app, self.token, self.hosts, self.origins = app, token, hosts, frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        allowed = origin if origin in self.origins else None

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                found = MutableHeaders(scope=message)
                found["x-content-type-options"] = "nosniff"
                found["cross-origin-resource-policy"] = "same-origin"
                if self.origins:
                    found.add_vary_header("Origin")
                if allowed:
                    found["access-control-allow-origin"] = allowed
            await send(message)

        answer = None if scope.get(TRUSTED) else self._refusal(scope, headers, origin, allowed)
        await (answer or self.app)(scope, receive, send_with_headers)

    def _refusal(self, scope: Scope, headers: Headers, origin: str | None, allowed: str | None) -> Response | None:
        """What to answer in place of the application; None lets the request pass."""
        host = headers.get("host", "")
        if self.hosts is not None and _name(host) not in self.hosts:
            return _error(421, f"this server does not answer to the name {_name(host)[:100]!r}", code="wrong_host")
        if origin is not None and not allowed and origin != f"{scope['scheme']}://{host}":
            return _error(403, "pages of this origin may not ask; name it with --allow-origin", code="wrong_origin")
        if allowed and scope["method"] == "OPTIONS":
            wanted = headers.get("access-control-request-headers", "authorization, content-type")
            return Response(status_code=204, headers={
                "access-control-allow-methods": "GET, POST",
                "access-control-allow-headers": wanted,
                "access-control-max-age": str(PREFLIGHT_S),
            })  # fmt: skip
        if self.token is not None and not _is_open(scope["path"]):
            given = headers.get("authorization", "").encode("latin-1")
            if not hmac.compare_digest(given, b"Bearer " + self.token.encode()):
                return _error(401, "missing or wrong bearer token", kind="authentication_error",
                              code="invalid_api_key", headers={"www-authenticate": "Bearer"})  # fmt: skip
        return None


def _name(host: str) -> str:
    """The name in a Host header: `[::1]:8000` and `localhost:8000` without their ports, in small letters."""
    name = host[1 : host.find("]")] if host.startswith("[") else host.partition(":")[0]
    return name.lower().rstrip(".")


def _is_open(path: str) -> bool:
    return any(path == place or (place.endswith("/") and place != "/" and path.startswith(place))
               for place in OPEN_TO_ALL)  # fmt: skip


def _error(
    status: int, message: str, *, kind: str = "invalid_request_error", code: str, headers: dict[str, str] | None = None
) -> Response:
    body = msgspec.json.encode(error_body(message, kind=kind, code=code))
    return Response(body, status, headers, media_type="application/json")
