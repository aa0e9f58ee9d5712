"""Rows of conversations that lie elsewhere: fetched once, compared with the checksum of their manifest, kept.

    local("me.jsonl")                                     a file here, as it is
    local("https://example.org/me.jsonl")                 and https://example.org/me.jsonl.manifest.json beside it
    local("hf://datasets/owner/name@revision/me.jsonl")   from the Hugging Face Hub (`HF_ENDPOINT`, `HF_TOKEN`)
    local("https://example.org/me.jsonl#sha256=…")        only these very rows, whatever the manifest there says

    $PICOLLM_HOME/identity/<sha256 of the rows>/           the rows and their manifest
    $PICOLLM_HOME/identity/<address>.json                  which rows an address had when it was last reached

The manifest is asked for every time, the rows only when it names others than are here. An address that cannot be
reached has what it had.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import Any

import msgspec

from picollm.run.errors import UserError
from picollm.run.folder import picollm_home, write_atomic
from picollm.tasks.identity import Manifest, manifest_path, verify

MOST_BYTES = 64 << 20
MANIFEST_BYTES = 1 << 20
SILENCE_S = 20.0
LONGEST_S = 300.0
HUB = re.compile(r"hf://datasets/(?P<repo>[^/@]+/[^/@]+)(@(?P<revision>[^/]+))?/(?P<path>.+)")


class Unreachable(UserError):
    """Nobody answered."""


def local(file: str, say: Callable[[str], None] = lambda text: None) -> Path:
    """Where the rows of `identity.file` lie on this machine; what is elsewhere is fetched and verified.

    `say` is told what was done. UserError, one line: an address that is not understood, not found, not allowed, too
    large or out of reach, a checksum that differs.
    """
    if "://" not in file:
        return Path(file).expanduser().absolute()
    address, _, pinned = file.partition("#sha256=")
    url = _url(address)
    name = urllib.parse.unquote(url.rpartition("/")[2])
    if not re.fullmatch(r"[\w.-]+\.jsonl", name):
        raise UserError(f"{address}: expected the address of a .jsonl file")
    home = picollm_home() / "identity"
    seen = home / f"{hashlib.sha256(address.encode()).hexdigest()[:32]}.json"
    try:
        raw = _get(manifest_path(Path(name)).name, url + ".manifest.json", MANIFEST_BYTES)
    except Unreachable as error:
        sha256 = pinned or (seen.read_text() if seen.exists() else "")
        path = home / sha256 / name
        if not sha256 or not path.exists():
            raise
        verify(path, fewest=1)
        say(f"{error}; going by the rows fetched earlier, sha256 {sha256[:12]}")
        return path
    try:
        manifest = msgspec.json.decode(raw, type=Manifest)
    except msgspec.DecodeError as error:
        raise UserError(f"{url}.manifest.json: not a manifest of identity rows ({error})") from None
    if not re.fullmatch(r"[0-9a-f]{64}", manifest.sha256) or (pinned and manifest.sha256 != pinned):
        expected = pinned[:12] or "one"
        raise UserError(f"{address}: its manifest says sha256 {manifest.sha256[:12]!r}, expected {expected}")
    path = home / manifest.sha256 / name
    if not path.exists() or hashlib.sha256(path.read_bytes()).hexdigest() != manifest.sha256:
        rows = _get(name, url, MOST_BYTES)
        found = hashlib.sha256(rows).hexdigest()
        if found != manifest.sha256:
            raise UserError(
                f"{address}: checksum {found[:12]}… differs from {manifest.sha256[:12]}… in its manifest: "
                "the rows were changed and not signed, or the download was damaged"
            )
        write_atomic(path, rows)
        say(f"{address}: {len(rows):,} bytes fetched")
    write_atomic(manifest_path(path), raw)  # another name may be signed for the same rows
    verify(path, fewest=1)
    write_atomic(seen, manifest.sha256)
    return path


def _url(address: str) -> str:
    hub = HUB.fullmatch(address)
    if hub:
        path = urllib.parse.quote(hub["path"])
        return f"{_endpoint()}/datasets/{hub['repo']}/resolve/{hub['revision'] or 'main'}/{path}"
    if not _safe(address):
        raise UserError(f"{address}: expected https://…/rows.jsonl, hf://datasets/owner/name/rows.jsonl, or a file")
    return address


def _endpoint() -> str:
    """The Hub's address, without a slash at its end."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def _safe(url: str) -> bool:
    """Encrypted, or this very machine: the manifest is believed."""
    parts = urllib.parse.urlsplit(url)
    return parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in ("127.0.0.1", "localhost", "::1"))


class _Encrypted(urllib.request.HTTPRedirectHandler):
    """Follows no redirect that leaves https; within this very machine plain http may go on."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        if not _safe(newurl) or (req.full_url.startswith("https:") and not newurl.startswith("https:")):
            raise _LeavesHttps
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _LeavesHttps(Exception):
    pass


def _get(what: str, url: str, most: int) -> bytes:
    host = urllib.parse.urlsplit(url).hostname
    request = urllib.request.Request(url, headers={"User-Agent": "picollm"})
    if url.startswith(f"{_endpoint()}/"):
        from huggingface_hub import constants, get_token

        if constants.HF_HUB_OFFLINE:
            raise Unreachable(f"{what}: HF_HUB_OFFLINE is set")
        token = get_token()
        if token:
            request.add_unredirected_header("Authorization", f"Bearer {token}")  # not for whom it sends us to
    end = time.monotonic() + LONGEST_S
    try:
        with urllib.request.build_opener(_Encrypted).open(request, timeout=SILENCE_S) as answer:
            pieces = bytearray()
            while piece := answer.read(1 << 16):
                pieces += piece
                if len(pieces) > most:
                    raise UserError(f"{what}: {host} sends more than {most >> 20} MiB; rows are text, and smaller")
                if time.monotonic() > end:
                    raise Unreachable(f"{what}: {host} sent {len(pieces):,} bytes in {LONGEST_S:.0f} s")
            return bytes(pieces)
    except _LeavesHttps:
        raise UserError(f"{what}: {host} sends us to an address without https") from None
    except urllib.error.HTTPError as error:
        why = {
            401: "not allowed: set HF_TOKEN, or make it public",
            403: "not allowed: set HF_TOKEN, or make it public",
            404: "not found: check the address; rows and manifest lie side by side",
            429: "rate limit: try again later",
        }.get(error.code, "try again later")
        if error.code >= 500:
            raise Unreachable(f"{what}: {host} answers {error.code}; try again later") from None
        raise UserError(f"{what}: {host} answers {error.code}, {why}") from None
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise Unreachable(
            f"{what}: cannot reach {host} ({reason}); check the network, or fetch rows and manifest by hand"
        ) from None
