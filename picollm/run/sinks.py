"""The same figures in TensorBoard or Weights & Biases: a process of its own that follows the events of a run.

`python -m picollm.run.sinks --run DIR --sink NAME`, started by the launcher with every stage, reads what the stages
write, as the app does, and passes on metrics, evaluations and settings. So a sink that fails, hangs or is not installed
costs the run one warning: training does not know of it. One process per run and sink (a lock says which); it goes when
nothing runs any more, and what was passed on is written down: the next one goes on from there under the same id.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import msgspec

from picollm.run import config as settings
from picollm.run import event_file, lease, pipeline
from picollm.run import events as ev
from picollm.run.errors import UserError
from picollm.run.folder import Run, write_atomic

LOOK_EVERY_S = 1.0
IDLE_S = 3.0
"""Nothing runs and nothing new for this long: the end."""
ASKED_S = 2.0
"""Our lock may be held by somebody who only asks for a moment whether it is."""
FLUSH_S = 5
PATIENCE_S = 600.0
"""A sink that takes longer than this over one call is given up."""


class Sink(Protocol):
    """Somewhere figures can go. Each method may raise whatever it likes."""

    def config(self, values: dict[str, Any]) -> None: ...
    def figures(self, stage: str, step: int, values: dict[str, float], at: float) -> None: ...
    def resumed(self, stage: str, step: int) -> None: ...
    def close(self) -> None: ...


def folder(run: Run) -> Path:
    return run.dir / "log"


def wanted(config: settings.Config) -> list[str]:
    """The sinks that the settings ask for."""
    return ["wandb"] * (config.log.wandb != "off") + ["tensorboard"] * config.log.tensorboard


def start(run: Run, config: settings.Config, spawn: Callable[[list[str], Path], object]) -> None:
    """See to it that every wanted sink has its process; returns at once and never raises for a sink's sake."""
    for name in wanted(config):
        try:
            if not lease.is_held(_lock(run, name)):
                argv = [sys.executable, "-m", "picollm.run.sinks", "--run", str(run.dir), "--sink", name]
                spawn(argv, folder(run) / f"{name}.log")
        except OSError as error:
            print(f"{name}: not started: {error}", file=sys.stderr, flush=True)


Deadline = Callable[[], contextlib.AbstractContextManager[None]]


def deadline(run: Run, name: str, seconds: float) -> Deadline:
    """Makes contexts whose content must be done in so many seconds; what hangs takes this process with it."""

    def give_up() -> None:
        with contextlib.suppress(OSError, UserError):  # on a full disk it goes without a word
            warn(run, name, f"no answer for {seconds:.0f} s; figures go on being kept in the run only")
        os._exit(1)

    @contextlib.contextmanager
    def in_time() -> Iterator[None]:
        watchdog = threading.Timer(seconds, give_up)
        watchdog.daemon = True
        watchdog.start()
        try:
            yield
        finally:
            watchdog.cancel()

    return in_time


class Follower:
    """Passes the events of a run on to one sink until nothing runs any more."""

    def __init__(self, run: Run, name: str, in_time: Deadline) -> None:
        self.run, self.in_time = run, in_time
        with in_time():
            self.sink = SINKS[name](run)
        self.places = folder(run) / f"{name}.places.json"
        self.offsets = _read_places(self.places)

    def follow(self) -> None:
        quiet_since = time.monotonic()
        while self.run.exists():  # nothing may be written into a run that was deleted
            if self._pass_on():
                quiet_since = time.monotonic()
            elif time.monotonic() - quiet_since > IDLE_S and not _runs(self.run):
                break
            time.sleep(LOOK_EVERY_S)
        with self.in_time():
            self.sink.close()

    def _pass_on(self) -> bool:
        """Everything new in every stage, oldest attempts first; whether there was anything."""
        found = False
        for stage in pipeline.NAMES:
            for attempt in self.run.attempts(stage):
                file = self.run.events_file(stage, attempt)
                reader = event_file.EventReader(file, self.offsets.get(_key(stage, attempt), 0))
                while events := reader.poll():
                    found = True
                    with self.in_time():
                        for event in events:
                            self._take(stage, event)
                    self.offsets[_key(stage, attempt)] = reader.offset
                    write_atomic(self.places, msgspec.json.encode(self.offsets))
        return found

    def _take(self, stage: str, event: ev.AnyEvent) -> None:
        match event:
            case ev.Started():
                self.sink.config(settings.flat(self.run.config()))
            case ev.Resumed():
                self.sink.resumed(stage, event.step)
            case ev.Metrics():
                self.sink.figures(stage, event.step, _finite(event.values), event.time)
            case ev.Eval():
                named = {f"{event.name}/{key}": value for key, value in event.values.items()}
                self.sink.figures(stage, event.step, _finite(named), event.time)
            case ev.Finished():
                named = {f"summary/{key}": value for key, value in event.summary.items()}
                self.sink.figures(stage, int(event.summary.get("step") or 0), _finite(named), event.time)


class TensorBoard:
    """Event files in `log/tensorboard/<stage>`, written by tensorboard's own package: no torch, no TensorFlow."""

    def __init__(self, run: Run) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.plugins.hparams.summary_v2 import hparams_pb
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event, self._summary, self._hparams_pb = event_pb2, summary_pb2.Summary, hparams_pb
        self._new, self._dir, self._name = EventFileWriter, folder(run) / "tensorboard", run.name
        self._writers: dict[str, Any] = {}
        self._config: dict[str, Any] = {}

    def config(self, values: dict[str, Any]) -> None:
        plain = {key: value if isinstance(value, bool | int | float) else str(value) for key, value in values.items()}
        if plain != self._config:
            self._config = plain
            self._add("", 0, time.time(), summary=self._hparams_pb(plain, trial_id=self._name))

    def figures(self, stage: str, step: int, values: dict[str, float], at: float) -> None:
        points = [self._summary.Value(tag=key, simple_value=value) for key, value in values.items()]
        self._add(stage, step, at, summary=self._summary(value=points))

    def resumed(self, stage: str, step: int) -> None:
        """What lies after `step` is superseded: TensorBoard drops it when a session begins again at that step."""
        begin = self._event.SessionLog(status=self._event.SessionLog.START)
        self._add(stage, step + 1, time.time(), session_log=begin)

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()

    def _add(self, stage: str, step: int, at: float, **content: Any) -> None:
        if stage not in self._writers:
            self._writers[stage] = self._new(str(self._dir / stage), flush_secs=FLUSH_S)
        self._writers[stage].add_event(self._event.Event(wall_time=at, step=step, **content))


class Wandb:
    """One run there for all stages here; `<stage>/<figure>` is drawn over `<stage>/step`. Offline needs no account."""

    def __init__(self, run: Run) -> None:
        log = run.config().log
        os.environ |= {"WANDB_SILENT": "true", "WANDB_CONSOLE": "off", "WANDB_DISABLE_CODE": "true"}
        import wandb

        self._run = wandb.init(
            project=log.wandb_project,
            name=run.name,
            id=_wandb_id(run),
            resume="allow",
            mode="offline" if log.wandb == "offline" else "online",
            dir=str(folder(run)),
            settings=wandb.Settings(silent=True, console="off", disable_git=True, save_code=False),
        )
        self._stages: set[str] = set()

    def config(self, values: dict[str, Any]) -> None:
        self._run.config.update(values, allow_val_change=True)

    def figures(self, stage: str, step: int, values: dict[str, float], at: float) -> None:
        if stage not in self._stages:
            self._stages.add(stage)
            self._run.define_metric(f"{stage}/step", hidden=True)
            self._run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
        named = {f"{stage}/{key}": value for key, value in values.items()}
        self._run.log({f"{stage}/step": step, "time": at, **named})

    def resumed(self, stage: str, step: int) -> None:
        """What was sent cannot be taken back: points after `step` are drawn twice there."""

    def close(self) -> None:
        self._run.finish()


SINKS: dict[str, Callable[[Run], Sink]] = {"wandb": Wandb, "tensorboard": TensorBoard}


def warn(run: Run, name: str, text: str) -> None:
    """One warning in the stage that runs now; the same words are not said twice in a run."""
    text = f"{name}: {' '.join(text.split())}"
    print(text, file=sys.stderr, flush=True)
    said = folder(run) / f"{name}.warned"
    if said.is_file() and said.read_text(encoding="utf-8") == text:
        return
    write_atomic(said, text)
    for stage in reversed(pipeline.NAMES):
        attempts = run.attempts(stage)
        if attempts and lease.is_held(run.lock_file(stage)):
            event_file.append(run.events_file(stage, attempts[-1]), ev.Warning(text=text))
            return


def _wandb_id(run: Run) -> str:
    file = folder(run) / "wandb.id"
    if not file.is_file():
        write_atomic(file, secrets.token_hex(4))
    return file.read_text(encoding="utf-8").strip()


def _key(stage: str, attempt: int) -> str:
    return f"{stage}/{attempt}"


def _lock(run: Run, name: str) -> Path:
    return folder(run) / f"{name}.lock"


def _runs(run: Run) -> bool:
    files = [run.conductor_lock, *(run.lock_file(stage) for stage in pipeline.NAMES)]
    return any(lease.is_held(file) for file in files if file.exists())


def _read_places(file: Path) -> dict[str, int]:
    try:
        return msgspec.json.decode(file.read_bytes(), type=dict[str, int])
    except (OSError, msgspec.DecodeError):
        return {}  # from the beginning: figures may arrive twice, none is missing


def _finite(values: dict[str, Any]) -> dict[str, float]:
    numbers = {key: value for key, value in values.items() if isinstance(value, int | float)}
    return {key: float(value) for key, value in numbers.items() if math.isfinite(value)}


def serve(run: Run, name: str, patience: float = PATIENCE_S) -> int:
    """Follow the run until nothing runs; 0, or 1 when the sink failed, which was then said in the run."""
    lock = lease.Lock(_lock(run, name))
    # A stage that starts while we end sees our lock and starts nobody, so after letting go we look once more.
    while lock.exclusive(patience=ASKED_S):
        try:
            Follower(run, name, deadline(run, name, patience)).follow()
        except ModuleNotFoundError as error:
            warn(run, name, f"{error.name} is not installed; pip install 'picollm-tui[{name}]', or set log.{name} off")
            return 1
        except Exception as error:  # theirs, of any kind: it must cost no more than a line
            if not run.exists():
                return 0  # deleted while we read it, and nothing may be written there
            hint = "; log.wandb = offline needs no account" if name == "wandb" else ""
            warn(run, name, f"{type(error).__name__}: {str(error)[:300] or 'no reason given'}{hint}")
            return 1
        finally:
            lock.release()
        if not _runs(run):
            break
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m picollm.run.sinks", description="Pass a run's figures on.")
    parser.add_argument("--run", required=True, type=Path, help="the run folder")
    parser.add_argument("--sink", required=True, choices=sorted(SINKS))
    parser.add_argument("--patience", type=float, default=PATIENCE_S, help="seconds one call may take")
    options = parser.parse_args()
    run = Run(options.run.expanduser().absolute())
    with contextlib.suppress(OSError):
        os.nice(10)
    try:
        return serve(run, options.sink, options.patience)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
