"""The real server in a thread, on a Unix socket and a free TCP port."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import httpx

from picollm.infer.engine import Engine
from picollm.serve.api import ModelHub, create_app, serve

PATIENCE_S = 60.0


class Running:
    """Listens from its making on; `end()` stops it. `tcp` is its address, without a slash at the end."""

    def __init__(self, hub: ModelHub, folder: Path, token: str | None = "secret", **more: Any) -> None:
        self.hub, self.uds = hub, folder / "private" / "s.sock"
        self.stop, ready = threading.Event(), threading.Event()
        self.addresses: list[str] = []
        self.app = create_app(hub, token, **more)

        def on_ready(addresses: list[str]) -> None:
            self.addresses = addresses
            ready.set()

        def run() -> None:
            serve(self.app, uds=self.uds, host="127.0.0.1", should_stop=self.stop.is_set, on_ready=on_ready)

        self.thread = threading.Thread(target=run)
        self.thread.start()
        assert ready.wait(PATIENCE_S)

    @property
    def tcp(self) -> str:
        return self.addresses[1]

    def client(self) -> httpx.Client:
        """Over the Unix socket."""
        return httpx.Client(transport=httpx.HTTPTransport(uds=str(self.uds)), base_url="http://x", timeout=PATIENCE_S)

    def end(self) -> None:
        self.stop.set()
        self.thread.join(PATIENCE_S)
        assert not self.thread.is_alive()


class Brake:
    """Holds an engine: its model makes as many steps as it was allowed, a prompt being one; `made` counts them. What
    should happen while an answer is under way then happens while it is, however fast or slow the machine."""

    def __init__(self, engine: Engine, allowed: int = 0) -> None:
        self.made, self._allowed = 0, threading.Semaphore(allowed)
        real = engine.model.hidden

        def hidden(*args: Any) -> Any:
            self._allowed.acquire()
            self.made += 1
            return real(*args)

        engine.model.hidden = hidden  # type: ignore[method-assign]

    def allow(self, steps: int) -> None:
        self._allowed.release(steps)

    def release(self) -> None:
        """All steps there will ever be."""
        self.allow(1_000_000)
