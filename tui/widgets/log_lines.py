"""The lines of a log on the screen: a window on what the reader has; scrolls, wraps, marks, repaints what changed."""

from __future__ import annotations

from rich.cells import cell_len, chop_cells
from rich.style import Style
from rich.text import Text
from textual import events
from textual.geometry import Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

from tui.log_reader import LogReader, LogWindow
from tui.matches import ERROR, WARN, hinted
from tui.search import GLANCE_S, Query, TooSlow
from tui.widgets.lines import changed, contain, text
from tui.widgets.tones import tone

MARGIN = 60
HIT = Style(reverse=True)
SHIFT = 16
KEPT = 2000


class LogLines(ScrollView, can_focus=True):
    """`following`: the end stays in view as the log grows. `cursor` is the row that keys copy and open; `mark` the
    other end of a selection."""

    DEFAULT_CSS = "LogLines { height: 1fr; overflow-x: hidden; scrollbar-size-vertical: 1; scrollbar-gutter: stable; }"

    class Moved(Message):
        """Following began or ended, or the cursor moved."""

    def __init__(self) -> None:
        super().__init__(id="log-lines")
        self.hint: list[Text] = []
        self.wrap = False
        self.pattern: Query | None = None
        self.reader: LogReader | None = None
        self._shown: list[Strip] = []
        self._rows_shown: list[int] = []
        self._drawn: dict[tuple[str, str, bool], list[Strip]] = {}
        self._drawn_how: object = None
        self._programmatic = False
        self._dragged_from = -1
        self.clear()

    def clear(self) -> None:
        """Begin again with another log."""
        self.first, self.rows = 0, 0
        self.lines: list[tuple[int, str]] = []
        self.cursor = self.mark = -1
        self.following, self.shift = True, 0
        if self.is_attached:
            self._resize(0)
            self.repaint()

    # what there is to show ------------------------------------------------------------------------------------------

    def take(self, window: LogWindow) -> None:
        """New lines from the reader."""
        if self.following and self.rows and window.first + len(window.lines) < window.rows:
            return  # asked for before following began
        self.rows = window.rows
        if self.following or self._in_sight(window.first, window.lines) or not self._in_sight(self.first, self.lines):
            self.first, self.lines = window.first, window.lines  # others were asked for before a jump
        self._resize(self.rows)
        if self.following:
            self.call_after_refresh(self.to_end)
        self.repaint()

    def _in_sight(self, first: int, lines: list[tuple[int, str]]) -> bool:
        """Whether every row on the screen is among these."""
        top = round(self.scroll_offset.y)
        return first <= top and min(self.rows, top + self.size.height) <= first + len(lines)

    def jump(self, window: LogWindow) -> None:
        """Bring a found row into the middle of the screen, with the cursor on it."""
        self.first, self.lines, self.rows = window.first, window.lines, window.rows
        self.following, self.cursor, self.mark = False, window.found, -1
        self._resize(self.rows)
        self._show_match()
        self._scroll(max(0, window.found - self.size.height // 2))
        self.request()
        self.repaint()

    def _show_match(self) -> None:
        """Shift the lines so that the match in the cursor's is on the screen."""
        found = self.text_of(self.cursor)
        if found is None or self.pattern is None or self.wrap:
            return
        try:
            start, end = next(self.pattern.spans(found[1], GLANCE_S), (0, 0))
        except TooSlow:
            return
        left, room = cell_len(found[1][:start]), self.size.width - 2
        if not self.shift <= left <= left + min(end - start, room) <= self.shift + room:
            self.shift = 0 if left + end - start <= room else max(0, left - room // 2) // SHIFT * SHIFT

    def request(self) -> None:
        """Ask for what is visible and a margin around it."""
        if self.reader is not None:
            height = max(1, self.size.height)
            self.reader.want(max(0, self.scroll_offset.y - MARGIN), height + 2 * MARGIN, self.following)

    def text_of(self, row: int) -> tuple[int, str] | None:
        """(line number, text) of a row that was read."""
        index = row - self.first
        return self.lines[index] if 0 <= index < len(self.lines) else None

    def bottom(self) -> int:
        """The row that is shown last."""
        return self._rows_shown[-1] if self._rows_shown else max(0, self.rows - 1)

    # moving ---------------------------------------------------------------------------------------------------------

    def follow(self, on: bool) -> None:
        self.following = on
        self.request()
        if on:
            self.to_end()
        self.post_message(self.Moved())

    def to_end(self) -> None:
        if self.following:
            self._scroll(self._top_for_end())

    def move(self, by: int) -> None:
        """Move the cursor; the first time it appears in the last line shown."""
        row = self.bottom() if self.cursor < 0 else self.cursor + by
        self.cursor = max(0, min(self.rows - 1, row))
        self.following = False
        if self._rows_shown and not self._rows_shown[0] <= self.cursor <= self._rows_shown[-1]:
            top = self.cursor if self.cursor < self._rows_shown[0] else self.cursor - self.size.height + 1
            self._scroll(max(0, top))
        self._marked()

    def scroll_page_down(self, **options: object) -> None:  # type: ignore[override]
        self.scroll_to(y=self.bottom() if self.wrap else self.scroll_y + self.size.height - 1, animate=False)

    def scroll_page_up(self, **options: object) -> None:  # type: ignore[override]
        self.scroll_to(y=self.scroll_y - max(1, len(set(self._rows_shown)) - 1), animate=False)

    def scroll_end(self, **options: object) -> None:  # type: ignore[override]
        self.follow(True)

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        if self.show_vertical_scrollbar:
            self.vertical_scrollbar.position = new_value
        if round(old_value) == round(new_value):
            return
        if not self._programmatic:
            at_end = new_value >= self._top_for_end() - 0.5
            if self.following != (at_end and (self.following or new_value > old_value)):
                self.following = not self.following
                self.post_message(self.Moved())
        self.request()
        self.repaint()

    def on_resize(self) -> None:
        self._resize(self.rows)
        if self.following:
            self.to_end()
        self.request()
        self.repaint()

    def on_mouse_down(self, event: events.MouseDown) -> None:
        """A click marks a line; dragging selects lines."""
        if event.button == 1 and event.y < len(self._rows_shown):
            self.capture_mouse()
            self.cursor, self.mark, self.following = self._rows_shown[event.y], -1, False
            self._dragged_from = self.cursor
            self._marked()

    def on_mouse_move(self, event: events.MouseMove) -> None:
        if self._dragged_from < 0 or not self._rows_shown:
            return
        if not 0 <= event.y < self.size.height:  # past an edge: the lines follow
            self._scroll(max(0, min(self._top_for_end(), self.scroll_offset.y + (1 if event.y > 0 else -1))))
        row = self._rows_shown[max(0, min(event.y, len(self._rows_shown) - 1))]
        if row != self.cursor:
            self.cursor = row
            self.mark = self._dragged_from if row != self._dragged_from else -1
            self._marked()

    def on_mouse_up(self) -> None:
        self._dragged_from = -1
        self.release_mouse()

    def _marked(self) -> None:
        self.request()
        self.repaint()
        self.post_message(self.Moved())

    def _scroll(self, y: int) -> None:
        self._programmatic = True
        self.scroll_to(y=y, animate=False, immediate=True, force=True)  # before the scrollbar is there, too
        self._programmatic = False

    def _resize(self, rows: int) -> None:
        """Wrapped rows take more than a line: then the last one may be scrolled to the top."""
        extra = max(0, self.size.height - 1) if self.wrap and rows else 0
        contain(self, Size(self.size.width, max(1, rows + extra)))

    def _top_for_end(self) -> int:
        """The first row shown when the last one is at the bottom."""
        height = max(1, self.size.height)
        if not self.wrap:
            return max(0, self.rows - height)
        top, used = self.rows, 0
        while top > 0 and used < height:
            found = self.text_of(top - 1)
            used += len(self._parts(found[1])) if found else 1
            if used > height and top < self.rows:
                break
            top -= 1
        return top

    # drawing --------------------------------------------------------------------------------------------------------

    def repaint(self) -> None:
        """Draw all, send what differs."""
        before = self._shown
        self._shown = self._draw()
        width = self.size.width
        for y, strip in enumerate(self._shown):
            old = before[y] if y < len(before) else None
            if old != strip:
                start, end = changed(old, strip, width)
                self.refresh(Region(start, y, end - start, 1))

    def _draw(self) -> list[Strip]:
        width, height = self.size.width, self.size.height
        strips: list[Strip] = []
        rows: list[int] = []
        if not self.rows:
            strips = [Strip(line.render(self.app.console, end="")) for line in self.hint[:height]]
        row = round(self.scroll_offset.y)
        while len(strips) < height and row < self.rows:
            drawn = self._draw_row(row)
            strips += drawn
            rows += [row] * len(drawn)
            row += 1
        self._rows_shown = rows[:height]
        blank = [Strip.blank(width)] * (height - len(strips))
        return [strip.extend_cell_length(width).crop(0, width).simplify() for strip in strips[:height]] + blank

    def _draw_row(self, row: int) -> list[Strip]:
        """The row's lines on the screen. Scrolling shows mostly what was drawn before, so it is kept."""
        found = self.text_of(row)
        if found is None:
            return [Strip.blank(self.size.width)]
        low, high = sorted((self.cursor, self.mark)) if self.mark >= 0 else (self.cursor, self.cursor)
        sign = "▌" if row == self.cursor else "│" if low < row < high or row == self.mark else " "
        how = (self.size.width, self.wrap, self.shift, self.pattern, tone("plain"), tone("accent"))
        if how != self._drawn_how or len(self._drawn) > KEPT:
            self._drawn, self._drawn_how = {}, how
        key = (found[1], sign, low <= row <= high and row >= 0)
        if key not in self._drawn:
            self._drawn[key] = self._render_row(*key)
        return self._drawn[key]

    def _render_row(self, words: str, sign: str, chosen: bool) -> list[Strip]:
        line = text((words, _mood(words)))
        if self.pattern is not None:
            try:
                for start, end in self.pattern.spans(words, GLANCE_S):
                    line.stylize(HIT, start, end)
            except TooSlow:  # the lines are drawn without
                self.pattern = None
        if chosen:
            line.stylize(Style(bold=True))
        console = self.app.console
        if not self.wrap:
            gutter = Strip(text((sign, "accent")).render(console, end=""))
            body = Strip(line.render(console, end=""))
            return [Strip.join([gutter, body.crop(self.shift) if self.shift else body])]
        ends, at = [], 0
        for part in self._parts(words):
            at += len(part)
            ends.append(at)
        parts = line.divide(ends[:-1]) if len(ends) > 1 else [line]
        return [
            Strip([*text((sign if not n else " ", "accent")).render(console, end=""), *part.render(console, end="")])
            for n, part in enumerate(parts)
        ]

    def _parts(self, words: str) -> list[str]:
        room = max(1, self.size.width - 1)
        if len(words) <= room and words.isascii():
            return [words]
        return chop_cells(words, room) or [""]

    def render_line(self, y: int) -> Strip:
        return self._shown[y] if y < len(self._shown) else Strip.blank(self.size.width)


def _mood(line: str) -> str:
    if not hinted(line):
        return "plain"
    if ERROR.search(line):
        return "bad"
    return "warn" if WARN.search(line) else "plain"
