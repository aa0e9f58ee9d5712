"""A server of somebody else that speaks the OpenAI API, as the environment names it: its address, and the key for it.

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
    try:
        if not url.isprintable() or " " in url:
            raise ValueError
        parts = urlsplit(url)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
        sound = sound and "@" not in parts.netloc and not (parts.query or parts.fragment)  # the address is shown
    except ValueError:
        sound = False
    if not sound:
        raise UserError(f"{URL} is no address such as https://models.example/v1; the key goes into {KEY}")
    return Endpoint(url, key)
