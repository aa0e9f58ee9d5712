"""Serve: the inference process behind compare, chat, the API and the web page.

Two ways. Behind `picollm chat` and the app: one run over a Unix socket, in the background, until nobody asks any more.
With --host, as `picollm serve` and `picollm web` start it: runs over TCP, in the foreground, until a signal.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import secrets
import signal
import sys
import tempfile
import threading
import time
import webbrowser
from collections.abc import Callable
from pathlib import Path

from picollm.run import lease
from picollm.run.errors import UserError
from picollm.run.folder import ACTIVE, Run, write_atomic

TOKEN_VARIABLE = "PICOLLM_TOKEN"
SHORTEST_TOKEN = 16  # characters
KEPT_MODELS = 5  # in memory at once, for those who step through checkpoints


def socket_path(run: Run) -> Path:
    """A short path in a folder of our own, 0700: in the run folder it could be too long for a socket."""
    base = os.environ.get("XDG_RUNTIME_DIR")
    if base and _is_ours(Path(base)):
        folder = Path(base) / "picollm"
    else:
        folder = Path(tempfile.gettempdir()) / f"picollm-{os.getuid()}"
    return folder / f"{hashlib.sha256(str(run.dir).encode()).hexdigest()[:16]}.sock"


def _is_ours(folder: Path) -> bool:
    """After `su` or in a container the environment may name another user's folder, or one that is not there."""
    try:
        return folder.is_dir() and folder.stat().st_uid == os.getuid()
    except OSError:
        return False


def serve_run(run: Run, idle_s: float) -> None:
    """Serve until idle for `idle_s` seconds or asked to stop. Raises `UserError` when there is nothing to serve."""
    folder = run.dir / "jobs" / "serve"
    lock = lease.Lock(folder / "lock")
    if not lock.exclusive(patience=2.0):
        raise UserError(f"{run.name} is being served already")
    from picollm.serve.api import create_app, serve
    from picollm.serve.runs import RunModels
    from picollm.train.device import start

    machine = run.config().machine
    device = "cpu" if machine.device == "auto" else machine.device
    ranks = start(device, threads=machine.threads, deterministic="off")
    models = RunModels([run], device=ranks.device, keep=KEPT_MODELS, checkpoints=True, say=_say)
    models.require()
    stopping = _on_signals()
    uds = socket_path(run)

    def on_ready(addresses: list[str]) -> None:
        me = lease.identify()
        write_atomic(folder / "address.json", json.dumps({"uds": str(uds), "addresses": addresses, **me._asdict()}))
        _say(f"listening on {', '.join(addresses)}")

    def should_stop() -> bool:
        worker = models.hub.worker
        models.look_now_and_then()
        return stopping() or (not worker.busy and time.monotonic() - worker.last_used > idle_s)

    try:
        serve(create_app(models.hub, None), uds=uds, should_stop=should_stop, on_ready=on_ready)
    finally:
        (folder / "address.json").unlink(missing_ok=True)
        lock.release()


def serve_publicly(runs: list[Run], options: argparse.Namespace) -> None:
    """Serve over TCP until a signal. Raises `UserError` for what the person has to mend."""
    from picollm.serve.api import create_app, serve
    from picollm.serve.guard import LOOPBACK_NAMES
    from picollm.serve.listen import is_loopback
    from picollm.serve.runs import RunModels
    from picollm.train.device import start

    loopback = is_loopback(options.host)
    token = choose_token(options.token_file, demanded=options.with_token or not loopback)
    origins = [check_origin(origin) for origin in options.allow_origin]
    ranks = start(choose_device(options.device, runs), threads=runs[0].config().machine.threads, deterministic="off")
    models = RunModels(runs, device=ranks.device, precision=options.precision, keep=options.keep, say=_say)
    models.require()
    stopping = _on_signals()
    hosts = LOOPBACK_NAMES | {options.host.lower()} if loopback else None

    def on_ready(addresses: list[str]) -> None:
        [address] = addresses
        _say(f"models on {ranks.device}: {', '.join(models.hub.names)}")
        _say(f"the API is at {address}/v1, for {'whoever brings the token' if token else 'this machine only'}")
        if token and not (options.token_file or os.environ.get(TOKEN_VARIABLE)):
            _say(f"token: {token}")
        link = address.replace("//0.0.0.0", "//127.0.0.1").replace("//[::]", "//[::1]") + "/"
        _say(f"the page is at {link}")
        if options.open and can_open():
            # After the #, a token is seen by the page alone: a browser sends it nowhere.
            threading.Thread(target=webbrowser.open, args=(link + (f"#token={token}" if token else ""),)).start()
        elif options.open:
            port = address.rpartition(":")[2]
            _say(f"no browser to open here; from another machine: ssh -L {port}:127.0.0.1:{port} {os.uname().nodename}")
        _say("Ctrl-C ends it")

    def should_stop() -> bool:
        models.look_now_and_then()
        return stopping()

    app = create_app(models.hub, token, hosts=hosts, origins=origins)
    serve(app, host=options.host, port=options.port, should_stop=should_stop, on_ready=on_ready)


def choose_token(file: Path | None, *, demanded: bool) -> str | None:
    """The token of the file, else of the environment, else a new one if one is demanded. Raises `UserError`."""
    if file is not None:
        try:
            if file.stat().st_mode & 0o077:
                raise UserError(f"{file} can be read by other users; run: chmod 600 {file}")
            token = file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read the token file {file}: {error}") from None
        where = str(file)
    elif TOKEN_VARIABLE in os.environ:
        token, where = os.environ[TOKEN_VARIABLE].strip(), TOKEN_VARIABLE
    else:
        return secrets.token_urlsafe(24) if demanded else None
    if len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise UserError(f"the token in {where} must be {SHORTEST_TOKEN} or more ASCII characters without spaces")
    return token


def check_origin(origin: str) -> str:
    """An exact web origin, as a browser sends it. Raises `UserError` for a wildcard and for anything else."""
    scheme, _, host = origin.partition("://")
    if scheme not in ("http", "https") or not host or set(host) & set("/*?#@ "):
        raise UserError(f"--allow-origin {origin}: expected an exact origin such as https://chat.example:8443")
    return origin


def choose_device(wanted: str, runs: list[Run]) -> str:
    """`auto` is a GPU that none of the runs is using at this moment, else the CPU."""
    if wanted != "auto":
        return wanted
    from picollm.train.device import pick_device

    found = pick_device().type
    busy = [run.name for run in runs if any(status.state in ACTIVE for status in run.statuses())]
    if found != "cpu" and busy:
        _say(f"on the CPU, because {', '.join(busy)} uses the {found} device; --device {found} shares it")
        return "cpu"
    return found


def can_open() -> bool:
    """Whether a browser would appear in front of the person: not over SSH, and not a browser in this terminal."""
    if "SSH_CONNECTION" in os.environ:
        return False
    return sys.platform == "darwin" or any(name in os.environ for name in ("DISPLAY", "WAYLAND_DISPLAY"))


def _on_signals() -> Callable[[], bool]:
    """From now on SIGTERM and SIGINT only ask to stop; returns whether they did. Losing the terminal stops nothing."""
    asked = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: asked.set())
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    return asked.is_set


def _say(text: str) -> None:
    print(text, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m stages.serve", description="Serve the models of runs.")
    parser.add_argument("--run", required=True, type=Path, action="append", help="a run folder; may be repeated")
    parser.add_argument("--idle", type=float, default=600.0, help="end after this many seconds without a request")
    parser.add_argument("--host", help="serve over TCP on this address instead, in the foreground")
    parser.add_argument("--port", type=int, default=0, help="TCP port; 0: any free one")
    parser.add_argument("--token-file", type=Path, help="the bearer token to ask for, in a file of mode 600")
    parser.add_argument("--with-token", action="store_true", help="ask for a token on loopback, too")
    parser.add_argument("--allow-origin", action="append", default=[], help="a web origin whose pages may ask")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda", "mps"])
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16", "int8"], help="default: the run's setting")
    parser.add_argument("--keep", type=int, help="most models in memory at once")
    parser.add_argument("--open", action="store_true", help="open the page in a browser")
    options = parser.parse_args()
    runs = [Run(folder.expanduser().absolute()) for folder in options.run]
    try:
        for run in runs:
            if not run.exists():
                raise UserError(f"{run.dir} is not a run folder (no config.toml)")
        if options.host is not None:
            serve_publicly(runs, options)
        elif len(runs) > 1:
            raise UserError("several runs are served over TCP only; add --host 127.0.0.1")
        else:
            serve_run(runs[0], options.idle)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    except KeyboardInterrupt:  # before signals only ask: torch takes seconds to load
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
