"""The thread that owns the open log: asked from the UI thread, it answers with messages, so that no screen touches the
disk.

What is shown are rows: all lines, or those of a level, or those that match a search. `Matches` finds them while the
thread has nothing else to do, and keeps them as the file grows.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from textual.message import Message

from tui import log_sources
from tui.log_sources import Source
from tui.matches import LEVELS, Matches, Pattern
from tui.search import TooSlow, query
from tui.tail import PORTION, LogFile

LOOK_S = 0.25
BUSY_S = 0.005
SEARCH_S = 0.04
"""At a time: the screen's own thread must get its turns."""
FOLLOW_S = 0.5
"""While a log grows it is shown at most so often: each time costs a screenful over SSH."""
SOURCES_S = 2.0
COPY_LINES = 20_000
SLOW = "search given up: this expression takes too long; a simpler one may do"


class LogWindow(Message):
    """`lines` are (line number, text) of the rows from `first` on; the view has `rows` rows, the file `total` lines.
    `found` is a row to jump to; a line number of -1 is not known yet. `given_up`: nothing is searched for any more.
    `answers`: how many times a match was found or missed, this one included, where this says so."""

    def __init__(self, path: str, first: int, lines: list[tuple[int, str]], rows: int, total: int, **more: Any) -> None:
        super().__init__()
        self.path, self.first, self.lines, self.rows, self.total = path, first, lines, rows, total
        self.note: str = more.get("note", "")
        self.busy: str = more.get("busy", "")
        self.found: int = more.get("found", -1)
        self.answers: int = more.get("answers", 0)
        self.given_up: bool = more.get("given_up", False)


class LogSources(Message):
    def __init__(self, stage: str, sources: list[Source], shown: Source | None) -> None:
        super().__init__()
        self.stage, self.sources, self.shown = stage, sources, shown


class LogText(Message):
    """Lines that were asked for, to be copied."""

    def __init__(self, lines: list[str], cut: bool) -> None:
        super().__init__()
        self.lines, self.cut = lines, cut


@dataclass
class _Wish:
    """What the screen wants; taken whole by the thread."""

    run_dir: Path | None = None
    stage: str = ""
    path: Path | None = None  # chosen by the person; None: the stage's newest
    window: tuple[int, int, bool] = (0, 60, True)
    level: int = 0
    words: str = ""
    only: bool = False
    anchor: int = -1  # line to stay at when the rows change
    finds: list[tuple[int, int, int]] = field(default_factory=list)  # (direction, from line, answers seen)
    copies: list[tuple[int, int]] = field(default_factory=list)  # (first row, past the last)


class LogReader(threading.Thread):
    def __init__(self, post: Callable[[Message], Any]) -> None:
        super().__init__(name="log-reader", daemon=True)
        self._post = post
        self._lock = threading.Lock()
        self._wake, self._closing = threading.Event(), threading.Event()
        self._wish = _Wish()
        self._sources: list[Source] = []
        self._listed: tuple[object, float] = (None, 0.0)
        self._said: object = None
        self._file: LogFile | None = None
        self._rows: Matches | None = None
        self._hits: Matches | None = None
        self._made: object = None
        self._sent: object = None
        self._sent_at = 0.0
        self._pending: list[tuple[int, int, int]] = []
        self._seek: tuple[int, int, Iterator[int | None]] | None = None  # (direction, from line, what finds the match)
        self._anchor = self._uncounted = -1
        self._answers, self._at = 0, -1  # the line of the last match that was found

    # asked from the UI thread ---------------------------------------------------------------------------------------

    def open(self, run_dir: Path, stage: str, path: Path | None = None) -> None:
        """Show this log, or with no path the newest of the stage."""
        self._change(run_dir=run_dir, stage=stage, path=path)

    def want(self, first: int, count: int, follow: bool) -> None:
        """The rows that the screen shows; `follow` means the last ones, whatever their number."""
        self._change(window=(first, count, follow))

    def choose(self, level: int, words: str, only: bool, anchor: int) -> None:
        """Which lines are rows: those of a level, and with `only` those that match; stay near line `anchor`."""
        self._change(level=level, words=words, only=only, anchor=anchor)

    def find(self, direction: int, line: int, seen: int) -> None:
        """Jump to the next match before (-1) or after (1) a line, or before it, else anywhere (0). Who has not `seen`
        the answer to an earlier question asks for the match after that one."""
        with self._lock:
            self._wish.finds.append((direction, line, seen))
        self._wake.set()

    def copy(self, first: int, last: int) -> None:
        """Post the text of the rows from `first` to before `last`."""
        with self._lock:
            self._wish.copies.append((first, last))
        self._wake.set()

    def close(self) -> None:
        self._closing.set()
        self._wake.set()

    def _change(self, **values: Any) -> None:
        with self._lock:
            for name, value in values.items():
                setattr(self._wish, name, value)
        self._wake.set()

    # the thread -----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        while not self._closing.is_set():
            try:
                busy = self.look()
            except OSError as error:
                self._post(LogWindow("", 0, [], 0, 0, note=f"cannot read the log: {error.strerror}"))
                busy = False
            self._wake.wait(BUSY_S if busy else LOOK_S)
            self._wake.clear()

    def look(self) -> bool:
        """One round; True while there is more to index or to search."""
        with self._lock:
            wish = self._wish
            wish_now = _Wish(**(vars(wish) | {"finds": [], "copies": []}))
            finds, copies, anchor = wish.finds, wish.copies, wish.anchor
            wish.finds, wish.copies, wish.anchor = [], [], -1
        if wish_now.run_dir is None:
            return False
        self._list(wish_now)
        file = self._file
        if file is None:
            return False
        file.grow()
        self._make(file, wish_now)
        self._pending += finds
        try:
            searching = self._search()
            if anchor >= 0 and self._rows is not None:
                self._anchor = anchor
            elif anchor >= 0:
                self._say(file, wish_now, found=min(anchor, max(0, file.lines - 1)))
            behind = file.behind
            if not behind:
                self._answer(file, wish_now, searching)
        except TooSlow:
            searching, behind = False, file.behind
            self._give_up(file, wish_now)
        self._send(file, wish_now, behind, searching)
        for first, last in copies:
            cut = last - first > COPY_LINES
            lines = self._whole(file, first, min(last - first, COPY_LINES))
            self._post(LogText(lines, cut))
        return behind or searching or self._seek is not None

    def _list(self, wish: _Wish) -> None:
        """Look for logs now and then, and open another one when a new attempt began."""
        assert wish.run_dir is not None
        key = (wish.run_dir, wish.stage, wish.path)
        now = time.monotonic()
        if self._listed[0] == key and now - self._listed[1] < SOURCES_S:
            return
        self._listed = (key, now)
        self._sources = log_sources.find(wish.run_dir, wish.stage)
        shown = next((source for source in self._sources if source.path == wish.path), None)
        shown = shown or log_sources.newest(self._sources, wish.stage)
        path = shown.path if shown else None
        if path != (self._file.path if self._file else None):
            self._file = LogFile(path) if path else None
            self._sent = self._made = None
        said = (wish.stage, path, [source.path for source in self._sources])
        if said != self._said:
            self._said = said
            self._post(LogSources(wish.stage, self._sources, shown))

    def _make(self, file: LogFile, wish: _Wish) -> None:
        """New matches when what is looked for changed."""
        key = (file, wish.level, wish.words, wish.only)
        if key == self._made:
            return
        self._made = key
        level, words = LEVELS[wish.level][1], query(wish.words)
        both: list[Pattern] = [pattern for pattern in (level, words) if pattern is not None]
        self._hits = Matches(file, both) if words is not None else None
        self._rows = self._hits if wish.only and words is not None else Matches(file, [level]) if level else None
        self._sent = self._seek = None

    def _search(self) -> bool:
        """Look for matches for a moment; True when there is more to do."""
        end = time.monotonic() + SEARCH_S
        wanted = [matches for matches in {id(m): m for m in (self._rows, self._hits) if m is not None}.values()]
        while wanted and time.monotonic() < end:
            wanted = [matches for matches in wanted if matches.step()]
        return bool(wanted)

    def _give_up(self, file: LogFile, wish: _Wish) -> None:
        """Search no longer for what takes too long, and say so; every line of the level is a row again."""
        level = LEVELS[wish.level][1]
        self._hits = self._seek = self._sent = None
        self._rows = Matches(file, [level]) if level else None
        self._pending, self._anchor, self._uncounted = [], -1, -1
        with self._lock:
            self._wish.only = False
        self._made = (file, wish.level, wish.words, False)
        self._post(LogWindow(str(file.path), 0, [], -1, file.lines, note=SLOW, given_up=True))

    def _whole(self, file: LogFile, first: int, count: int) -> list[str]:
        """Rows as they are copied: long lines, too, in full."""
        last = min(first + count, file.lines if self._rows is None else len(self._rows.lines))
        return [file.line(n if self._rows is None else self._rows.lines[n], PORTION) for n in range(first, last)]

    def _window(self, file: LogFile, first: int, count: int) -> list[tuple[int, str]]:
        first = max(0, first)
        if self._rows is None:
            return list(enumerate(file.window(first, count), first))
        numbers = list(self._rows.lines[first : first + count])
        return list(zip(numbers, file.pick(numbers), strict=True))

    def _send(self, file: LogFile, wish: _Wish, behind: bool, searching: bool) -> None:
        first, count, follow = wish.window
        rows = file.lines if self._rows is None else len(self._rows.lines)
        early = behind and follow and self._rows is None
        if follow:
            first = max(0, rows - count)
        grown = file.size if first + count >= rows else 0
        busy = f"reading, {file.lines:,} lines so far" if behind else "searching" if searching else ""
        key = (file, file.generation, first, count, rows if not early else -1, grown if not early else -1, bool(busy))
        now = time.monotonic()
        if key == self._sent or (follow and now - self._sent_at < FOLLOW_S and self._sent is not None):
            return
        self._sent, self._sent_at = key, now
        if early:  # the end is shown at once, without numbers
            tail = [(-1, line) for line in file.tail(count)]
            self._post(LogWindow(str(file.path), 0, tail, len(tail), file.lines, busy=busy))
        else:
            self._say(file, wish, busy=busy, first=first)

    def _say(self, file: LogFile, wish: _Wish, first: int = -1, **more: Any) -> None:
        count = wish.window[1]
        if more.get("found", -1) >= 0:
            first = max(0, more["found"] - count // 2)
        rows = file.lines if self._rows is None else len(self._rows.lines)
        self._post(LogWindow(str(file.path), first, self._window(file, first, count), rows, file.lines, **more))

    def _answer(self, file: LogFile, wish: _Wish, searching: bool) -> None:
        """The place to stay at when other lines are shown; jumps to matches, at once, and their number when all are
        known."""
        if not searching:
            if self._anchor >= 0 and self._rows is not None and self._rows.lines:
                row = min(self._rows.place(self._anchor), len(self._rows.lines) - 1)
                self._say(file, wish, found=row)
            self._anchor = -1
            if self._uncounted >= 0 and self._hits is not None:
                self._post(
                    LogWindow(str(file.path), 0, [], -1, file.lines, note=self._count(file, self._uncounted, wish))
                )
            self._uncounted = -1
        if self._hits is None:
            if self._pending and wish.words:  # it was given up before
                self._give_up(file, wish)
            self._pending = []
        if self._hits is None or (searching and self._rows is not None):
            return
        if self._seek is None and self._pending:
            direction, line, seen = self._pending.pop(0)
            if direction and seen < self._answers and self._at >= 0:
                line = self._at
            self._seek = direction, line, self._hits.seek(line, direction or -1)
        end = time.monotonic() + SEARCH_S
        while self._seek is not None and time.monotonic() < end:
            direction, line, seeking = self._seek
            hit = next(seeking, -1)
            if hit == -1 and direction == 0:
                self._seek = 1, line, self._hits.seek(line - 1, 1)
            elif hit is not None:
                self._seek = None
                self._arrive(file, wish, direction, hit, searching)

    def _arrive(self, file: LogFile, wish: _Wish, direction: int, hit: int, searching: bool) -> None:
        """Jump to the match that was found, or say that there is none (-1)."""
        assert self._hits is not None
        self._answers += 1
        if hit >= 0:
            self._at = hit
            row = self._rows.place(hit) if self._rows is not None else hit
            self._uncounted = hit if searching else -1
            note = self._with_doubt("match", file, hit, wish) if searching else self._count(file, hit, wish)
            self._say(file, wish, found=row, note=note, answers=self._answers)
            return
        self._uncounted = -1
        where, number = "above" if direction < 0 else "below", len(self._hits.lines)
        note = f"no match {where}" + ("" if searching else f", {number:,} in all")
        note = self._with_doubt(note, file, -1, wish)
        self._post(LogWindow(str(file.path), 0, [], -1, file.lines, note=note, answers=self._answers))

    def _count(self, file: LogFile, line: int, wish: _Wish) -> str:
        assert self._hits is not None
        return self._with_doubt(f"match {self._hits.place(line) + 1:,} of {len(self._hits.lines):,}", file, line, wish)

    def _with_doubt(self, note: str, file: LogFile, line: int, wish: _Wish) -> str:
        """`note`, and what is odd about the search, or about the match in `line` (-1: there is none)."""
        words = query(wish.words)
        if words is None:
            return note
        if line >= 0 and not words.search(file.line(line)):
            note += ", further on in this line than is shown"
        return f"{note}; taken as plain text ({words.doubt})" if words.doubt else note
