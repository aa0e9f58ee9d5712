"""Serve: the inference process behind compare, chat and the API; it ends by itself when nobody asks any more."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import secrets
import signal
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from picollm.run import lease, pipeline
from picollm.run.errors import UserError
from picollm.run.folder import Run, write_atomic

LOOK_EVERY_S = 2.0


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


def write_token(path: Path, token: str) -> None:
    """Write it so that nobody else can read it at any moment. Raises `UserError` where it cannot."""
    try:
        fd, draft = tempfile.mkstemp(dir=path.parent, prefix=".token.")  # with mode 0600
        with os.fdopen(fd, "w") as file:
            file.write(token + "\n")
        os.replace(draft, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; free space or check its permissions") from None


class _Served:
    """The run's finished checkpoints as models; looked at again now and then, for stages finish while we serve."""

    def __init__(self, run: Run) -> None:
        from picollm.serve.hub import ModelHub

        self.run, self.hub = run, ModelHub()
        self.seen: dict[str, str] = {}
        self.looked = 0.0
        self.look()

    def look(self) -> None:
        from picollm.infer.load import load_model

        self.looked = time.monotonic()
        for model, stage in pipeline.MODEL_STAGES.items():
            done = self.run.finished(stage)
            if done is None or self.seen.get(model) == done.artifacts.get("checkpoint"):
                continue
            try:
                checkpoint = self.run.output(stage, "checkpoint")
                tokenizer = self.run.output("tokenizer", "tokenizer")
            except UserError as error:
                print(f"{model}: {error}", flush=True)
                continue
            self.seen[model] = done.artifacts["checkpoint"]
            self.hub.add(model, partial(load_model, checkpoint, tokenizer), stage=stage, checkpoint=checkpoint.name)
            print(f"{model}: {checkpoint}", flush=True)


def serve_run(run: Run, idle_s: float, host: str | None, port: int) -> None:
    """Serve until idle for `idle_s` seconds or asked to stop. Raises `UserError` when there is nothing to serve."""
    folder = run.dir / "jobs" / "serve"
    lock = lease.Lock(folder / "lock")
    if not lock.exclusive(patience=2.0):
        raise UserError(f"{run.name} is being served already")
    from picollm.serve.api import create_app, serve
    from picollm.train.device import start

    machine = run.config().machine
    start("cpu" if machine.device == "auto" else machine.device, threads=machine.threads, deterministic="off")
    served = _Served(run)
    if not served.hub.names:
        raise UserError(f"{run.name}: no model yet: finish pretrain first (picollm run --run {run.name})")
    asked = {"stop": False}

    def on_signal(number: int, frame: object) -> None:
        asked["stop"] = True

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    uds = socket_path(run)
    token = secrets.token_urlsafe(24) if host else None
    if token:
        write_token(folder / "token", token)

    def on_ready(addresses: list[str]) -> None:
        me = lease.identify()
        write_atomic(folder / "address.json", json.dumps({"uds": str(uds), "addresses": addresses, **me._asdict()}))
        print(f"listening on {', '.join(addresses)}", flush=True)

    def should_stop() -> bool:
        worker = served.hub.worker
        if time.monotonic() - served.looked > LOOK_EVERY_S:
            served.look()
        return asked["stop"] or (not worker.busy and time.monotonic() - worker.last_used > idle_s)

    try:
        serve(create_app(served.hub, token), uds=uds, host=host, port=port, should_stop=should_stop, on_ready=on_ready)
    finally:
        (folder / "address.json").unlink(missing_ok=True)
        lock.release()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m stages.serve", description="Serve a run's models.")
    parser.add_argument("--run", required=True, type=Path, help="the run folder")
    parser.add_argument("--idle", type=float, default=600.0, help="end after this many seconds without a request")
    parser.add_argument("--host", help="also listen on this TCP address; the token is written to jobs/serve/token")
    parser.add_argument("--port", type=int, default=0, help="TCP port; 0: any free one")
    options = parser.parse_args()
    run = Run(options.run.expanduser().absolute())
    try:
        if not run.exists():
            raise UserError(f"{run.dir} is not a run folder (no config.toml)")
        serve_run(run, options.idle, options.host, options.port)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
