"""A console log of any size: an index of line starts, windows of lines by `pread`, a backwards search.

`LogFile` does the work; `LogReader` is the thread that owns one and posts windows, so that no screen touches the disk.
A million lines cost eight megabytes of index and are indexed in portions; the end of the file is shown at once.
"""

from __future__ import annotations

import os
import re
import threading
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

from textual.message import Message

PORTION = 4 << 20
LINE_LIMIT = 4096
_CONTROL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b.|[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def clean(raw: bytes) -> str:
    """One line as it may be shown: a progress bar's last state, no escape sequences, tabs as spaces."""
    line = raw[:LINE_LIMIT].decode("utf-8", errors="replace").rstrip("\r\n")
    return _CONTROL.sub("", line.rpartition("\r")[2]).expandtabs(4)


class LogFile:
    """Line access to a growing file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._starts = array("Q", [0])
        self._size = 0
        self._inode = 0

    def grow(self) -> bool:
        """Index at most one portion of what is new; True when anything changed. A shortened file starts over."""
        try:
            found = os.stat(self.path)
        except FileNotFoundError:
            changed = self._size > 0
            self._starts, self._size = array("Q", [0]), 0
            return changed
        changed = False
        if found.st_size < self._size or found.st_ino != self._inode:
            changed = self._size > 0
            self._starts, self._size, self._inode = array("Q", [0]), 0, found.st_ino
        if found.st_size == self._size:
            return changed
        data = self._read(self._size, min(PORTION, found.st_size - self._size))
        at = data.find(b"\n")
        while at >= 0:
            self._starts.append(self._size + at + 1)
            at = data.find(b"\n", at + 1)
        self._size += len(data)
        return bool(data) or changed

    @property
    def lines(self) -> int:
        """Lines so far; an unfinished last line counts."""
        return len(self._starts) - (1 if self._starts[-1] >= self._size else 0)

    @property
    def behind(self) -> bool:
        """Whether more of the file waits to be indexed."""
        try:
            return os.stat(self.path).st_size > self._size
        except FileNotFoundError:
            return False

    def window(self, first: int, count: int) -> list[str]:
        """At most `count` lines from line `first`."""
        first = max(0, first)
        last = min(self.lines, first + count)
        if last <= first:
            return []
        start = self._starts[first]
        end = self._starts[last] if last < len(self._starts) else self._size
        if end - start > PORTION:
            return [clean(self._read(self._starts[n], LINE_LIMIT).split(b"\n", 1)[0]) for n in range(first, last)]
        lines = self._read(start, end - start).split(b"\n")
        return [clean(line) for line in lines[: last - first]]

    def search(self, pattern: re.Pattern[bytes], before: int) -> int | None:
        """The newest line before line `before` that matches."""
        last = min(before, self.lines)
        while last > 0:
            first = last
            end = self._starts[last] if last < len(self._starts) else self._size
            while first > 0 and end - self._starts[first - 1] <= PORTION:
                first -= 1
            first = min(first, last - 1)
            lines = self._read(self._starts[first], end - self._starts[first]).split(b"\n")
            for index in range(last - first - 1, -1, -1):
                if index < len(lines) and pattern.search(lines[index]):
                    return first + index
            last = first
        return None

    def _read(self, start: int, size: int) -> bytes:
        fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.pread(fd, size, start)
        finally:
            os.close(fd)


class LogWindow(Message):
    """`lines` start at line `first`; the file has `total` lines. `found` answers a search."""

    def __init__(self, path: str, first: int, lines: list[str], total: int, note: str = "", found: int = -1) -> None:
        super().__init__()
        self.path, self.first, self.lines, self.total = path, first, lines, total
        self.note, self.found = note, found


class LogReader(threading.Thread):
    """Owns the open log; asked from the UI thread, answers with `LogWindow`."""

    def __init__(self, post: Callable[[Message], Any]) -> None:
        super().__init__(name="log-reader", daemon=True)
        self._post = post
        self._lock = threading.Lock()
        self._wake, self._closing = threading.Event(), threading.Event()
        self._file: LogFile | None = None
        self._want = (0, 60, True)
        self._search: tuple[str, int] | None = None
        self._sent: object = None

    def open(self, path: str) -> None:
        """Show this file; an empty path shows none."""
        with self._lock:
            if self._file is None or str(self._file.path) != path:
                self._file = LogFile(Path(path)) if path else None
                self._sent = None
        self._wake.set()

    def want(self, first: int, count: int, follow: bool) -> None:
        """The lines that the screen shows; `follow` means the last ones, whatever their number."""
        with self._lock:
            self._want = (first, count, follow)
        self._wake.set()

    def find(self, words: str, before: int) -> None:
        """Look for `words` (any case) above line `before`."""
        with self._lock:
            self._search = (words, before)
        self._wake.set()

    def close(self) -> None:
        self._closing.set()
        self._wake.set()

    def run(self) -> None:
        while not self._closing.is_set():
            try:
                behind = self.look()
            except OSError as error:
                self._post(LogWindow("", 0, [], 0, note=f"cannot read the log: {error.strerror}"))
                behind = False
            self._wake.wait(0.005 if behind else 0.25)
            self._wake.clear()

    def look(self) -> bool:
        """One round; True while there is more to index."""
        with self._lock:
            file, (first, count, follow), search = self._file, self._want, self._search
            self._search = None
        if file is None:
            return False
        file.grow()
        if search is not None:
            self._answer(file, *search)
        total = file.lines
        if follow:
            first = max(0, total - count)
        key = (str(file.path), first, count, total, file._size if first + count >= total else 0)
        if key != self._sent:
            self._sent = key
            note = "reading …" if file.behind else ""
            self._post(LogWindow(str(file.path), first, file.window(first, count), total, note))
        return file.behind

    def _answer(self, file: LogFile, words: str, before: int) -> None:
        pattern = re.compile(re.escape(words.encode()), re.IGNORECASE)
        found = file.search(pattern, before)
        note = "" if found is not None else f"nothing above matches '{words}'"
        self._post(LogWindow(str(file.path), 0, [], file.lines, note, -1 if found is None else found))
