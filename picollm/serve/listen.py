"""Where the API listens: a Unix socket only its owner can reach, a TCP port, or both."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import socket
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.types import ASGIApp, Receive, Scope, Send

from picollm.run.errors import UserError

TRUSTED = "picollm.trusted"  # key of a request's scope: it came over our Unix socket
MAX_UNIX_PATH = 103  # bytes; the shortest limit among the systems this runs on (macOS)
POLL_S = 0.2
KEEP_ALIVE_S = 60  # longer than clients keep an idle connection, so that they never write to one we are closing
GRACE_S = 2  # seconds open streams get to end once a stop is asked for


def serve(
    app: Starlette,
    *,
    uds: Path | None = None,
    host: str | None = None,
    port: int = 0,
    should_stop: Callable[[], bool] | None = None,
    on_ready: Callable[[list[str]], None] | None = None,
) -> None:
    """Answer requests until told to stop; blocks.

    Args:
        uds: path of a Unix socket to make, in a folder of mode 0700 (made if missing); the socket gets mode 0600.
        host, port: TCP address; port 0 takes a free one. Needs an app with a token; on loopback, one that at least
            checks the `Host` header.
        should_stop: asked five times a second; True ends the server. Without it SIGINT and SIGTERM do.
        on_ready: called once with the addresses, as paths and http:// addresses, when requests are accepted.

    Raises:
        UserError: an address is taken, too long, or not private.
    """
    if uds is None and host is None:
        raise UserError("serve: nowhere to listen; give a Unix socket or a host")
    if host is not None and app.state.token is None and not (app.state.guarded and is_loopback(host)):
        raise UserError(f"serve: refusing to listen on {host} without a token")
    listeners: list[tuple[ASGIApp, socket.socket]] = []
    try:
        if uds is not None:
            listeners.append((_trusting(app), bind_unix(uds)))
        if host is not None:
            listeners.append((app, _bind_tcp(host, port)))
        asyncio.run(_run(listeners, should_stop, on_ready))
    finally:
        for _, sock in listeners:
            sock.close()
        if uds is not None and listeners:
            uds.unlink(missing_ok=True)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens there. Raises UserError for a name that leads nowhere."""
    return all(ipaddress.ip_address(address[0].partition("%")[0]).is_loopback for *_, address in _resolve(host, 0))


def _resolve(host: str, port: int) -> Sequence[tuple[socket.AddressFamily, int, int, str, tuple]]:
    try:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise UserError(f"cannot listen on {host!r}: {error}; give an address of this machine") from None


def _trusting(app: ASGIApp) -> ASGIApp:
    """The app for those whom the socket's file permissions let in. Only the server can set a key of the scope."""

    async def trusting(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, TRUSTED: True}, receive, send)

    return trusting


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, *, own_signals: bool) -> None:
        super().__init__(config)
        self._own_signals = own_signals

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals belong to whoever passed `should_stop`."""
        if not self._own_signals:
            yield
            return
        with super().capture_signals():
            yield


async def _run(
    listeners: list[tuple[ASGIApp, socket.socket]], should_stop: Callable[[], bool] | None,
    on_ready: Callable[[list[str]], None] | None,
) -> None:  # fmt: skip
    servers = [
        _Server(
            uvicorn.Config(
                app, log_config=None, access_log=False, proxy_headers=False, server_header=False, ws="none",
                timeout_keep_alive=KEEP_ALIVE_S, timeout_graceful_shutdown=GRACE_S,
                lifespan="on" if i == 0 else "off",  # one app, one lifespan
            ),
            own_signals=should_stop is None and i == 0,
        )
        for i, (app, _) in enumerate(listeners)
    ]  # fmt: skip

    async def watch() -> None:
        while not all(server.started for server in servers):
            await asyncio.sleep(0.01)
        if on_ready is not None:
            on_ready([_address(sock) for _, sock in listeners])
        while should_stop is None or not should_stop():
            await asyncio.sleep(POLL_S)

    # Whichever ends first, by a stop, a signal or a failure, ends the others: nothing may be left that no one can stop.
    watching = asyncio.ensure_future(watch())
    serving = [
        asyncio.ensure_future(server.serve(sockets=[sock]))
        for server, (_, sock) in zip(servers, listeners, strict=True)
    ]
    await asyncio.wait([watching, *serving], return_when=asyncio.FIRST_COMPLETED)
    for server in servers:
        server.should_exit = True
    await asyncio.gather(*serving)
    if watching.done():
        watching.result()
    watching.cancel()


def bind_unix(path: Path) -> socket.socket:
    """Make a Unix socket that only its owner can connect to.

    uvicorn would open a socket it makes to everybody, so it is bound here; the 0700 folder also covers the moment
    between bind and chmod. A socket left by a dead process is replaced. Raises UserError.
    """
    if len(os.fsencode(path)) > MAX_UNIX_PATH:
        raise UserError(f"the socket path {path} is longer than {MAX_UNIX_PATH} bytes; use a shorter folder")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = path.parent.stat()
        if folder.st_uid != os.geteuid() or stat.S_IMODE(folder.st_mode) & 0o077:
            raise UserError(f"{path.parent} is open to other users; run: chmod 700 {path.parent}")
        if path.is_socket():
            if _alive(path):
                raise UserError(f"another process already listens on {path}; stop it first")
            path.unlink()
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.bind(os.fspath(path))
            os.chmod(path, 0o600)
            sock.listen(128)
        except BaseException:
            sock.close()
            raise
        return sock
    except OSError as error:
        raise UserError(f"cannot make the socket {path}: {error.strerror}") from None


def _alive(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        return probe.connect_ex(os.fspath(path)) == 0


def _bind_tcp(host: str, port: int) -> socket.socket:
    family, _, _, _, address = _resolve(host, port)[0]
    try:
        sock = socket.create_server(address[:2], family=family)  # type: ignore[arg-type]
    except OSError as error:
        raise UserError(f"cannot listen on {host}:{port}: {error.strerror}; choose another port") from None
    # Connections inherit it. asyncio would set it only for a socket made with its protocol named; without it a short
    # piece of a stream waits 40 ms for the client to acknowledge the one before (Nagle and delayed acknowledgements).
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def _address(sock: socket.socket) -> str:
    name = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        return str(name)
    host = f"[{name[0]}]" if ":" in name[0] else name[0]
    return f"http://{host}:{name[1]}"
