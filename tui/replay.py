"""Playing a recorded run again: `picollm-tui --replay runs/x --speed 20`.

A run is its records, so a replay is a run folder that grows: `Player` makes one in a temporary place, where everything
but events and logs is a link to the recorded run, and a thread appends the recorded lines when their time has come.
The app reads it as it reads any run, by the recording's clock (`Player.now`); no screen knows the difference. What the
console said bears no times: it appears in step with the events of its attempt.
"""

from __future__ import annotations

import heapq
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from picollm.run import event_file, lease, pipeline, serving
from picollm.run.errors import UserError
from picollm.run.folder import Run
from tui.figures import clock

TICK_S = 0.1
SKIP_S = 5.0  # time in which nothing ran and nothing was said is passed over when it is longer than that
SEEK_S = 10.0  # of the watcher's time: at speed 20 a seek moves by 200 s
_LATER = ("stages", "conductor", "plan.json", "report", "run_manifest.json", "jobs")
"""What is not there from the beginning; `jobs` never: the inference process of the recorded run is not the replay's."""
_MADE = {"preflight": ("plan.json",), "report": ("report", "run_manifest.json")}
"""What appears when these stages finish."""


class _Head(msgspec.Struct):
    type: str = ""
    time: float = 0.0


class _Line(NamedTuple):
    """One recorded line: when, whose, which kind of event, and its bytes."""

    time: float
    file: Path
    kind: str
    data: bytes
    share: float


class Player:
    """Replays `source` at `speed` into `folder`; `run` is the run to look at. Raises `UserError` for an empty one.

    After a step back, whoever read the run must begin again.
    """

    def __init__(self, source: Run, speed: float = 1.0) -> None:
        if not speed > 0:
            raise UserError(f"--speed {speed:g}: expected more than 0, for example 20")
        self.source, self.speed = source, speed
        self.files = [file for file in _recorded(source) if file.stat().st_size]
        spans = [span for file in self.files if (span := _span(file)) is not None]
        if not any(file.parent.parent.name == "stages" for file in self.files) or not spans:
            raise UserError(f"{source.dir} has no recorded events; a run can be replayed once a stage has begun")
        self.begin, self.end = min(first for first, _ in spans), max(last for _, last in spans)
        self._alive = {name for name in pipeline.NAMES if lease.is_held(source.lock_file(name))}
        self._folder = Path(tempfile.mkdtemp(prefix="picollm-replay-"))
        self.run = Run(self._folder / source.name)
        self.paused = False
        self._at, self._since = self.begin, time.monotonic()
        self._mutex, self._closing = threading.RLock(), threading.Event()
        self._locks: dict[str, lease.Lock] = {}
        self._thread = threading.Thread(target=self._play, name="replay", daemon=True)
        self._lay_out()

    # the watcher's side ---------------------------------------------------------------------------------------------

    def start(self) -> None:
        self._since = time.monotonic()
        self._thread.start()

    def close(self) -> None:
        """End, and take the temporary folder away."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join()
        self._release()
        serving.stop_serving(self.run)  # somebody may have asked its models something
        shutil.rmtree(self._folder, ignore_errors=True)

    def now(self) -> float:
        """The recording's time, unix seconds."""
        passed = 0.0 if self.paused else (time.monotonic() - self._since) * self.speed
        return min(self._at + passed, self.end)

    def pause(self) -> None:
        """Pause, or go on."""
        with self._mutex:
            self._set(self.now())
            self.paused = not self.paused

    def seek(self, steps: int) -> None:
        """Move by `SEEK_S` of the watcher's time, back where `steps` is negative."""
        with self._mutex:
            to = max(self.begin, self.now() + steps * SEEK_S * self.speed)
            if steps < 0:
                self._release()
                self._lay_out()
            self._set(to)
            self._catch_up()

    def words(self) -> str:
        """`replay ×20  1:02 of 5:00, paused`."""
        now = self.now()
        how = ", paused" if self.paused else ", ended" if now >= self.end else ""
        return f"replay ×{self.speed:g}  {clock(now - self.begin)} of {clock(self.end - self.begin)}{how}"

    # the run's side -------------------------------------------------------------------------------------------------

    def _set(self, to: float) -> None:
        self._at, self._since = to, time.monotonic()

    def _lay_out(self) -> None:
        """The folder as it was before the first event."""
        target = self.run.dir
        target.mkdir(exist_ok=True)
        for name in ("stages", "conductor"):
            shutil.rmtree(target / name, ignore_errors=True)
        for path in target.iterdir():
            if path.is_symlink():  # what else is there, somebody who asked the replay's models left
                path.unlink()
        for path in self.source.dir.iterdir():
            if path.name not in _LATER and not (target / path.name).exists():
                (target / path.name).symlink_to(path.absolute())
        self._lines = heapq.merge(*(_lines(file) for file in self.files), key=lambda line: line.time)
        self._next = next(self._lines, None)
        self._open: set[Path] = set()

    def _play(self) -> None:
        while not self._closing.wait(TICK_S):
            with self._mutex:
                self._catch_up()
                coming = self._next.time if self._next is not None and not self._open else 0.0
                if coming - self.now() > SKIP_S and not self.paused:
                    self._set(coming - 1.0)
                    self._release()
                if self._next is None and not self._alive:
                    self._release()

    def _catch_up(self) -> None:
        """Append every line whose time has come."""
        now = self.now()
        due: dict[Path, list[_Line]] = {}
        while self._next is not None and self._next.time <= now:
            due.setdefault(self._next.file, []).append(self._next)
            self._next = next(self._lines, None)
        for file, lines in due.items():
            self._append(file, lines)

    def _append(self, file: Path, lines: list[_Line]) -> None:
        target = self.run.dir / file.relative_to(self.source.dir)
        target.parent.mkdir(parents=True, exist_ok=True)
        stage = file.parent.name if file.parent.parent.name == "stages" else ""
        if stage:
            self._live(stage, file, ended=lines[-1].share >= 1)
            if not target.exists():
                self._link(file.with_name(file.name.replace(".events.jsonl", ".config.toml")))
            kinds = {line.kind for line in lines}
            if "ready" in kinds:
                self._link(file.with_name(file.name.replace(".events.jsonl", ".ready.json")))
            if kinds & {"ready", "finished"}:
                for path in file.parent.iterdir():
                    if not path.name.startswith(("attempt-", "lock", "stop")):
                        self._link(path)
            if "finished" in kinds:
                for name in _MADE.get(stage, ()):
                    self._link(self.source.dir / name)
            self._say(file.with_name(file.name.replace(".events.jsonl", ".console.log")), lines[-1].share)
        with open(target, "ab") as out:
            out.write(b"".join(line.data for line in lines))
        if stage and file not in self._open:
            self._release(keep={"", *(path.parent.name for path in self._open)})

    def _live(self, stage: str, file: Path, ended: bool) -> None:
        """A stage lives, and with it the conductor, from the first line of an attempt to its last."""
        if ended and stage not in self._alive:
            self._open.discard(file)
            return
        self._open.add(file)
        for name, path in (("", self.run.conductor_lock), (stage, self.run.lock_file(stage))):
            if name not in self._locks:
                lock = lease.Lock(path)
                lock.share()
                self._locks[name] = lock

    def _release(self, keep: Collection[str] = ()) -> None:
        for name in [name for name in self._locks if name not in keep]:
            self._locks.pop(name).release()

    def _link(self, path: Path) -> None:
        target = self.run.dir / path.relative_to(self.source.dir)
        if path.exists() and not target.exists():
            target.symlink_to(path.absolute())

    def _say(self, console: Path, share: float) -> None:
        """The console log as far as its attempt has come."""
        target = self.run.dir / console.relative_to(self.source.dir)
        try:
            with open(console, "rb") as source, open(target, "ab") as out:
                source.seek(out.tell())
                data = source.read(int(os.fstat(source.fileno()).st_size * share) - out.tell())
                out.write(data if share >= 1 else data[: data.rfind(b"\n") + 1])
        except (FileNotFoundError, ValueError):
            return


def _recorded(run: Run) -> list[Path]:
    """The files that grow while a run goes on and say when."""
    files = [run.conductor_events, run.machine_file]
    for name in pipeline.NAMES:
        files += [run.events_file(name, attempt) for attempt in run.attempts(name)]
    return [file for file in files if file.is_file()]


def _span(file: Path) -> tuple[float, float] | None:
    ends = [event.time for event in (*event_file.head_events(file, 4096)[:1], *event_file.tail_events(file)[-1:])]
    return (min(ends), max(ends)) if ends else None


_decoder = msgspec.json.Decoder(_Head)


def _lines(file: Path) -> Iterator[_Line]:
    """The lines of one file as they are now, in their order: a clock that jumps back counts as no time."""
    latest, size, read = 0.0, file.stat().st_size, 0
    with open(file, "rb") as lines:
        for line in lines:
            read += len(line)
            try:
                head = _decoder.decode(line)
            except msgspec.DecodeError:  # torn: it comes with the line before it
                head = _Head()
            latest = max(latest, head.time)
            yield _Line(latest, file, head.type, line, read / size)
            if read >= size:
                return
