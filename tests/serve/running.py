"""The real server in a thread, on a Unix socket and a free TCP port."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import httpx

from picollm.serve.api import ModelHub, create_app, serve


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
        assert ready.wait(20)

    @property
    def tcp(self) -> str:
        return self.addresses[1]

    def client(self) -> httpx.Client:
        """Over the Unix socket."""
        return httpx.Client(transport=httpx.HTTPTransport(uds=str(self.uds)), base_url="http://x", timeout=20)

    def end(self) -> None:
        self.stop.set()
        self.thread.join(20)
        assert not self.thread.is_alive()
