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
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from picollm.run import launch, lease
from picollm.run.endpoint import KEY, URL, Endpoint
from picollm.run.errors import UserError
from picollm.run.folder import Run
from picollm.run.stream import Delta, Fold, body_of, is_stream, message_of, milder
from picollm.run.structs import complete

if TYPE_CHECKING:
    import httpx

__all__ = ["Address", "Client", "Delta", "ensure_serving", "serving", "stop_serving"]

POLL_S = 0.1
CONNECT_S = 5.0
SILENCE_S = 180.0  # a first answer waits for the model to be loaded
STOP_PATIENCE_S = 5.0


@complete
class Address(msgspec.Struct, kw_only=True):
    """Where the inference process listens, and which process it is (for signals, checked before use)."""

    uds: str
    pid: int = 0
    host: str = ""
    boot_id: str = ""
    start_ticks: int = -1


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

    It outlives us and ends by itself when idle. Raises `UserError` with its last word when it dies, when it does not
    answer in time, or when there is no such run (any more).
    """
    run.require()
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
    lock = serve_folder(run) / "lock"
    if not lease.freed(lock, STOP_PATIENCE_S):
        lease.kill_tree(who)
        lease.freed(lock, STOP_PATIENCE_S)
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
    """Talks to one inference process, or to an endpoint of others. The sync streams are for the command line, the
    async ones for the app.

    Closing a stream's generator closes the connection, which makes the server stop generating. All methods raise
    `UserError` when the process is gone or refuses. What the streams take besides the prompt are the arguments of
    `stream.body_of`; `logprobs` is how many of the likeliest tokens are told beside each token, 0 for none.
    """

    def __init__(self, address: Address | Endpoint) -> None:
        self.address = address
        self._own = isinstance(address, Address)

    @property
    def who(self) -> str:
        """As messages call it."""
        return "the inference process" if isinstance(self.address, Address) else self.address.host

    def models(self) -> list[str]:
        """The models that can be asked for: of a run base, mid, sft and rl, as far as there are."""
        with self._errors(), self._client() as client:
            answer = client.get("/models")
            self._refuse(answer.status_code, answer.content, answer.headers)
            names = [str(model["id"]) for model in answer.json()["data"]]
            return [name for name in names if "@" not in name] if self._own else names

    def stream_chat(self, model: str, messages: list[dict[str, Any]], **how: Any) -> Iterator[Delta]:
        """An answer to a conversation, piece by piece. For mid, sft and rl."""
        return self._stream("/chat/completions", self._body(model, True, how) | {"messages": messages})

    def stream_completion(self, model: str, prompt: str, **how: Any) -> Iterator[Delta]:
        """A continuation of raw text, piece by piece: all that a base model does."""
        return self._stream("/completions", self._body(model, False, how) | {"prompt": prompt})

    def astream_chat(self, model: str, messages: list[dict[str, Any]], **how: Any) -> AsyncIterator[Delta]:
        """`stream_chat` for an event loop."""
        return self._astream("/chat/completions", self._body(model, True, how) | {"messages": messages})

    def astream_completion(self, model: str, prompt: str, **how: Any) -> AsyncIterator[Delta]:
        """`stream_completion` for an event loop."""
        return self._astream("/completions", self._body(model, False, how) | {"prompt": prompt})

    def _body(self, model: str, chat: bool, how: dict[str, Any]) -> dict[str, Any]:
        defaults: dict[str, Any] = {"temperature": 0.7, "top_k": 50, "seed": 1, "max_tokens": 96, "logprobs": 0,
                                    "show_tools": False}  # fmt: skip
        return body_of(model, chat=chat, own=self._own, **defaults | how)

    def _way(self, transport: Any) -> dict[str, Any]:
        """Where to, in the words of httpx."""
        import httpx  # a tenth of a second that only those who talk should pay

        timeout = httpx.Timeout(SILENCE_S, connect=CONNECT_S)
        if isinstance(self.address, Address):
            return {"transport": transport(uds=self.address.uds), "base_url": "http://picollm/v1", "timeout": timeout}
        headers = {"authorization": f"Bearer {self.address.key}"} if self.address.key else {}
        return {"base_url": self.address.url, "headers": headers, "timeout": timeout}

    def _client(self) -> httpx.Client:
        import httpx

        return httpx.Client(**self._way(httpx.HTTPTransport))

    def _stream(self, path: str, body: dict[str, Any]) -> Iterator[Delta]:
        answer = Fold(self.who)
        with self._errors(), self._client() as client, client.stream("POST", path, json=body) as response:
            if response.status_code != 200:
                self._refuse(response.status_code, response.read(), response.headers)
            for line in response.iter_lines():
                if (delta := answer.take(line)) is not None:
                    yield delta
            yield answer.last()

    async def _astream(self, path: str, body: dict[str, Any]) -> AsyncIterator[Delta]:
        import httpx

        asked: dict[str, Any] | None = body
        with self._errors():
            async with httpx.AsyncClient(**self._way(httpx.AsyncHTTPTransport)) as client:
                while asked is not None:
                    answer = Fold(self.who)
                    async with client.stream("POST", path, json=asked) as response:
                        if response.status_code != 200:
                            content = await response.aread()
                            asked = None if self._own else milder(asked, content.decode(errors="replace"))
                            if asked is None:
                                self._refuse(response.status_code, content, response.headers)
                            continue
                        if response.headers.get("content-type", "").startswith("application/json"):
                            content = await response.aread()
                            if not is_stream(content):  # some label a stream so, too
                                yield answer.take_whole(content) or Delta()
                        async for line in response.aiter_lines():
                            if (delta := answer.take(line)) is not None:
                                yield delta
                        yield answer.last()
                        return

    def _refuse(self, status: int, content: bytes, headers: Mapping[str, str]) -> None:
        """Raises `UserError` with the server's own words, and what to do about them, unless `status` is 200."""
        if status == 200:
            return
        try:
            answer = json.loads(content)
        except ValueError:
            answer = content.decode(errors="replace")
        words = message_of(answer)
        if 300 <= status < 400:
            words = f"it has moved to {message_of(headers.get('location', 'another address'))}; set {URL}"
        elif status in (401, 403) and not self._own:
            words = f"{words or 'not allowed'}; is {KEY} right?"
        elif status == 429 and (wait := headers.get("retry-after", "")).isdigit():
            words = f"{words or 'too many requests'}; ask again in {wait} s"
        raise UserError(f"{self.who}: {words or 'refused'} (HTTP {status})")

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """What httpx and a server that is no server of ours can raise, as one line."""
        import httpx

        again = "ask again to start it" if self._own else "is the address right, and the network up?"
        try:
            yield
        except httpx.TimeoutException:
            raise UserError(f"{self.who} said nothing for {SILENCE_S:.0f} s; stop it and ask again") from None
        except (httpx.ReadError, httpx.RemoteProtocolError):
            raise UserError(f"the answer was cut off: {self.who} is gone; ask again") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise UserError(f"{self.who} does not answer ({error}); {again}") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{self.who} answered something else than the OpenAI API: {error!r}") from None


def _answers(address: Address) -> bool:
    try:
        Client(address).models()
    except UserError:
        return False
    return True
