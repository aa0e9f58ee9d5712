"""A server of somebody else that speaks the OpenAI API: its address, and the key for it, as the environment names them.

    OPENAI_BASE_URL=https://models.example/v1  OPENAI_API_KEY=…

The key is never shown and never written down.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from urllib.parse import urlsplit

import msgspec

from picollm.run.errors import UserError

URL, KEY = "OPENAI_BASE_URL", "OPENAI_API_KEY"
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Endpoint(msgspec.Struct, frozen=True):
    url: str
    key: str = ""

    def __repr__(self) -> str:
        return f"Endpoint({self.url!r})"

    @property
    def host(self) -> str:
        """How it is called on the screen."""
        parts = urlsplit(self.url)
        return f"{parts.hostname}:{parts.port}" if parts.port else str(parts.hostname)

    @property
    def in_the_clear(self) -> bool:
        """Whether key and texts cross a network unencrypted."""
        parts = urlsplit(self.url)
        return parts.scheme == "http" and parts.hostname not in _LOOPBACK


def from_environment(environ: Mapping[str, str] | None = None) -> Endpoint | None:
    """The endpoint that the environment names, or None. Raises `UserError` for an address that is none, and for a key
    that cannot be sent."""
    environ = os.environ if environ is None else environ
    url, key = environ.get(URL, "").strip().rstrip("/"), environ.get(KEY, "").strip()
    if not url:
        return None
    if not (key.isascii() and key.isprintable()):
        raise UserError(f"{KEY} holds a line end or a letter that no key has; set it anew")
    if not _sound(url):
        raise UserError(f"{URL} is no address such as https://models.example/v1; the key goes into {KEY}")
    return Endpoint(url, key)


def at(url: str, environ: Mapping[str, str] | None = None) -> Endpoint:
    """The endpoint at an address that somebody typed. The key is for the address that the environment names, and is
    sent to no other. Raises `UserError` for what is no address."""
    url = url.strip().rstrip("/")
    if not _sound(url):
        raise UserError("that is no address such as http://localhost:8080/v1")
    known = from_environment(environ)
    return known if known is not None and known.url == url else Endpoint(url)


def _sound(url: str) -> bool:
    """Whether it is an address without a secret in it: it is shown."""
    try:
        parts = urlsplit(url)
        whole = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        return False
    return url.isprintable() and " " not in url and whole and "@" not in parts.netloc and not (
        parts.query or parts.fragment)  # fmt: skip
