"""Events: the append-only JSONL that a stage writes and everyone else reads.

One line is one event: `{"type": ..., "v": 1, "seq": n, "time": unix seconds, ...}`. A torn last line is "not yet";
a torn line in the middle (a writer died there) and an unknown type are skipped. `seq` grows within one file, so order
never depends on the clock.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

VERSION = 1


class Event(msgspec.Struct, tag_field="type", tag=str.lower, omit_defaults=True, kw_only=True):
    """What every line carries; `time` is unix seconds and is for people, `seq` is for order."""

    v: int = VERSION
    seq: int = 0
    time: float = 0.0


class Started(Event):
    """The first event of an attempt; points after `resume_step` from earlier attempts are superseded."""

    stage: str
    attempt: int
    pid: int
    host: str
    boot_id: str
    start_ticks: int
    world: int = 1
    resume_step: int = 0
    fingerprint: str = ""
    inputs: dict[str, Any] = {}
    predicted_s: float = 0.0
    versions: dict[str, str] = {}


class Resumed(Event):
    """Said once the stage knows where it continues: metrics after `step` of earlier attempts are void."""

    step: int
    path: str = ""


class Phase(Event):
    """What the stage is busy with now ("load", "compile", "train", …); the app shows it."""

    name: str


class Progress(Event):
    step: int
    steps: int


class Metrics(Event):
    step: int
    values: dict[str, float | None]


class Eval(Event):
    name: str
    step: int
    values: dict[str, float | None]
    n: int | None = None


class Sample(Event):
    prompt: str
    text: str
    step: int
    model: str = ""
    details: dict[str, Any] = {}


class Choice(Event):
    """A decision made by measuring: `figures` are the candidates and what each reached."""

    what: str
    chosen: str
    figures: dict[str, float]


class Check(Event):
    """One doctor or preflight check. `status` is ok, warn or fail."""

    name: str
    status: str
    found: str
    wanted: str = ""
    fix: str = ""


class Checkpoint(Event):
    step: int
    path: str
    bytes: int = 0
    seconds: float = 0.0


class Warning(Event):
    text: str


class Message(Event):
    text: str


class Finished(Event):
    """Terminal: done. `artifacts` maps a name to its content hash, `paths` to where it lies (relative to the run
    folder, or absolute in PICOLLM_HOME); `summary` is what the report reads."""

    seconds: float
    paths: dict[str, str] = {}
    artifacts: dict[str, str] = {}
    summary: dict[str, Any] = {}


class Failed(Event):
    """Terminal: one line for the person, `hint` what to try, `code` 2 for the person's mistake and 1 for ours."""

    error: str
    hint: str = ""
    code: int = 1


class Stopped(Event):
    """Terminal: asked to stop, everything up to `step` is saved."""

    step: int = 0


class Launched(Event):
    """Conductor or launcher: a stage process was asked for."""

    stage: str
    attempt: int
    pid: int = 0
    argv: list[str] = []


class Exited(Event):
    """Launcher: the stage process is gone. `code` is its exit status, negative for a signal."""

    stage: str
    attempt: int
    code: int


class Conductor(Event):
    """Conductor: `what` is started, adopted, finished, failed or stopped."""

    what: str
    text: str = ""
    pid: int = 0


class Machine(Event):
    """One reading of the machine: percent, bytes, and one record per GPU."""

    cpu: float
    cores: list[float] = []
    memory_used: int = 0
    memory_total: int = 0
    disk_free: int = 0
    gpus: list[dict[str, Any]] = []


AnyEvent = (
    Started
    | Resumed
    | Phase
    | Progress
    | Metrics
    | Eval
    | Sample
    | Choice
    | Check
    | Checkpoint
    | Warning
    | Message
    | Finished
    | Failed
    | Stopped
    | Launched
    | Exited
    | Conductor
    | Machine
)
TERMINAL = (Finished, Failed, Stopped)

_decoder = msgspec.json.Decoder(AnyEvent)
_encoder = msgspec.json.Encoder()


def decode(line: bytes) -> AnyEvent | None:
    """One line to an event; None for a torn line, foreign bytes, a newer version's unknown type."""
    try:
        return _decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


class EventWriter:
    """Appends events to one file from a thread of its own, so that a slow disk never holds training up.

    A file that ends in a torn line gets a newline first: the torn line stays, skipped by readers. When the disk is
    full, lines wait in memory and are tried again; `close()` makes a last attempt and says on stderr what was lost.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._seq = _last_seq(path)
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        size = os.fstat(self._fd).st_size
        if size and os.pread(self._fd, 1, size - 1) != b"\n":
            os.write(self._fd, b"\n")
        self._lock = threading.Lock()
        self._queue: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._complained = False
        self.last_time = 0.0
        self._thread = threading.Thread(target=self._drain, name="events", daemon=True)
        self._thread.start()

    def write(self, event: Event) -> None:
        """Stamp and queue one event; returns at once."""
        with self._lock:
            self._seq += 1
            event.seq = self._seq
            event.time = round(time.time(), 3)
            self.last_time = time.monotonic()
            self._queue.put(_encoder.encode(event) + b"\n")

    def close(self) -> None:
        """Write everything that waits, then fsync; safe to call twice."""
        if self._fd < 0:
            return
        self._queue.put(None)
        self._thread.join(timeout=30)
        try:
            os.fsync(self._fd)
        except OSError as error:
            print(f"events: {self.path} may be incomplete: {error}", file=sys.stderr)
        os.close(self._fd)
        self._fd = -1

    def _drain(self) -> None:
        while (line := self._queue.get()) is not None:
            for patience in (0.5, 1, 2, 4, 8, 0):
                try:
                    self._put(line)
                    break
                except OSError as error:
                    if not self._complained:
                        print(f"events: cannot write {self.path}: {error}; trying again", file=sys.stderr, flush=True)
                        self._complained = True
                    time.sleep(patience)

    def _put(self, line: bytes) -> None:
        """A short write (full disk) is closed with a newline, so that the retry starts a line of its own."""
        written = os.write(self._fd, line)
        if written < len(line):
            os.write(self._fd, b"\n")
            raise OSError(28, "short write, disk full?")


def append(path: Path, event: Event) -> None:
    """Write one event at once, for rare writers (launcher, conductor). One `write` call: lines never interleave."""
    path.parent.mkdir(parents=True, exist_ok=True)
    event.seq = _last_seq(path) + 1
    event.time = round(time.time(), 3)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    try:
        size = os.fstat(fd).st_size
        torn = size and os.pread(fd, 1, size - 1) != b"\n"
        os.write(fd, (b"\n" if torn else b"") + _encoder.encode(event) + b"\n")
    finally:
        os.close(fd)


class EventReader:
    """Follows one file: `poll()` gives the events completed since the last call."""

    def __init__(self, path: Path, offset: int = 0) -> None:
        self.path = path
        self.offset = offset

    def poll(self, limit_bytes: int = 4 << 20) -> list[AnyEvent]:
        """At most `limit_bytes` are read, so that a million lines arrive in portions. A file cut short starts over."""
        try:
            with open(self.path, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size < self.offset:
                    self.offset = 0
                if size == self.offset:
                    return []
                file.seek(self.offset)
                data = file.read(limit_bytes)
        except FileNotFoundError:
            return []
        end = data.rfind(b"\n") + 1
        if end == 0:
            if len(data) < limit_bytes:
                return []
            end = len(data)
        self.offset += end
        return [event for line in data[:end].splitlines() if (event := decode(line)) is not None]


def read_events(path: Path) -> Iterator[AnyEvent]:
    """All complete events of a file, oldest first."""
    reader = EventReader(path)
    while events := reader.poll():
        yield from events


def tail_events(path: Path, limit_bytes: int = 64 << 10) -> list[AnyEvent]:
    """The events in the last `limit_bytes`, oldest first: enough for the current state of a million-line file."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = max(0, size - limit_bytes)
            file.seek(start)
            data = file.read(size - start)
    except FileNotFoundError:
        return []
    lines = data.split(b"\n")
    lines = lines[1:-1] if start else lines[:-1]
    return [event for line in lines if (event := decode(line)) is not None]


def head_events(path: Path, limit_bytes: int = 64 << 10) -> list[AnyEvent]:
    """The events in the first `limit_bytes`: where `started`, `resumed` and the choices stand."""
    return EventReader(path).poll(limit_bytes)


def _last_seq(path: Path) -> int:
    return max((event.seq for event in tail_events(path)), default=0)
