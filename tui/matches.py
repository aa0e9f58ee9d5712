"""Which lines of a log match: found once, in portions, and kept as line numbers while the file grows."""

from __future__ import annotations

import re
import time
from array import array
from bisect import bisect_left
from collections.abc import Iterator

from tui.search import Query, TooSlow
from tui.tail import PORTION, LogFile, clean, is_plain

STEP = 256 << 10
LINES_S = 1.0
"""For the lines of one portion, looked at one by one because the expression is slow; then it is given up."""
Pattern = re.Pattern[str] | Query

_ERROR = (
    r"\b(?:ERROR|FATAL|CRITICAL)\b|(?i:(?:error|exception|fatal|critical|panic)\b\s*[:(\]]|traceback \(most recent"
    r"|segmentation fault|out of memory|\bkilled\b)|^[EF]\d{4} "
)
ERROR = re.compile(_ERROR, re.MULTILINE)
"""Lines that tell of an error, in the manners of Python, its logging, torchrun and the kernel."""
WARN = re.compile(_ERROR + r"|\bWARN(?:ING)?\b|(?i:warning\b\s*[:(\]])|^W\d{4} ", re.MULTILINE)
LEVELS: tuple[tuple[str, Pattern | None], ...] = (
    ("everything", None),
    ("warnings and errors", WARN),
    ("errors", ERROR),
)

_TRACEBACK = "Traceback (most recent"
_RANK = re.compile(r"\[\w+\]:\s?")
_HINTS = (
    b"error",
    b"warn",
    b"exception",
    b"fatal",
    b"critical",
    b"panic",
    b"traceback",
    b"fault",
    b"memory",
    b"killed",
)
_WORDS = tuple(hint.decode() for hint in _HINTS)
_LETTERED = re.compile(rb"(?:^|\n)[EFW]\d{4} ")
"""One of these is in each line of a level, so that only few lines are looked at closely."""


def hinted(line: str) -> bool:
    """Whether a line may be of a level at all: quick."""
    low = line.lower()
    return any(hint in low for hint in _WORDS) or (line[:1] in ("E", "F", "W") and line[1:5].isdigit())


class Matches:
    """The lines that match all of `patterns`, in order. Under an error's "Traceback" the rest of it belongs to it.

    Looking raises `TooSlow` when a pattern cannot be waited for.
    """

    def __init__(self, file: LogFile, patterns: list[Pattern]) -> None:
        self.file, self.patterns = file, patterns
        self.lines = array("Q")
        self.upto = 0
        self._generation = file.generation
        self._blocks = any(pattern in (ERROR, WARN) for pattern in patterns)
        self._inside = False
        self._unfinished = False
        self._slow = False

    def step(self) -> bool:
        """Look at the next portion; True when more of what is indexed is left."""
        file = self.file
        if file.generation != self._generation:
            self.lines, self.upto, self._generation = array("Q"), 0, file.generation
            self._inside = self._unfinished = False
        if self._unfinished:
            self.lines.pop()
            self._unfinished = False
        if self.upto < file.complete:
            self._scan(self.upto, min(file.complete, max(self.upto + 1, file.line_at(file.start(self.upto) + STEP))))
        if self.upto < file.complete:
            return True
        if file.lines > file.complete and self._all(file.line(file.complete, PORTION)):
            self.lines.append(file.complete)
            self._unfinished = True
        return False

    def _scan(self, first: int, last: int) -> None:
        file = self.file
        base, end = file.start(first), file.start(last)
        self.upto = last
        if last <= first:
            return
        if end - base > PORTION:  # a line of many megabytes: the first of them
            self.lines.extend(number for number in range(first, last) if self._all(file.line(number, PORTION)))
            return
        raw = file.read(base, end - base)
        if self._blocks:
            self._scan_levels(first, raw)
        elif not is_plain(raw):
            self._scan_lines(first, [clean(line, PORTION) for line in raw.split(b"\n")[:-1]])
        else:
            text = raw.decode("utf-8", errors="replace")
            if not self._slow:
                try:
                    self.lines.extend(self._scan_text(first, text))
                    return
                except TooSlow:
                    self._slow = True
            self._scan_lines(first, text.split("\n")[:-1])

    def _scan_text(self, number: int, text: str) -> list[int]:
        """Search over many lines at once; what matches across a line's end is looked at by itself."""
        at, lead, found = 0, self.patterns[0], list[int]()
        while at < len(text) and (match := lead.search(text, at)) is not None and match.start() < len(text):
            number += text.count("\n", at, match.start())
            start, end = text.rfind("\n", 0, match.start()) + 1, text.find("\n", match.start())
            if self._all(text[start:end]):
                found.append(number)
            at, number = end + 1, number + 1
        return found

    def _scan_lines(self, first: int, lines: list[str]) -> None:
        """Search line by line, for a while."""
        end = time.monotonic() + LINES_S
        for number, line in enumerate(lines, first):
            if self._all(line):
                self.lines.append(number)
            if time.monotonic() > end:
                raise TooSlow

    def _scan_levels(self, first: int, raw: bytes) -> None:
        lines, after = None, 0
        if self._inside:
            lines = raw.split(b"\n")[:-1]
            after = self._rest_of_block(first, lines, 0)
        for offset in _hinted(raw):
            if lines is None:
                lines = raw.split(b"\n")[:-1]
            if offset < after or offset >= len(lines):
                continue
            line = clean(lines[offset])
            if self._all(line):
                self.lines.append(first + offset)
                if _TRACEBACK in line:
                    after = self._rest_of_block(first, lines, offset + 1)

    def _rest_of_block(self, first: int, lines: list[bytes], offset: int) -> int:
        """Add the indented lines of a traceback and the one that ends it; returns the offset after them."""
        self._inside = True
        while offset < len(lines) and self._inside:
            line = clean(lines[offset])
            self._inside = (_RANK.sub("", line, count=1) if line.startswith("[") else line)[:1] in (" ", "")
            self.lines.append(first + offset)
            offset += 1
        return offset

    def seek(self, line: int, direction: int) -> Iterator[int | None]:
        """Look in the file itself for the next matching line before (-1) or after (1) `line`: None after each portion
        without one, then the line, and with it the end."""
        file, apart = self.file, Matches(self.file, self.patterns)
        at = min(line, file.lines) if direction < 0 else line + 1
        while at > 0 if direction < 0 else at < file.lines:
            if direction < 0:
                first, last = min(at - 1, file.line_at(max(0, file.start(at) - STEP))), at
            else:
                first, last = at, max(at + 1, min(file.lines, file.line_at(file.start(at) + STEP)))
            apart.lines = array("Q")
            apart._scan(first, min(last, file.complete))
            if last > file.complete and apart._all(file.line(file.complete, PORTION)):
                apart.lines.append(file.complete)
            if apart.lines:
                yield apart.lines[-1 if direction < 0 else 0]
                return
            at = first if direction < 0 else last
            yield None

    def _all(self, line: str) -> bool:
        return all(pattern.search(line) for pattern in self.patterns)

    def place(self, line: int) -> int:
        """How many matching lines come before `line`."""
        return bisect_left(self.lines, line)


def _hinted(raw: bytes) -> list[int]:
    """Line numbers within `raw` of lines that may be of a level, in order."""
    low, places = raw.lower(), set[int]()
    for hint in _HINTS:
        at = low.find(hint)
        while at >= 0:
            places.add(at)
            at = low.find(b"\n", at)  # once a line is enough
            at = low.find(hint, at) if at >= 0 else -1
    places.update(match.end() - 1 for match in _LETTERED.finditer(raw))
    found: list[int] = []
    number = at = 0
    for place in sorted(places):
        number += raw.count(b"\n", at, place)
        at = place
        if not found or found[-1] != number:
            found.append(number)
    return found
