"""Somebody else's OpenAI-compatible server, from the standard library alone: no extra fields, and all that such servers
do to their callers. What it does is chosen by the name of the model.

    with ForeignEndpoint(key="k") as server:
        OPENAI_BASE_URL=server.url  OPENAI_API_KEY=k
        server.requests      # the bodies it was sent

    plain      an answer word by word, "stop", counts in a last chunk that has no choices
    bare       pieces and [DONE]: no reason, no counts, no role
    nulls      fields that are null: content, error, usage, logprobs, choices, delta
    whole      does not stream: one JSON document
    as json    a stream that is labelled application/json
    slow       a second of silence before each word
    dies       half an answer, then the connection is closed
    hangs up   the connection is closed without a word
    fails      half an answer, then an error in the stream
    strict     refuses max_tokens, then stream_options, then logprobs, then seed
    busy       429 with Retry-After
    html       502 with a page for people
    plain 400  refuses in the words of other frameworks: {"detail": …}
    moved      308
    thinks     reasoning_content before the content
    hostile    escape sequences, markup of terminals, all scripts, endless lines, fences left open
    huge       2 MB in pieces of 64 KB
    flood      20,000 pieces of five letters, as fast as they go

Other names: 404 in OpenAI's shape; a wrong key: 401 in theirs. `python -m tests.endpoint PORT` serves.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

WORDS = "The sky is blue because short waves scatter more."
HOSTILE = (
    "[bold red]markup[/] [/nonsense] \x1b[2J\x1b]0;title\x07 \x9b31m \u202eright to left\u202c \u200b\ufeff\n\n"
    "日本語の長い文章がここにあります。 한국어 👩‍👩‍👧‍👦 🇩🇪 e\u0301\u0323\u0307 שלום עולם مرحبا\n\n"
    + "x" * 10_000 + "\n\n" + "".join("  " * depth + f"- level {depth}\n" for depth in range(30))
    + "\n| a | b |\n|---|---|\n| 1 | [link](javascript:x) |\n\n<script>alert(1)</script>\n\n```python\ndef f(:\n"
)  # fmt: skip


class ForeignEndpoint(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, key: str = "", port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.key, self.requests = key, list[dict[str, Any]]()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def __enter__(self) -> ForeignEndpoint:
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, *_: object) -> None:
        """A caller that hangs up is no news."""


NAMES = ("plain", "bare", "nulls", "whole", "as json", "slow", "dies", "hangs up", "fails", "strict", "busy", "html",
         "plain 400", "moved", "thinks", "hostile", "huge", "flood")  # fmt: skip


class _Handler(BaseHTTPRequestHandler):
    server: ForeignEndpoint

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        if self._authorised():
            self._json(200, {"object": "list", "data": [{"id": name} for name in (*NAMES, "text\x1b[2J[bold]")]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.requests.append(body)
        if not self._authorised():
            return
        model = body["model"]
        if model not in NAMES:
            self._refuse(404, f"The model `{model}` does not exist", code="model_not_found")
        elif not self._refused(model, body):
            self.send_response(200)
            self.send_header("content-type", "application/json" if model == "as json" else "text/event-stream")
            self.end_headers()
            self._stream(model)

    def _authorised(self) -> bool:
        if self.server.key and self.headers.get("authorization") != f"Bearer {self.server.key}":
            self._refuse(401, "Incorrect API key provided.", code="invalid_api_key")
            return False
        return True

    def _refused(self, model: str, body: dict[str, Any]) -> bool:
        """Whether it was answered with anything but a stream."""
        if model == "strict":
            unwanted = next(
                (name for name in ("max_tokens", "stream_options", "logprobs", "seed") if name in body), None
            )
            if unwanted is None:
                return False
            better = "; use max_completion_tokens" if unwanted == "max_tokens" else ""
            self._refuse(400, f"Unsupported parameter: {unwanted}{better}", code="unsupported_parameter")
        elif model == "busy":
            self._refuse(429, "Rate limit reached", code="rate_limit", headers={"retry-after": "7"})
        elif model == "html":
            page = "<html><head><title>502 Bad Gateway</title></head><body><h1>Bad</h1></body></html>"
            self._send(502, page.encode(), "text/html")
        elif model == "plain 400":
            self._json(400, {"detail": [{"loc": ["body", "seed"], "msg": "extra fields \x1b[2J not permitted"}]})
        elif model == "moved":
            self._send(308, b"", "text/plain", {"location": "https://elsewhere.example/v1/chat/completions"})
        elif model == "whole":
            message = {"role": "assistant", "content": WORDS}
            self._json(200, {"choices": [{"message": message, "finish_reason": "stop"}],
                             "usage": {"prompt_tokens": 5, "completion_tokens": 9}})  # fmt: skip
        elif model != "hangs up":
            return False
        self.close_connection = True
        return True

    def _stream(self, model: str) -> None:
        words = [word + " " for word in WORDS.split()]
        if model == "nulls":
            for chunk in ({"choices": None}, {"choices": [{"delta": None}]}, {"error": None, "usage": None}):
                self._line(chunk)
            self._line({"choices": [{"delta": {"role": "assistant", "content": None}, "logprobs": None}]})
        if model == "thinks":
            for word in ("Let ", "me ", "see. "):
                self._say(reasoning_content=word)
        texts = {"hostile": [HOSTILE[at : at + 40] for at in range(0, len(HOSTILE), 40)],
                 "huge": ["lorem ipsum " * 5461] * 32, "flood": ["word "] * 20_000}.get(model, words)  # fmt: skip
        for number, text in enumerate(texts):
            if model == "slow":
                time.sleep(1)
            if model in ("dies", "fails") and number == 4:
                if model == "fails":
                    self._line({"error": {"message": "the GPU \x1b[2J fell over", "type": "server_error"}})
                return
            self._say(content=text)
        if model != "bare":
            self._line({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
            self._line({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": len(texts)}})
        self.wfile.write(b"data: [DONE]\n\n")

    def _say(self, **delta: str) -> None:
        self._line({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]})

    def _line(self, chunk: object) -> None:
        self.wfile.write(b": a comment\n\ndata: " + json.dumps(chunk).encode() + b"\n\n")
        self.wfile.flush()

    def _refuse(self, status: int, message: str, code: str, headers: dict[str, str] | None = None) -> None:
        self._json(status, {"error": {"message": message, "type": "invalid_request_error", "code": code}}, headers)

    def _json(self, status: int, answer: object, headers: dict[str, str] | None = None) -> None:
        self._send(status, json.dumps(answer).encode(), "application/json", headers)

    def _send(self, status: int, content: bytes, kind: str, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"content-type": kind, "content-length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


if __name__ == "__main__":
    with ForeignEndpoint(port=int(sys.argv[1])) as serving:
        print(serving.url, flush=True)
        threading.Event().wait()
