"""What a stage process gets: its run, its settings, a voice (events), and ears (the stop file).

    def work(ctx: StageContext) -> Outcome: ...
    if __name__ == "__main__":
        main("sft", work)

`main` turns however `work` ends into one terminal event and an exit code: 0 done or stopped as asked, 2 the person's
mistake (`UserError`), 1 ours (the traceback is in the console log). Under torchrun every rank runs `work`; rank 0 alone
writes events, and a rank that fails leaves its word (`failure`), of which torchrun's process makes the terminal event.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import faulthandler
import importlib.metadata
import math
import os
import platform
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import msgspec

from picollm.run import event_file, failure, lease, machine, pipeline
from picollm.run import events as ev
from picollm.run.errors import StopRequested, UserError
from picollm.run.folder import Run, write_atomic
from picollm.run.planned import fingerprint

WATCH_EVERY = 256

Item = TypeVar("Item")


class Outcome(msgspec.Struct, kw_only=True):
    """What a finished stage leaves: where things are, their content hashes, and figures for the report."""

    paths: dict[str, str] = {}
    artifacts: dict[str, str] = {}
    summary: dict[str, Any] = {}


class StageContext:
    """Handed to a stage's `work`. Progress is thinned so that a fast loop cannot flood the file."""

    def __init__(self, run: Run, name: str, attempt: int, fresh: bool = False) -> None:
        self.run = run
        self.name = name
        self.attempt = attempt
        self.fresh = fresh
        self.config = run.config()
        self.rank = int(os.environ.get("RANK", "0"))
        self.world = int(os.environ.get("WORLD_SIZE", "1"))
        self.local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        self.inputs = run.inputs(name, self.config)
        self.fingerprint = fingerprint(msgspec.to_builtins(self.inputs))
        self._writer = event_file.EventWriter(run.events_file(name, attempt)) if self.rank == 0 else None
        self._begun = time.monotonic() - _age(run.config_file(name, attempt))
        self._next_progress = 0.0
        self._led = 0

    @property
    def seconds(self) -> float:
        """Seconds since the launcher began this attempt: loading Python and torch counts."""
        return time.monotonic() - self._begun

    def emit(self, event: ev.Event) -> None:
        """Write one event; ranks other than 0 say nothing."""
        if self._writer is not None:
            self._writer.write(event)

    def phase(self, name: str) -> None:
        self.emit(ev.Phase(name=name))

    def progress(self, step: int, steps: int) -> None:
        """At most five a second, and always the last one."""
        now = time.monotonic()
        if now >= self._next_progress or step >= steps:
            self._next_progress = now + 0.2
            self.emit(ev.Progress(step=step, steps=steps))

    def metrics(self, step: int, values: dict[str, float]) -> None:
        self.emit(ev.Metrics(step=step, values=dict(values)))

    def eval(self, name: str, step: int, values: dict[str, float], n: int | None = None) -> None:
        self.emit(ev.Eval(name=name, step=step, values=dict(values), n=n))

    def sample(self, prompt: str, text: str, step: int, model: str = "", details: dict[str, Any] | None = None) -> None:
        self.emit(ev.Sample(prompt=prompt, text=text, step=step, model=model, details=details or {}))

    def choice(self, what: str, chosen: str, figures: dict[str, float]) -> None:
        """A decision made by measuring; a candidate that failed (no finite figure) is left out."""
        kept = {key: float(figure) for key, figure in figures.items() if math.isfinite(figure)}
        self.emit(ev.Choice(what=what, chosen=chosen, figures=kept))

    def check(self, name: str, status: str, found: str, wanted: str = "", fix: str = "") -> None:
        self.emit(ev.Check(name=name, status=status, found=found, wanted=wanted, fix=fix))

    def checkpoint(self, step: int, path: str, bytes: int = 0, seconds: float = 0.0) -> None:
        self.emit(ev.Checkpoint(step=step, path=path, bytes=bytes, seconds=seconds))

    def ready(self, paths: dict[str, str], artifacts: dict[str, str]) -> None:
        """What this stage makes can be used from now on, while it goes on: the `paths` (see `relative`) and content
        hashes that its `Outcome` will have. Said once. Raises `UserError` where the run folder cannot be written."""
        if self.rank == 0:
            event = ev.Ready(paths=dict(paths), artifacts=dict(artifacts))
            self.emit(event)
            write_atomic(self.run.ready_file(self.name, self.attempt), event_file.encode(event, event.seq))

    def resumed(self, step: int, path: str = "") -> None:
        """Points after `step` of earlier attempts are superseded from here on."""
        self.emit(ev.Resumed(step=step, path=path))

    def warning(self, text: str) -> None:
        self.emit(ev.Warning(text=text))
        if self.rank == 0:
            print(f"warning: {text}", flush=True)

    def message(self, text: str) -> None:
        self.emit(ev.Message(text=text))
        if self.rank == 0:
            print(text, flush=True)

    def note(self, step: int, text: str) -> None:
        """A word about a step, which the app writes at the curve."""
        self.emit(ev.Note(step=step, text=text))
        if self.rank == 0:
            print(f"step {step}: {text}", flush=True)

    def rank0_first(self, work: Callable[[], Item]) -> Item:
        """What `work` gives: done by rank 0 first, and then by the others, which find what it left or only check it.

        They wait for it without an exchange, so it may take longer than `launch.timeout`, and come before the ranks
        join. Raises what `work` raises, and the `UserError` of a rank 0 that failed on the others.
        """
        if self.world == 1:
            return work()
        self._led += 1
        done = self.run.stage_dir(self.name) / f"attempt-{self.attempt:03d}.rank-0-did-{self._led}"
        if self.rank == 0:
            result = work()
            write_atomic(done, "")
            return result
        while not done.exists():
            self.raise_if_stopped()
            for word in failure.words(self.run, self.name, self.attempt):
                if word.rank == 0:
                    raise UserError(word.error)
            time.sleep(0.1)
        return work()

    def stop_requested(self) -> bool:
        """Whether the stop file is there; local, so ranks must agree on the answer among themselves."""
        return self.run.stop_file(self.name).exists()

    def raise_if_stopped(self) -> None:
        """For stages without steps to save: leave between two pieces of work."""
        if self.stop_requested():
            raise StopRequested()

    def output(self, stage: str, key: str) -> Path:
        """Where an earlier stage put something. Raises `UserError` when it is not there."""
        return self.run.output(stage, key)

    def relative(self, path: Path) -> str:
        """`path` as an event stores it: relative inside the run folder, absolute outside."""
        return str(path.relative_to(self.run.dir)) if path.is_relative_to(self.run.dir) else str(path)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def watched(ctx: StageContext, items: Iterable[Item], total: int) -> Iterator[Item]:
    """The items, with progress and a look for a stop now and then. Raises `StopRequested`."""
    for number, item in enumerate(items):
        if number % WATCH_EVERY == 0:
            ctx.progress(number, total)
            ctx.raise_if_stopped()
        yield item


def main(name: str, work: Callable[[StageContext], Outcome]) -> NoReturn:
    """Parse `--run DIR --attempt N`, do the work, say how it ended, exit."""
    parser = argparse.ArgumentParser(prog=f"python -m stages.{name}", description=f"One stage of a run: {name}.")
    parser.add_argument("--run", required=True, type=Path, help="the run folder")
    parser.add_argument("--attempt", type=int, default=0, help="attempt number, given by the launcher")
    parser.add_argument("--fresh", action="store_true", help="start over: ignore this stage's earlier checkpoints")
    options = parser.parse_args()
    if not options.attempt:
        from picollm.run.launch import launch_here

        sys.exit(launch_here(options.run, name, fresh=options.fresh))
    code = _attend(name, work, options.run.absolute(), options.attempt, options.fresh)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # Everything is written and closed. Taking the interpreter down under the threads of torch and its ranks has
        # been seen to abort, and then torchrun reports a failure of what went well.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _attend(name: str, work: Callable[[StageContext], Outcome], folder: Path, attempt: int, fresh: bool) -> int:
    run = Run(folder)
    lease.keep_inherited(run.lock_file(name))
    lock = lease.Lock(run.lock_file(name))
    if not lock.share():
        print(f"{folder.name}: another process owns stage '{name}'", file=sys.stderr)
        return 2
    if max(run.attempts(name), default=0) > attempt:
        print(f"{folder.name}: a newer attempt of '{name}' was made; this one, {attempt}, ends", file=sys.stderr)
        return 2
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    faulthandler.register(signal.SIGUSR1, file=sys.stderr, all_threads=True)

    def ask_to_stop(number: int, frame: object) -> None:
        with contextlib.suppress(UserError):
            run.request_stop(name)

    signal.signal(signal.SIGTERM, ask_to_stop)
    signal.signal(signal.SIGINT, ask_to_stop)
    ctx: StageContext | None = None
    try:
        ctx = StageContext(run, name, attempt, fresh)
        ctx.emit(_started(ctx))
        outcome = work(ctx)
        ctx.emit(
            ev.Finished(seconds=ctx.seconds, paths=outcome.paths, artifacts=outcome.artifacts, summary=outcome.summary)
        )
        return 0
    except StopRequested as stop:
        if ctx:
            ctx.emit(ev.Stopped(step=stop.step))
        return 0
    except UserError as error:
        return _fail(ctx or run, name, attempt, str(error), 2)
    except OSError as error:
        traceback.print_exc()
        where = f" {error.filename}" if error.filename else ""
        code = 2 if error.errno in (errno.EACCES, errno.ENOSPC, errno.EROFS) else 1
        return _fail(ctx or run, name, attempt, f"{name}:{where} {error.strerror or error}", code)
    except MemoryError:
        return _fail(ctx or run, name, attempt, f"{name}: out of memory; make rows, depth or seq_len smaller", 1)
    except Exception as error:
        traceback.print_exc()
        text = f"{type(error).__name__}: {error}".splitlines()[0][:400]
        if type(error).__name__ == "OutOfMemoryError":  # torch's, which this module does not import
            text = "CUDA out of memory; make machine.device_rows smaller, or set machine.checkpointing = on"
        return _fail(ctx or run, name, attempt, text, 1, echo=failure.is_echo(error))
    finally:
        if ctx:
            ctx.close()


def _fail(where: StageContext | Run, name: str, attempt: int, text: str, code: int, echo: bool = False) -> int:
    """Say how it failed, also when it failed before there was a context. One of several ranks only leaves its word."""
    print(f"error: {text}", file=sys.stderr, flush=True)
    run = where.run if isinstance(where, StageContext) else where
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1:
        failure.leave(run, name, attempt, failure.Word(rank=rank, world=world, error=text, code=code, echo=echo))
        return code
    event = ev.Failed(error=text, hint="" if code == 2 else f"see {run.console_file(name, attempt).name}", code=code)
    file = run.events_file(name, attempt)
    if any(isinstance(said, ev.TERMINAL) for said in event_file.tail_events(file)):
        return code
    if isinstance(where, StageContext):
        where.emit(event)
        return code
    with contextlib.suppress(OSError):
        event_file.append(file, event)
    return code


def _age(begun: Path) -> float:
    """Seconds since the launcher wrote the attempt's settings, its first act; 0 when the clock says nonsense."""
    try:
        age = time.time() - begun.stat().st_mtime
    except OSError:
        return 0.0
    return age if 0.0 <= age < 300.0 else 0.0


def _started(ctx: StageContext) -> ev.Started:
    me = lease.identify()
    plan = ctx.run.plan()
    versions = {"python": platform.python_version()}
    for package in ("torch", "picollm-tui"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return ev.Started(
        stage=ctx.name,
        attempt=ctx.attempt,
        pid=me.pid,
        host=me.host,
        boot_id=me.boot_id,
        start_ticks=me.start_ticks,
        world=ctx.world,
        fingerprint=ctx.fingerprint,
        inputs=msgspec.to_builtins(ctx.inputs),
        predicted_s=(plan.seconds.get(ctx.name) if plan else None)
        or pipeline.unplanned_s(ctx.name, ctx.config.run.minutes)
        or 0.0,
        age=round(ctx.seconds, 3),
        versions=versions,
        machine=machine.described() if ctx.rank == 0 and pipeline.stage(ctx.name).trains else {},
    )
