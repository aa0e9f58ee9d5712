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
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from picollm.run import config as settings
from picollm.run import event_file, lease, nodes, pipeline, sinks
from picollm.run import events as ev
from picollm.run.errors import StopRequested, UserError
from picollm.run.folder import Run, write_atomic
from picollm.run.machine import visible_gpus

PARTIAL = {"base_eval": "core.partial.json", "chat_eval": "chat_eval.partial.json"}
"""What evaluations go on from, in `eval/`."""
KILL_AFTER_S = 3.0
SIGN_EVERY_S = 10.0


def child_environment() -> dict[str, str]:
    """Our environment for a child: a folder called `stages` in the current directory must not shadow ours.

    In a checkout that is not installed, the checkout itself is what the child must find.
    """
    found = os.environ | {"PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false"}
    # OpenMP threads that spin at a barrier take the core from whoever they wait for, as soon as anything else runs:
    # on two busy cores training was three to five times slower with the default.
    found.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        found.pop(name, None)  # of whoever started us, as a cluster's operator does: our own launcher says who is who
    checkout = Path(__file__).resolve().parents[2]
    if (checkout / "pyproject.toml").exists():
        paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
        found["PYTHONPATH"] = os.pathsep.join([*paths, str(checkout)] if str(checkout) not in paths else paths)
    return found


def ranks(config: settings.Config, name: str) -> int:
    """How many processes this stage gets: as set, else one per GPU that we may use, else one."""
    row = pipeline.stage(name)
    if not (row.trains or row.ranked):
        return 1
    on_gpus = config.machine.device in ("auto", "cuda")
    return int(config.launch.nproc) if config.launch.nproc != "auto" else (visible_gpus() if on_gpus else 0) or 1


def spans(config: settings.Config, name: str) -> bool:
    """Whether this stage runs on several machines."""
    row = pipeline.stage(name)
    return config.launch.nnodes > 1 and (row.trains or row.ranked)


def stage_command(
    run: Run, name: str, attempt: int, nproc: int, fresh: bool, place: nodes.Place | None = None, hosts: str = ""
) -> list[str]:
    """The argv of the stage itself. `place` among several machines, whose names `hosts` gives, comma-separated."""
    tail = ["-m", f"stages.{name}", "--run", str(run.dir), "--attempt", str(attempt)] + (["--fresh"] if fresh else [])
    if nproc > 1 or place:
        here = [hosts or platform.node(), str(place.rank if place else 0)]
        torchrun = ["-m", "picollm.train.torchrun", str(run.dir), name, str(attempt), *here, "--"]
        if nproc > 1:  # what ranks other than the first print is in the console log and in files of their own
            own = ",".join(f"{rank}:3" for rank in range(1, nproc))
            torchrun += [f"--log-dir={run.ranks_folder(name, attempt, place.rank if place else 0)}", f"--tee={own}"]
        if place:
            session = f"{run.name}-{name}-{attempt}"
            torchrun += nodes.arguments(place, nproc, session, 60 * run.config().launch.timeout)
        else:
            torchrun += ["--standalone", f"--nproc-per-node={nproc}", "--max-restarts=0"]
        # Without the "--" torchrun takes our --run for an abbreviation of its own --run-path, and refuses.
        return [sys.executable, *torchrun, "-m", "--", *tail[1:]]
    return [sys.executable, *tail]


def spawn_detached(
    argv: list[str], console: Path, environment: Mapping[str, str] | None = None, pass_fds: Sequence[int] = ()
) -> subprocess.Popen[bytes]:
    """Start a process that outlives us, our terminal and our SSH connection; `environment` is added to ours."""
    console.parent.mkdir(parents=True, exist_ok=True)
    with open(console, "ab") as log:
        return subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            pass_fds=pass_fds,
            env=child_environment() | dict(environment or {}),
        )


def start_launcher(run: Run, name: str, fresh: bool = False, attempt: int = 0) -> subprocess.Popen[bytes]:
    """What the conductor does to start one stage; returns at once. `attempt`: see `launch_here`."""
    argv = [sys.executable, "-m", "picollm.run.launch", "--run", str(run.dir), "--stage", name]
    argv += ["--attempt", str(attempt)] + (["--fresh"] if fresh else [])
    return spawn_detached(argv, run.dir / "conductor" / "console.log")


def launch_here(folder: Path, name: str, fresh: bool = False, attempt: int = 0) -> int:
    """Run one stage to its end in the foreground; returns its exit code (128 + n for signal n), 2 with a line on
    stderr when it cannot be started.

    `attempt`: the number it must get, or it is not started, because somebody else started it meanwhile; 0: any.
    """
    run = Run(folder.expanduser().absolute())
    lock = lease.Lock(run.lock_file(name))
    try:
        if not run.exists():
            raise UserError(f"{run.dir} is not a run folder (no config.toml)")
        if not lock.exclusive(patience=2.0):
            raise UserError(f"{run.name}: stage '{name}' is running already")
        following = max(run.attempts(name), default=0) + 1
        if attempt not in (0, following):
            raise UserError(f"{run.name}: attempt {attempt} of '{name}' was made by somebody else meanwhile")
        code = _Launcher(run, name, fresh, lock).run_to_end(following)
        return code if code >= 0 else 128 - code
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        print(f"error: cannot start '{name}' in {run.dir}: {error.strerror or error}{where}", file=sys.stderr)
        return 2
    finally:
        lock.release()


class _Launcher:
    def __init__(self, run: Run, name: str, fresh: bool, lock: lease.Lock) -> None:
        self.run, self.name, self.fresh, self.lock = run, name, fresh, lock
        self.requests = 0
        self.child: subprocess.Popen[bytes] | None = None

    def run_to_end(self, attempt: int) -> int:
        run, name = self.run, self.name
        config = run.config()
        # An old request goes before the attempt can be seen, so that a request to this attempt stays.
        run.stop_file(name).unlink(missing_ok=True)
        if self.fresh:
            _forget(run, name)
        write_atomic(run.config_file(name, attempt), settings.dump(config))
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        try:
            argv, environment = self._command(config, attempt)
        except StopRequested:
            event_file.append(run.events_file(name, attempt), ev.Stopped())
            return 0
        except UserError as error:
            event_file.append(run.events_file(name, attempt), ev.Failed(error=str(error), code=2))
            raise
        if not self.lock.share():
            raise UserError(f"{run.name}: stage '{name}' is being started by somebody else")
        environment = environment | {lease.INHERITED: str(self.lock.fd)}
        self.child = spawn_detached(argv, run.console_file(name, attempt), environment, (self.lock.fd,))
        who = lease.identify(self.child.pid)
        self._say(ev.Launched(stage=name, attempt=attempt, argv=argv, **who._asdict()))
        sinks.start(run, config, spawn_detached)
        code = self.child.wait()
        self._say(ev.Exited(stage=name, attempt=attempt, code=code))
        run.stop_file(name).unlink(missing_ok=True)
        return code

    def _command(self, config: settings.Config, attempt: int) -> tuple[list[str], dict[str, str]]:
        """The stage's argv and what its environment needs; where several machines take part, once all are there."""
        run, name, nproc = self.run, self.name, ranks(config, self.name)
        if not spans(config, name):
            return stage_command(run, name, attempt, nproc, self.fresh), {}
        place = nodes.place(config, os.environ)
        shown: list[tuple[list[int], float]] = []

        def look(missing: list[int]) -> None:
            """Who is awaited is the phase; said again now and then, it is a sign of life."""
            if not shown or shown[-1][0] != missing or time.monotonic() - shown[-1][1] > SIGN_EVERY_S:
                shown.append((missing, time.monotonic()))
                awaited = f"wait for node {', '.join(map(str, missing))}"
                event_file.append(run.events_file(name, attempt), ev.Phase(name=awaited))

        task = nodes.task(run, name, attempt, nproc, self.fresh)
        met = nodes.gather(place, run, task, look, run.stop_file(name).exists)
        argv = stage_command(run, name, attempt, nproc, self.fresh, place, ",".join(met.hosts))
        return argv, nodes.environment(met.address)

    def _say(self, event: ev.Event) -> None:
        """A full disk must not make us leave a stage alone."""
        try:
            event_file.append(self.run.conductor_events, event)
        except OSError as error:
            print(f"events: cannot write {self.run.conductor_events}: {error}", file=sys.stderr, flush=True)

    def _on_signal(self, number: int, frame: object) -> None:
        """Once: ask. Twice: kill the stage and everything below it."""
        self.requests += 1
        if self.requests == 1:
            with contextlib.suppress(UserError):
                self.run.request_stop(self.name)
        elif self.child is not None and self.child.poll() is None:
            lease.kill_tree(lease.identify(self.child.pid))


def _forget(run: Run, name: str) -> None:
    """Put aside what this stage would resume from, before the attempt can be seen: killed at any later moment, it must
    not go on from what it was told to ignore. The next save removes what is put aside."""
    if name in pipeline.CHECKPOINT_FOLDERS:
        for path in (run.dir / pipeline.CHECKPOINT_FOLDERS[name]).glob("step-*"):
            path.rename(path.with_name(f".removing-{path.name}-{time.time_ns()}"))
    elif name in PARTIAL:
        (run.dir / "eval" / PARTIAL[name]).unlink(missing_ok=True)


def kill_stage(run: Run, name: str) -> bool:
    """SIGKILL a stage, every rank of it; False when nothing of ours lives there.

    A pid from the events is only believed after its start ticks, boot id and host were compared.
    """
    if not lease.is_held(run.lock_file(name)):
        return False
    killed = any([lease.kill_tree(who) for who in _identities(run, name)])
    if killed:
        lease.freed(run.lock_file(name), KILL_AFTER_S)
    return killed


def dump_stack(run: Run, name: str) -> bool:
    """Ask a silent stage to write every thread's stack to its console log."""
    started = [event for event in _newest_events(run, name) if isinstance(event, ev.Started)]
    return any([lease.signal_process(_identity(event), signal.SIGUSR1) for event in started])


def _newest_events(run: Run, name: str) -> list[ev.AnyEvent]:
    attempts = run.attempts(name)
    return event_file.head_events(run.events_file(name, attempts[-1])) if attempts else []


def _identities(run: Run, name: str) -> list[lease.Identity]:
    """Of the newest attempt: what the launcher started (torchrun, or the stage), then the stage's own word."""
    attempt = max(run.attempts(name), default=0)
    launched = [
        _identity(event)
        for event in event_file.tail_events(run.conductor_events)
        if isinstance(event, ev.Launched) and (event.stage, event.attempt) == (name, attempt)
    ]
    started = [_identity(event) for event in _newest_events(run, name) if isinstance(event, ev.Started)]
    return launched + started


def _identity(event: ev.Launched | ev.Started) -> lease.Identity:
    return lease.Identity(event.pid, event.host, event.boot_id, event.start_ticks)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m picollm.run.launch", description="Start one stage of a run.")
    parser.add_argument("--run", required=True, type=Path)
    parser.add_argument("--stage", required=True, choices=pipeline.NAMES)
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--attempt", type=int, default=0, help="start nothing if this is not the next attempt")
    options = parser.parse_args()
    sys.exit(launch_here(options.run, options.stage, options.fresh, options.attempt))


if __name__ == "__main__":
    main()
