"""A console log of any size: an index of line starts, windows of lines by `pread`.

A million lines cost eight megabytes of index and are indexed in portions; the end of the file can be read before that.
"""

from __future__ import annotations

import os
import re
from array import array
from bisect import bisect_right
from collections.abc import Iterable
from pathlib import Path

PORTION = 4 << 20
LINE_LIMIT = 4096
TAIL = 64 << 10
CUT = " … and {:,} bytes more"
_CONTROL = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b[]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[ -/]*[0-~]|\x1b"
    r"|[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]"
)
_NEWLINE = re.compile(b"\n")
_PLAIN = bytes([10, *range(32, 127)])


def is_plain(raw: bytes) -> bool:
    """Whether `clean` leaves every line of it as it is."""
    odd = raw.translate(None, _PLAIN)
    return not odd or (min(odd) >= 128 and _CONTROL.search(raw.decode("utf-8", errors="replace")) is None)


def clean(raw: bytes, limit: int = LINE_LIMIT) -> str:
    """One line as it may be shown, of at most so many bytes: a progress bar's last state, no escape sequences, tabs as
    spaces."""
    if b"\r" in raw:
        raw = raw.rstrip(b"\r\n").rpartition(b"\r")[2]
    line = raw[:limit].decode("utf-8", errors="replace").rstrip("\r\n")
    line = _CONTROL.sub("", line).expandtabs(4)
    return line if len(raw) <= limit else line + CUT.format(len(raw) - limit)


class LogFile:
    """Line access to a growing file. `generation` changes when it was cut or replaced, and all is read anew."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.generation = 0
        self.size = 0
        self._starts = array("Q", [0])
        self._inode = 0

    def grow(self) -> bool:
        """Index at most one portion of what is new; True when anything changed. A shortened file starts over."""
        try:
            found = os.stat(self.path)
        except FileNotFoundError:
            changed = self.size > 0
            self._begin_again(0)
            return changed
        changed = False
        if found.st_size < self.size or found.st_ino != self._inode:
            changed = self.size > 0
            self._begin_again(found.st_ino)
        if found.st_size == self.size:
            return changed
        data = self.read(self.size, min(PORTION, found.st_size - self.size))
        after = self.size + 1
        self._starts.extend([after + match.start() for match in _NEWLINE.finditer(data)])
        self.size += len(data)
        return bool(data) or changed

    def _begin_again(self, inode: int) -> None:
        self._starts, self.size, self._inode = array("Q", [0]), 0, inode
        self.generation += 1

    @property
    def lines(self) -> int:
        """Lines so far; an unfinished last line counts."""
        return len(self._starts) - (1 if self._starts[-1] >= self.size else 0)

    @property
    def complete(self) -> int:
        """Lines that have been ended."""
        return len(self._starts) - 1

    @property
    def behind(self) -> bool:
        """Whether more of the file waits to be indexed."""
        try:
            return os.stat(self.path).st_size > self.size
        except FileNotFoundError:
            return False

    def start(self, line: int) -> int:
        """The offset at which a line begins; past the last one, the size."""
        return self._starts[line] if line < len(self._starts) else self.size

    def line_at(self, offset: int) -> int:
        """The line that holds the byte at `offset`."""
        return bisect_right(self._starts, offset) - 1

    def window(self, first: int, count: int) -> list[str]:
        """At most `count` lines from line `first`."""
        first = max(0, first)
        last = min(self.lines, first + count)
        if last <= first:
            return []
        start, end = self.start(first), self.start(last)
        if end - start > PORTION:
            return [self.line(number) for number in range(first, last)]
        lines = self.read(start, end - start).split(b"\n")
        return [clean(line) for line in lines[: last - first]]

    def pick(self, numbers: Iterable[int]) -> list[str]:
        """Single lines, wherever they are."""
        return [self.line(number) for number in numbers]

    def line(self, number: int, limit: int = LINE_LIMIT) -> str:
        """One line, of at most so many bytes; of a longer one its beginning, or of a progress bar its end."""
        start, end = self.start(number), self.start(number + 1)
        raw = self.read(start, min(limit + 1, end - start)).split(b"\n", 1)[0]
        if len(raw) <= limit:
            return clean(raw, limit)
        if b"\r" in raw:
            ended = self.read(end - limit, limit).rstrip(b"\n").rstrip(b"\r")
            return clean(b"\r" + ended.rpartition(b"\r")[2], limit)
        return clean(raw[:limit], limit) + CUT.format(end - start - limit - (number < self.complete))

    def tail(self, count: int) -> list[str]:
        """The last lines, without an index."""
        try:
            size = os.stat(self.path).st_size
        except FileNotFoundError:
            return []
        lines = self.read(max(0, size - TAIL), TAIL).split(b"\n")
        lines = lines[1:] if size > TAIL else lines
        lines = lines[:-1] if lines and not lines[-1] else lines
        return [clean(line) for line in lines[-count:]]

    def read(self, start: int, size: int) -> bytes:
        fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.pread(fd, size, start)
        finally:
            os.close(fd)
