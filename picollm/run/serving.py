"""The client side of the inference process (`stages/serve.py`): start it, find it, stream from it. No torch.

It speaks the OpenAI API over a Unix domain socket. `jobs/serve/lock` says whether it lives, `jobs/serve/address.json`
where it listens, `jobs/serve/console.log` what it said.
"""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from picollm.run import launch, lease
from picollm.run.errors import UserError
from picollm.run.folder import Run

if TYPE_CHECKING:
    import httpx

POLL_S = 0.1
CONNECT_S = 5.0
SILENCE_S = 180.0  # a first answer waits for the model to be loaded
STOP_PATIENCE_S = 5.0


class Address(msgspec.Struct, kw_only=True):
    """Where the inference process listens, and which process it is (for signals, checked before use)."""

    uds: str
    pid: int = 0
    host: str = ""
    boot_id: str = ""
    start_ticks: int = -1


class Delta(msgspec.Struct, kw_only=True):
    """A piece of an answer. The last one has a `finish_reason` ("stop", "length"), the tokens per second and the count.

    `first_token_s`: seconds from the request to the first piece; on every piece.
    """

    text: str = ""
    finish_reason: str | None = None
    tok_s: float | None = None
    first_token_s: float | None = None
    tokens: int = 0


def serve_folder(run: Run) -> Path:
    return run.dir / "jobs" / "serve"


def serving(run: Run) -> Address | None:
    """The address of a living inference process; None when there is none (or it is still starting)."""
    if not lease.is_held(serve_folder(run) / "lock"):
        return None
    try:
        return msgspec.json.decode((serve_folder(run) / "address.json").read_bytes(), type=Address)
    except (OSError, msgspec.DecodeError):
        return None


def ensure_serving(run: Run, timeout_s: float = 60) -> Address:
    """Start the inference process unless one is alive, and wait until it answers.

    It outlives us and ends by itself when idle. Raises `UserError` with its last word when it dies, or when it does
    not answer in time.
    """
    end = time.monotonic() + timeout_s
    console = serve_folder(run) / "console.log"
    start = lease.Lock(serve_folder(run) / "starting")
    try:
        if not start.exclusive(patience=timeout_s):
            raise UserError(f"{run.name}: somebody has been starting the inference process for {timeout_s:.0f} s")
        child = None
        while True:
            address = serving(run)
            if address is not None and _answers(address):
                return address
            if child is None and not lease.is_held(serve_folder(run) / "lock"):
                (serve_folder(run) / "address.json").unlink(missing_ok=True)
                argv = [sys.executable, "-m", "stages.serve", "--run", str(run.dir)]
                child = launch.spawn_detached(argv, console)
            if child is not None and child.poll() is not None:
                raise UserError(f"the inference process ended at once: {last_line(console)}")
            if time.monotonic() >= end:
                word = last_line(console)
                raise UserError(f"the inference process did not answer within {timeout_s:.0f} s: {word}; see {console}")
            time.sleep(POLL_S)
    except OSError as error:
        raise UserError(f"cannot start the inference process in {serve_folder(run)}: {error.strerror}") from None
    finally:
        start.release()


def stop_serving(run: Run) -> bool:
    """End the inference process: asked first, killed after five seconds. False when there was none of ours."""
    address = serving(run)
    if address is None:
        return False
    who = lease.Identity(address.pid, address.host, address.boot_id, address.start_ticks)
    if not lease.signal_process(who, signal.SIGTERM):
        return False
    end = time.monotonic() + STOP_PATIENCE_S
    while lease.is_held(serve_folder(run) / "lock"):
        if time.monotonic() >= end:
            lease.kill_tree(who)
            break
        time.sleep(0.05)
    return True


def last_line(console: Path) -> str:
    """The last line of a console log, without our "error: " in front."""
    try:
        with open(console, "rb") as file:
            file.seek(max(0, file.seek(0, 2) - 4096))
            lines = file.read().decode(errors="replace").split("\n")
    except OSError as error:
        return f"{console} cannot be read: {error.strerror}"
    line = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
    return line.removeprefix("error: ")


class Client:
    """Talks to one inference process. The sync streams are for the command line, the async ones for the app.

    Closing a stream's generator closes the connection, which makes the server stop generating. All methods raise
    `UserError` when the process is gone or refuses.
    """

    def __init__(self, address: Address) -> None:
        self.address = address

    def models(self) -> list[str]:
        """The models that can be asked for: some of base, mid, sft, rl."""
        with _errors(), self._client() as client:
            answer = client.get("/v1/models")
            _refuse(answer.status_code, answer.content)
            return [str(model["id"]) for model in answer.json()["data"]]

    def stream_chat(
        self, model: str, messages: list[dict[str, Any]], *, temperature: float = 0.7, top_k: int = 50, seed: int = 1,
        max_tokens: int = 96,
    ) -> Iterator[Delta]:  # fmt: skip
        """An answer to a conversation, piece by piece. For mid, sft and rl."""
        body = _body(model, temperature, top_k, seed, max_tokens) | {"messages": messages}
        return self._stream("/v1/chat/completions", body)

    def stream_completion(
        self, model: str, prompt: str, *, temperature: float = 0.7, top_k: int = 50, seed: int = 1,
        max_tokens: int = 96,
    ) -> Iterator[Delta]:  # fmt: skip
        """A continuation of raw text, piece by piece: all that a base model does."""
        body = _body(model, temperature, top_k, seed, max_tokens) | {"prompt": prompt}
        return self._stream("/v1/completions", body)

    def astream_chat(
        self, model: str, messages: list[dict[str, Any]], *, temperature: float = 0.7, top_k: int = 50, seed: int = 1,
        max_tokens: int = 96,
    ) -> AsyncIterator[Delta]:  # fmt: skip
        """`stream_chat` for an event loop."""
        body = _body(model, temperature, top_k, seed, max_tokens) | {"messages": messages}
        return self._astream("/v1/chat/completions", body)

    def astream_completion(
        self, model: str, prompt: str, *, temperature: float = 0.7, top_k: int = 50, seed: int = 1,
        max_tokens: int = 96,
    ) -> AsyncIterator[Delta]:  # fmt: skip
        """`stream_completion` for an event loop."""
        body = _body(model, temperature, top_k, seed, max_tokens) | {"prompt": prompt}
        return self._astream("/v1/completions", body)

    def _client(self) -> httpx.Client:
        import httpx  # a tenth of a second that only those who talk should pay

        transport = httpx.HTTPTransport(uds=self.address.uds)
        return httpx.Client(transport=transport, base_url="http://picollm", timeout=_timeout())

    def _stream(self, path: str, body: dict[str, Any]) -> Iterator[Delta]:
        answer = _Answer()
        with _errors(), self._client() as client, client.stream("POST", path, json=body) as response:
            if response.status_code != 200:
                _refuse(response.status_code, response.read())
            for line in response.iter_lines():
                if (delta := answer.take(line)) is not None:
                    yield delta
            yield answer.last()

    async def _astream(self, path: str, body: dict[str, Any]) -> AsyncIterator[Delta]:
        import httpx

        answer = _Answer()
        transport = httpx.AsyncHTTPTransport(uds=self.address.uds)
        with _errors():
            async with (
                httpx.AsyncClient(transport=transport, base_url="http://picollm", timeout=_timeout()) as client,
                client.stream("POST", path, json=body) as response,
            ):
                if response.status_code != 200:
                    _refuse(response.status_code, await response.aread())
                async for line in response.aiter_lines():
                    if (delta := answer.take(line)) is not None:
                        yield delta
                yield answer.last()


class _Answer:
    """Folds the lines of one server-sent stream. Reasons and figures are kept for one last delta."""

    def __init__(self) -> None:
        self.begun = time.monotonic()
        self.first: float | None = None
        self.reason: str | None = None
        self.pieces = 0
        self.tokens: int | None = None
        self.tok_s: float | None = None

    def take(self, line: str) -> Delta | None:
        """One line to a piece of text; None when it holds none. Raises `UserError` for an error in the stream."""
        if not line.startswith("data:") or line.strip() == "data: [DONE]":
            return None
        chunk = json.loads(line[5:])
        if "error" in chunk:
            raise UserError(f"inference: {_message(chunk)}")
        usage = chunk.get("usage") or {}
        self.tokens = usage.get("completion_tokens", self.tokens)
        self.tok_s = usage.get("tokens_per_second", self.tok_s)
        text = ""
        for choice in chunk.get("choices", [])[:1]:
            self.reason = choice.get("finish_reason") or self.reason
            text = choice.get("text") or (choice.get("delta") or {}).get("content") or ""
        if not text:
            return None
        self.pieces += 1
        self.first = time.monotonic() - self.begun if self.first is None else self.first
        return Delta(text=text, first_token_s=self.first, tokens=self.pieces)

    def last(self) -> Delta:
        if self.reason is None:
            raise UserError("the answer was cut off: the inference process ended; ask again")
        tokens = self.pieces if self.tokens is None else self.tokens
        spent = time.monotonic() - self.begun - (self.first or 0.0)
        pace = self.tok_s or ((tokens - 1) / spent if tokens > 1 and spent > 0 else None)
        return Delta(finish_reason=self.reason, tok_s=pace, first_token_s=self.first, tokens=tokens)


def _body(model: str, temperature: float, top_k: int, seed: int, max_tokens: int) -> dict[str, Any]:
    return {
        "model": model,
        "temperature": temperature,
        "top_k": top_k,
        "seed": seed,
        "max_tokens": max_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def _timeout() -> httpx.Timeout:
    import httpx

    return httpx.Timeout(SILENCE_S, connect=CONNECT_S)


def _answers(address: Address) -> bool:
    try:
        Client(address).models()
    except UserError:
        return False
    return True


def _message(answer: Any) -> str:
    error = answer.get("error") if isinstance(answer, dict) else None
    text = error.get("message") if isinstance(error, dict) else error
    return " ".join(str(text or answer).split())[:400]


def _refuse(status: int, content: bytes) -> None:
    """Raises `UserError` with the server's own words unless `status` is 200."""
    if status == 200:
        return
    try:
        answer = json.loads(content)
    except ValueError:
        answer = content.decode(errors="replace")
    raise UserError(f"inference: {_message(answer)} (HTTP {status})")


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    """What httpx and a server that is no server of ours can raise, as one line."""
    import httpx

    try:
        yield
    except httpx.TimeoutException:
        raise UserError(f"the inference process said nothing for {SILENCE_S:.0f} s; stop it and ask again") from None
    except httpx.HTTPError as error:
        raise UserError(f"the inference process does not answer ({error}); ask again to start it") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"the inference process answered something else than the OpenAI API: {error!r}") from None
