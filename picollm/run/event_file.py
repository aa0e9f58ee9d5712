"""Files of events: the append-only JSONL that a stage writes and everyone else reads.

One line is one event: `{"type": ..., "v": 1, "seq": n, "time": unix seconds, ...}`. A torn last line is "not yet";
a torn line in the middle (a writer died there) and an unknown type are skipped. `seq` grows within one file, so order
never depends on the clock.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import queue
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from picollm.run.events import AnyEvent, Event

VERSION = 1
HEAD_BYTES = 64 << 10
TAIL_LIMIT_BYTES = 32 << 20

_decoder = msgspec.json.Decoder(AnyEvent)


def _plain(value: Any) -> Any:
    """What JSON has no word for: numpy and torch scalars become numbers, anything else its text."""
    item = getattr(value, "item", None)
    if callable(item):
        try:
            return item()
        except (TypeError, ValueError, RuntimeError):
            return str(value)
    return str(value)


_encoder = msgspec.json.Encoder(enc_hook=_plain)


def encode(event: Event, seq: int) -> bytes:
    """Stamp and serialise one event as a line. Text that is not valid Unicode is kept readable, never refused."""
    event.v, event.seq, event.time = VERSION, seq, round(time.time(), 3)
    try:
        return _encoder.encode(event) + b"\n"
    except UnicodeEncodeError:
        return _encoder.encode(_mend(msgspec.to_builtins(event, str_keys=True, enc_hook=_plain))) + b"\n"


def _mend(value: Any) -> Any:
    """Lone surrogates (from broken bytes and file names) as question marks, throughout."""
    match value:
        case str():
            return value.encode(errors="replace").decode()
        case dict():
            return {_mend(key): _mend(item) for key, item in value.items()}
        case list() | tuple():
            return [_mend(item) for item in value]
        case _:
            return value


def decode(line: bytes) -> AnyEvent | None:
    """One line to an event; None for a torn line, foreign bytes, a newer version's unknown type."""
    try:
        return _decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def decode_all(lines: list[bytes]) -> list[AnyEvent]:
    """What `decode` makes of each, without those it makes nothing of; all at once where every line is sound."""
    try:
        return _decoder.decode_lines(b"\n".join(lines))
    except (msgspec.DecodeError, UnicodeDecodeError):
        return [event for line in lines if (event := decode(line)) is not None]


class EventWriter:
    """Appends events to one file from a thread of its own, so that a slow or full disk never holds training up.

    A file that ends in a torn line gets a newline first: the torn line stays, skipped by readers. While the disk is
    full, lines wait in memory and are tried again; `close()` keeps trying for `CLOSE_PATIENCE_S` and says on stderr how
    many were lost.
    """

    RETRY_S = 0.5
    CLOSE_PATIENCE_S = 10.0

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._seq = _last_seq(path)
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._torn = _ends_torn(self._fd)
        self._lock = threading.Lock()
        self._queue: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._complained = False
        self._closing = threading.Event()
        self.lost = 0
        self._thread = threading.Thread(target=self._drain, name="events", daemon=True)
        self._thread.start()

    def write(self, event: Event) -> None:
        """Stamp and queue one event; returns at once."""
        with self._lock:
            line = encode(event, self._seq + 1)
            self._seq += 1
            self._queue.put(line)

    def close(self) -> None:
        """Write everything that waits, then fsync; safe to call twice."""
        if self._fd < 0:
            return
        self._closing.set()
        self._queue.put(None)
        self._thread.join()
        try:
            os.fsync(self._fd)
        except OSError as error:
            print(f"events: {self.path} may be incomplete: {error}", file=sys.stderr)
        if self.lost:
            print(f"events: {self.lost} lines of {self.path} are lost", file=sys.stderr, flush=True)
        os.close(self._fd)
        self._fd = -1

    def _drain(self) -> None:
        deadline = None
        while (line := self._queue.get()) is not None:
            while not self._put(line):
                if self._closing.is_set():
                    deadline = deadline or time.monotonic() + self.CLOSE_PATIENCE_S
                    if time.monotonic() >= deadline:
                        self.lost += 1
                        break
                    time.sleep(self.RETRY_S)
                self._closing.wait(self.RETRY_S)

    def _put(self, line: bytes) -> bool:
        """False when it did not fit: what is there of it is left torn, and the next try starts a line of its own."""
        data = b"\n" + line if self._torn else line
        try:
            written = os.write(self._fd, data)
        except OSError as error:
            self._complain(str(error))
            return False
        self._torn = written < len(data)
        if self._torn:
            self._complain("no space left for a whole line")
        return not self._torn

    def _complain(self, reason: str) -> None:
        if not self._complained:
            self._complained = True
            print(f"events: cannot write {self.path}: {reason}; trying again", file=sys.stderr, flush=True)


def append(path: Path, event: Event) -> None:
    """Write one event at once, for rare writers (launcher, conductor). Writers take turns: lines never interleave and
    no two share a `seq`. Raises `OSError`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    try:
        with contextlib.suppress(OSError):  # a file system without locks: two at once may share a seq
            fcntl.flock(fd, fcntl.LOCK_EX)
        os.write(fd, (b"\n" if _ends_torn(fd) else b"") + encode(event, _last_seq(path) + 1))
    finally:
        os.close(fd)


def _ends_torn(fd: int) -> bool:
    size = os.fstat(fd).st_size
    return size > 0 and os.pread(fd, 1, size - 1) != b"\n"


class EventReader:
    """Follows one file: `poll()` gives the events completed since the last call.

    `without`: a type of event that its reader has no use for, left undecoded where it is plain to see.
    """

    def __init__(self, path: Path, offset: int = 0, without: type[Event] | None = None) -> None:
        self.path = path
        self.offset = offset
        self._without = f'{{"type":"{without.__name__.lower()}"'.encode() if without else b"\n"

    def poll(self, limit_bytes: int = 4 << 20) -> list[AnyEvent]:
        """At most `limit_bytes` are read at a time, so that a million lines arrive in portions; [] only at the end.

        A file that was cut short is read from its beginning again.
        """
        skipped = self._without
        while (data := self._portion(limit_bytes)) is not None:
            events = decode_all([line for line in data.split(b"\n") if line and not line.startswith(skipped)])
            if events:
                return events
        return []

    def _portion(self, limit_bytes: int) -> bytes | None:
        """The next complete lines, or part of a line longer than the limit; None when there is nothing new."""
        try:
            with open(self.path, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size < self.offset:
                    self.offset = 0
                file.seek(self.offset)
                data = file.read(min(limit_bytes, size - self.offset))
        except (FileNotFoundError, NotADirectoryError):
            return None
        end = data.rfind(b"\n") + 1
        if end == 0 and len(data) == limit_bytes:
            end = len(data)
        if end == 0:
            return None
        self.offset += end
        return data[:end]


def read_events(path: Path) -> Iterator[AnyEvent]:
    """All complete events of a file, oldest first."""
    reader = EventReader(path)
    while events := reader.poll():
        yield from events


def tail_events(path: Path, limit_bytes: int = 64 << 10) -> list[AnyEvent]:
    """The events in the last `limit_bytes`, oldest first: enough for the current state of a million-line file.

    Where a single event is longer than that, more is read until one is found (at most `TAIL_LIMIT_BYTES`).
    """
    while True:
        try:
            with open(path, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                start = max(0, size - limit_bytes)
                file.seek(start)
                data = file.read(size - start)
        except (FileNotFoundError, NotADirectoryError):
            return []
        lines = data.split(b"\n")
        lines = lines[1:-1] if start else lines[:-1]
        events = [event for line in lines if line and (event := decode(line)) is not None]
        if events or not start or limit_bytes >= TAIL_LIMIT_BYTES:
            return events
        limit_bytes *= 8


def head_events(path: Path, limit_bytes: int = HEAD_BYTES) -> list[AnyEvent]:
    """The events in the first `limit_bytes`: where `started`, `resumed` and the choices stand."""
    return EventReader(path).poll(limit_bytes)


def _last_seq(path: Path) -> int:
    return max((event.seq for event in tail_events(path)), default=0)
