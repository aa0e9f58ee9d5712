"""The console log of the selected stage's newest attempt: opens at the end, follows it, searches backwards."""

from __future__ import annotations

from pathlib import Path

from rich.style import Style
from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.geometry import Size
from textual.scroll_view import ScrollView
from textual.strip import Strip
from textual.widgets import Input

from tui import actions
from tui.tail import LogReader, LogWindow
from tui.widgets.frame import OneLine
from tui.widgets.lines import text
from tui.widgets.tones import tone

MARGIN = 60


class LogLines(ScrollView, can_focus=True):
    """A window on the log; asks for lines it does not have."""

    DEFAULT_CSS = "LogLines { height: 1fr; overflow-x: hidden; scrollbar-size-vertical: 1; scrollbar-gutter: stable; }"

    def __init__(self) -> None:
        super().__init__(id="log-lines")
        self.first = 0
        self.total = 0
        self.lines: list[str] = []
        self.following = True
        self.marked = -1
        self.reader: LogReader | None = None
        self._programmatic = False

    def take(self, window: LogWindow) -> None:
        """New lines from the reader."""
        changed = (window.first, window.lines) != (self.first, self.lines)
        self.first, self.lines, self.total = window.first, window.lines, window.total
        size = Size(self.size.width, max(1, self.total))
        if size != self.virtual_size:
            self.virtual_size = size
        if self.following:
            self.call_after_refresh(self._to_end)
        if changed:
            self.refresh()

    def _to_end(self) -> None:
        if self.following:
            self._programmatic = True
            self.scroll_to(y=max(0, self.total - self.size.height), animate=False, immediate=True)
            self._programmatic = False

    def request(self) -> None:
        """Ask for what is visible and a margin around it."""
        if self.reader is not None:
            height = max(1, self.size.height)
            self.reader.want(max(0, self.scroll_offset.y - MARGIN), height + 2 * MARGIN, self.following)

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        super().watch_scroll_y(old_value, new_value)
        at_end = new_value >= self.total - self.size.height - 0.5
        if not self._programmatic and self.following and not at_end and new_value < old_value:
            self.following = False
        elif at_end and not self.following and new_value > old_value:
            self.following = True
        self.request()

    def on_resize(self) -> None:
        self.request()

    def jump(self, line: int) -> None:
        """Bring a found line into the middle of the screen."""
        self.following, self.marked = False, line
        self.scroll_to(y=max(0, line - self.size.height // 2), animate=False, immediate=True)
        self.request()
        self.refresh()

    def render_line(self, y: int) -> Strip:
        width = self.size.width
        number = y + self.scroll_offset.y
        index = number - self.first
        if not self.lines and y == 1:
            hint = text(("  What it prints while it runs appears here.", "faint"))
            return Strip(hint.render(self.app.console, end="")).extend_cell_length(width).crop(0, width)
        if not 0 <= index < len(self.lines):
            return Strip.blank(width)
        line = Text(self.lines[index], style=tone(_mood(self.lines[index])), no_wrap=True, end="")
        if number == self.marked:
            line.stylize(Style(reverse=True))
        return Strip(line.render(self.app.console, end="")).extend_cell_length(width).crop(0, width)


def _mood(line: str) -> str:
    start = line[:40].lower()
    if start.startswith(("error", "traceback", "fatal")) or "error:" in start:
        return "bad"
    return "warn" if start.startswith("warning") else "plain"


class LogPane(Vertical):
    """Title, lines, and a search box that is only there while it is used."""

    DEFAULT_CSS = """
    LogPane #log-title { margin-bottom: 1; }
    LogPane #log-search { display: none; height: 1; border: none; padding: 0; background: $panel; }
    LogPane.searching #log-search { display: block; }
    """

    def __init__(self, id: str | None = None) -> None:
        super().__init__(id=id)
        self._path = ""
        self._note = ""

    def compose(self) -> ComposeResult:
        yield OneLine(id="log-title")
        yield LogLines()
        yield Input(placeholder="search backwards; Enter again for the next, Esc leaves", id="log-search")

    def on_mount(self) -> None:
        self.lines = self.query_one(LogLines)
        self.reader = LogReader(self.post_message)
        self.lines.reader = self.reader
        if self._path:
            self.reader.open(self._path)
        self.reader.start()
        self._title()

    def on_unmount(self) -> None:
        self.reader.close()

    def open(self, path: str, stage_title: str) -> None:
        """Show this console log, or say that there is none."""
        self._stage_title = stage_title
        if path != self._path:
            self._path = path
            if self.is_mounted:
                self.lines.lines, self.lines.total, self.lines.marked = [], 0, -1
                self.lines.following = True
                self.lines.refresh()
                self.reader.open(path)
                self.lines.request()
        if self.is_mounted:
            self._title()

    @on(LogWindow)
    def _window(self, message: LogWindow) -> None:
        message.stop()
        if message.path and message.path != self._path:
            return
        self._note = message.note
        if message.found >= 0:
            self.lines.jump(message.found)
        elif message.lines or not message.note:
            self.lines.take(message)
        self._title()

    def _title(self) -> None:
        if not self._path:
            line = text((f"{getattr(self, '_stage_title', 'This stage')} has printed nothing yet", "faint"))
        else:
            line = text((Path(self._path).name, "strong"), (f"  {self.lines.total:,} lines", "faint"))
            key = actions.find("follow").first
            mode = "following" if self.lines.following else f"not following ({key} follows)"
            line.append_text(text((f"  {mode}", "accent" if self.lines.following else "warn")))
            if self._note:
                line.append_text(text((f"  {self._note}", "warn")))
        self.query_one("#log-title", OneLine).set_line(line)

    def do_follow(self) -> None:
        self.lines.following = not self.lines.following
        self.lines.request()
        if self.lines.following:
            self.lines.scroll_end(animate=False)
        self._title()

    def do_search(self) -> None:
        """Open the search box."""
        self.add_class("searching")
        self.query_one("#log-search", Input).focus()

    @on(Input.Submitted, "#log-search")
    def _search(self, event: Input.Submitted) -> None:
        event.stop()
        if event.value:
            before = self.lines.marked if self.lines.marked >= 0 else self.lines.total
            self.reader.find(event.value, before)

    @on(Input.Changed, "#log-search")
    def _fresh_search(self, event: Input.Changed) -> None:
        event.stop()
        self.lines.marked = -1

    def leave_search(self) -> bool:
        """Close the search box; False when it was not open."""
        if not self.has_class("searching"):
            return False
        self.remove_class("searching")
        self.lines.focus()
        return True
