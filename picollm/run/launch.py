"""Starting and ending stage processes.

`python -m picollm.run.launch --run DIR --stage S` is the small process between the conductor and a stage: it owns the
stage's lock, numbers the attempt, keeps a copy of the settings, starts the stage (under torchrun when asked for more
than one rank), turns SIGTERM and SIGINT into a request to stop, and records how the stage ended, which a killed
process cannot do. It loads no torch.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from picollm.run import config as settings
from picollm.run import events as ev
from picollm.run import lease, pipeline
from picollm.run.errors import UserError
from picollm.run.folder import Run, write_atomic

KILL_AFTER_S = 3.0


def child_environment() -> dict[str, str]:
    """Our environment for a child: a folder called `stages` in the current directory must not shadow ours."""
    return os.environ | {"PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false"}


def stage_command(run: Run, name: str, attempt: int, nproc: int, fresh: bool) -> list[str]:
    """The argv of the stage itself."""
    tail = ["-m", f"stages.{name}", "--run", str(run.dir), "--attempt", str(attempt)] + (["--fresh"] if fresh else [])
    row = pipeline.stage(name)
    if nproc > 1 and (row.trains or row.ranked):
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={nproc}", "--max-restarts=0"]
        return [sys.executable, *torchrun, *tail]
    return [sys.executable, *tail]


def spawn_detached(argv: list[str], console: Path) -> subprocess.Popen[bytes]:
    """Start a process that outlives us, our terminal and our SSH connection."""
    console.parent.mkdir(parents=True, exist_ok=True)
    with open(console, "ab") as log:
        return subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env=child_environment(),
        )


def start_launcher(run: Run, name: str, fresh: bool = False) -> subprocess.Popen[bytes]:
    """What the conductor does to start one stage; returns at once."""
    argv = [sys.executable, "-m", "picollm.run.launch", "--run", str(run.dir), "--stage", name]
    return spawn_detached(argv + (["--fresh"] if fresh else []), run.dir / "conductor" / "console.log")


def launch_here(folder: Path, name: str, fresh: bool = False) -> int:
    """Run one stage to its end in the foreground; returns its exit code. Raises `UserError` if it is running."""
    run = Run(folder.expanduser().absolute())
    lock = lease.Lock(run.lock_file(name))
    try:
        if not run.exists():
            raise UserError(f"{run.dir} is not a run folder (no config.toml)")
        if not lock.exclusive(patience=2.0):
            raise UserError(f"{run.name}: stage '{name}' is running already")
        return _Launcher(run, name, fresh, lock).run_to_end()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: cannot start '{name}' in {run.dir}: {error.strerror}: {error.filename}", file=sys.stderr)
        return 2
    finally:
        lock.release()


class _Launcher:
    def __init__(self, run: Run, name: str, fresh: bool, lock: lease.Lock) -> None:
        self.run, self.name, self.fresh, self.lock = run, name, fresh, lock
        self.requests = 0
        self.child: subprocess.Popen[bytes] | None = None

    def run_to_end(self) -> int:
        run, name = self.run, self.name
        config = run.config()
        attempt = max(run.attempts(name), default=0) + 1
        write_atomic(run.config_file(name, attempt), settings.dump(config))
        run.stop_file(name).unlink(missing_ok=True)
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        argv = stage_command(run, name, attempt, config.run.nproc, self.fresh)
        with open(run.console_file(name, attempt), "ab") as console:
            self.lock.share()
            self.child = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                start_new_session=True,
                env=child_environment(),
            )
        launched = ev.Launched(stage=name, attempt=attempt, pid=self.child.pid, argv=argv)
        ev.append(run.conductor_events, launched)
        code = self.child.wait()
        ev.append(run.conductor_events, ev.Exited(stage=name, attempt=attempt, code=code))
        run.stop_file(name).unlink(missing_ok=True)
        return code

    def _on_signal(self, number: int, frame: object) -> None:
        """Once: ask. Twice: kill the stage's whole process group."""
        self.requests += 1
        if self.requests == 1:
            with contextlib.suppress(UserError):
                self.run.request_stop(self.name)
        elif self.child is not None and self.child.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.child.pid, signal.SIGKILL)


def kill_stage(run: Run, name: str) -> bool:
    """SIGKILL a stage's whole process group; False when nothing of ours lives there.

    The pid from the events is only believed after its start ticks, boot id and host were compared.
    """
    if not lease.is_held(run.lock_file(name)):
        return False
    attempts = run.attempts(name)
    killed = False
    for event in ev.head_events(run.events_file(name, attempts[-1])) if attempts else []:
        if isinstance(event, ev.Started):
            who = lease.Identity(event.pid, event.host, event.boot_id, event.start_ticks)
            if lease.is_same(who):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(os.getpgid(who.pid), signal.SIGKILL)
                    killed = True
    end = time.monotonic() + KILL_AFTER_S
    while killed and lease.is_held(run.lock_file(name)) and time.monotonic() < end:
        time.sleep(0.05)
    return killed


def dump_stack(run: Run, name: str) -> bool:
    """Ask a silent stage to write every thread's stack to its console log."""
    attempts = run.attempts(name)
    for event in ev.head_events(run.events_file(name, attempts[-1])) if attempts else []:
        if isinstance(event, ev.Started):
            return lease.signal_process(
                lease.Identity(event.pid, event.host, event.boot_id, event.start_ticks), signal.SIGUSR1
            )
    return False


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m picollm.run.launch", description="Start one stage of a run.")
    parser.add_argument("--run", required=True, type=Path)
    parser.add_argument("--stage", required=True, choices=pipeline.NAMES)
    parser.add_argument("--fresh", action="store_true")
    options = parser.parse_args()
    sys.exit(launch_here(options.run, options.stage, options.fresh))


if __name__ == "__main__":
    main()
