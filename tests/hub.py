"""A Hugging Face Hub on the loopback: the file routes that `huggingface_hub` uses, and faults on request.

    with LoopbackHub() as hub:
        hub.add("karpathy/climbmix-400b-shuffle", {"shard_00000.parquet": parquet(["a text"])}, card={"license": "mit"})
        hub.fault("shard_00000.parquet", "429", times=2, retry_after=3)
        subprocess.run(argv, env=os.environ | hub.environment(tmp_path / "hf"))
        hub.requests        # [Request("HEAD", "/datasets/…/shard_00000.parquet", range="", token="")]

Routes: repository info (with `blobs`), tree, paths-info, and HEAD/GET of `resolve` with ETag, X-Repo-Commit,
X-Linked-Size, X-Linked-ETag and Range. A commit is the hash of what the repository holds, so adding a file makes a new
one; every file counts as an LFS file, its ETag is its sha256. `python -m tests.hub FOLDER` serves the files of
FOLDER/<owner>/<name>/ as data sets and prints the address.

Faults, per file name (or "info" for a repository's own page):
    "429"      too many requests; `retry_after` in seconds is sent along
    "500" …    that status
    "cut"      the connection is closed after half of what was asked for
    "wrong"    the right number of other bytes
    "slow"     `seconds` of silence before the body, or until `hub.release()`
    "missing"  404, as for a file that is not there
    "hang"     the connection is closed without an answer
`times` faults are given, then the file is well again; `times=None`: for ever. `method`: "GET", "HEAD" or "" for both.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass(frozen=True)
class Request:
    """One request as it came in; `token` is what the Authorization header held."""

    method: str
    path: str
    range: str
    token: str


@dataclass
class Fault:
    kind: str
    times: int | None
    method: str
    retry_after: int | None
    seconds: float


@dataclass
class Repo:
    files: dict[str, bytes] = field(default_factory=dict)
    card: dict[str, Any] = field(default_factory=dict)

    @property
    def commit(self) -> str:
        digest = hashlib.sha1(b"loopback")
        for name in sorted(self.files):
            digest.update(name.encode() + hashlib.sha256(self.files[name]).digest())
        return digest.hexdigest()

    def entry(self, name: str) -> dict[str, Any]:
        data = self.files[name]
        oid = hashlib.sha1(data).hexdigest()
        lfs = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
        return {"type": "file", "path": name, "size": len(data), "oid": oid, "lfs": lfs}


class LoopbackHub:
    """See the module. `url` is its address; `delay` seconds are waited before every body ("slow" for all files)."""

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.requests: list[Request] = []
        self.faults: dict[str, list[Fault]] = {}
        self.delay = 0.0
        self.over = threading.Event()
        self._lock = threading.Lock()
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> LoopbackHub:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self._server.shutdown()
        self._server.server_close()

    def add(
        self, repo: str, files: dict[str, bytes], *, kind: str = "datasets", card: dict[str, Any] | None = None
    ) -> Repo:
        """Put files into a repository ("datasets" or "models"), which is made when it is not there."""
        found = self.repos.setdefault((kind, repo), Repo())
        found.files.update(files)
        found.card.update(card or {})
        return found

    def fault(
        self,
        name: str,
        kind: str,
        times: int | None = 1,
        *,
        method: str = "GET",
        retry_after: int | None = None,
        seconds: float = 0.0,
    ) -> None:
        self.faults.setdefault(name, []).append(Fault(kind, times, method, retry_after, seconds))

    def next_fault(self, name: str, method: str) -> Fault | None:
        with self._lock:
            for fault in self.faults.get(name, []):
                if fault.method in ("", method) and fault.times != 0:
                    if fault.times is not None:
                        fault.times -= 1
                    return fault
        return None

    def release(self) -> None:
        """End every silence, and give no more of them."""
        self.over.set()

    def asked(self, name: str, method: str = "GET") -> int:
        """How often a file was asked for."""
        return sum(request.method == method and request.path.endswith("/" + name) for request in self.requests)

    def environment(self, home: Path, token: str = "") -> dict[str, str]:
        """Variables that send a process here, with a Hub cache of its own under `home`."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_TOKEN": token,
            "NO_PROXY": "127.0.0.1",
        }


class _Handler(BaseHTTPRequestHandler):
    hub: LoopbackHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Silent: `hub.requests` has it."""

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        self.hub.requests.append(Request(self.command, path, self.headers.get("Range") or "", token))
        with contextlib.suppress(ConnectionError):
            if match := re.fullmatch(r"/api/(datasets|models)/([^/]+/[^/]+)(?:/(.*))?", path):
                self._about(match[1], match[2], match[3] or "", body)
            elif match := re.fullmatch(r"(?:/(datasets))?/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
                self._file(match[1] or "models", match[2], match[3], match[4])
            else:
                self._error(404, "", "no such route")

    def _about(self, kind: str, name: str, rest: str, body: bytes) -> None:
        repo = self._repo(kind, name)
        if repo is None or self._faulty(self.hub.next_fault("info", self.command)):
            return
        what, _, more = rest.partition("/")
        revision, _, under = more.partition("/")
        if revision not in ("", "main", repo.commit):
            self._error(404, "RevisionNotFound", f"no revision {revision}")
            return
        entries = [repo.entry(file) for file in sorted(repo.files)]
        if what == "tree":
            self._json([entry for entry in entries if entry["path"].startswith(under)])
        elif what == "paths-info":
            wanted = set(json.loads(body)["paths"] if body.startswith(b"{") else re.findall(r"paths=([^&]+)", unquote(
                body.decode().replace("+", " "))))  # fmt: skip
            self._json([entry for entry in entries if entry["path"] in wanted])
        elif what in ("", "revision"):
            siblings = [
                {"rfilename": e["path"], "size": e["size"], "blobId": e["oid"],
                 "lfs": {"sha256": e["lfs"]["oid"], "size": e["size"], "pointerSize": 130}}
                for e in entries
            ]  # fmt: skip
            self._json({"id": name, "sha": repo.commit, "cardData": repo.card, "siblings": siblings, "tags": []})
        else:
            self._error(404, "", "no such route")

    def _file(self, kind: str, name: str, revision: str, file: str) -> None:
        repo = self._repo(kind, name)
        if repo is None:
            return
        fault = self.hub.next_fault(file, self.command)
        if self._faulty(fault):
            return
        if revision not in ("main", repo.commit):
            self._error(404, "RevisionNotFound", f"no revision {revision}")
            return
        if file not in repo.files:
            self._error(404, "EntryNotFound", f"no file {file}", {"X-Repo-Commit": repo.commit})
            return
        data = repo.files[file]
        etag = hashlib.sha256(data).hexdigest()
        headers = {
            "ETag": f'"{etag}"',
            "X-Repo-Commit": repo.commit,
            "X-Linked-ETag": f'"{etag}"',
            "X-Linked-Size": str(len(data)),
            "Accept-Ranges": "bytes",
            "Content-Type": "application/octet-stream",
        }
        status, part = 200, data
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            start, end = int(match[1]), int(match[2] or len(data) - 1)
            if start >= len(data):
                self._error(416, "", "range", {"Content-Range": f"bytes */{len(data)}"})
                return
            status, part = 206, data[start : end + 1]
            headers["Content-Range"] = f"bytes {start}-{start + len(part) - 1}/{len(data)}"
        self._send(status, part, headers, fault)

    def _repo(self, kind: str, name: str) -> Repo | None:
        found = self.hub.repos.get((kind, name))
        if found is None:
            self._error(404, "RepoNotFound", f"no repository {name}")
        return found

    def _faulty(self, fault: Fault | None) -> bool:
        """Answer with the fault if it is one that needs no file; True when that was the answer."""
        if fault is None:
            return False
        if fault.kind == "hang":
            self.close_connection = True
            self.connection.close()
            return True
        if fault.kind == "missing":
            self._error(404, "EntryNotFound", "gone")
            return True
        if fault.kind.isdigit():
            more = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
            self._error(int(fault.kind), "", "as told", more)
            return True
        return False

    def _send(self, status: int, body: bytes, headers: dict[str, str], fault: Fault | None = None) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        self.hub.over.wait(self.hub.delay + (fault.seconds if fault else 0.0))
        if fault is not None and fault.kind == "cut":
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            self.close_connection = True
            return
        self.wfile.write(bytes(byte ^ 0xFF for byte in body) if fault is not None and fault.kind == "wrong" else body)

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _error(self, status: int, code: str, message: str, more: dict[str, str] | None = None) -> None:
        named = {"X-Error-Code": code} if code else {}
        self._send(
            status, json.dumps({"error": message}).encode(), {**named, "X-Error-Message": message, **(more or {})}
        )


def parquet(texts: Sequence[str | None], column: str = "text", rows: int = 16) -> bytes:
    """A parquet file with one text column, `rows` rows in a group."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    pq.write_table(pa.table({column: pa.array(list(texts), pa.string())}), sink, row_group_size=rows)
    return sink.getvalue()


def main() -> None:
    root = Path(sys.argv[1])
    with LoopbackHub() as hub:
        for folder in sorted(root.glob("*/*")):
            files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
            hub.add(folder.relative_to(root).as_posix(), files)
        print(hub.url, flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            while os.getppid() != 1:
                time.sleep(0.5)


if __name__ == "__main__":
    main()
