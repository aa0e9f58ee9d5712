"""The web page's files, as they lie in `web/`: nothing is built, and nothing is fetched from elsewhere."""

from __future__ import annotations

from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

FOLDER = Path(__file__).parent / "web"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Whatever a model writes, nothing but our own files runs, and nothing leaves for another place.
POLICY = "; ".join([
    "default-src 'none'", "script-src 'self'", "style-src 'self'", "connect-src 'self'", "img-src 'self'",
    "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'", "require-trusted-types-for 'script'",
])  # fmt: skip


def routes() -> list[Route]:
    """`/` and `/web/…`. The files are few and small: they are read once."""
    files = {path.name: _response(path) for path in sorted(FOLDER.iterdir()) if path.suffix in TYPES}
    return [Route("/", _file(files["index.html"])), *(Route(f"/web/{name}", _file(it)) for name, it in files.items())]


def _response(path: Path) -> Response:
    headers = {"content-security-policy": POLICY, "referrer-policy": "no-referrer", "cache-control": "no-cache"}
    return Response(path.read_bytes(), headers=headers, media_type=TYPES[path.suffix])


def _file(response: Response):  # type: ignore[no-untyped-def]
    async def send(http: Request) -> Response:
        return response

    return send
