"""The frame around the panes: title line, tab bar, footer. Each is one line that repaints only when it changes."""

from __future__ import annotations

from rich.style import Style
from rich.text import Text
from textual import events
from textual.geometry import Size
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

from tui import actions, state
from tui.figures import clock
from tui.widgets.lines import clean, text
from tui.widgets.tones import tone

_UNDERLINE = Style(underline=True)


class OneLine(Widget, can_focus=False):
    """A single drawn line; `spots` are the clickable parts as (start, end, identity of an action)."""

    DEFAULT_CSS = "OneLine { height: 1; width: 1fr; }"

    class Pressed(Message):
        def __init__(self, identity: str) -> None:
            super().__init__()
            self.identity = identity

    def __init__(self, id: str | None = None) -> None:
        super().__init__(id=id)
        self.line = Text()
        self.spots: list[tuple[int, int, str]] = []

    def set_line(self, line: Text) -> None:
        if line != self.line or line.spans != self.line.spans:
            self.line = line
            self.refresh()

    def render_line(self, y: int) -> Strip:
        width = self.size.width
        line = self.line.copy()
        line.truncate(width, overflow="ellipsis")
        return Strip(line.render(self.app.console, end="")).extend_cell_length(width).crop(0, width)

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        return 1

    def on_click(self, event: events.Click) -> None:
        for start, end, identity in self.spots:
            if start <= event.x < end:
                self.post_message(self.Pressed(identity))


class TitleLine(OneLine):
    """Which run, which profile, how it stands."""

    def show(self, view: state.RunView) -> None:
        sentence, mood = state.headline(view)
        line = text((" picollm ", "title"), (" ", "plain"), (view.name, "strong"))
        if view.profile:
            line.append(f"  {view.profile}", tone("faint"))
        if view.replay:
            line.append(f"   {view.replay}", tone("second"))
        line.append("   ", tone("plain"))
        line.append(sentence, tone(mood))
        sums = state.totals(view)
        if view.exists and sums.left and view.active is not None and view.active.state == "running":
            line.append(f"  ·  all in {clock(sums.left)}", tone("faint"))
        if view.problem:
            line.append(f"   ! {clean(view.problem)}", tone("bad"))
        self.set_line(line)


class TabBar(OneLine):
    """The tabs, numbered by their keys; short names where the screen is narrow."""

    def __init__(self, id: str | None = None) -> None:
        super().__init__(id=id)
        self.current = "stage"

    def show(self, current: str) -> None:
        self.current = current
        width = self.size.width
        room = width - 1 - sum(len(tab.title) + 3 for tab in actions.TABS)
        full = room >= 0
        gap = "  " if room >= len(actions.TABS) else " "
        line, self.spots = text((" ", "plain")), []
        for number, tab in enumerate(actions.TABS):
            start = line.cell_len
            chosen = tab.name == current
            line.append(f"{number}", tone("accent" if chosen else "faint"))
            name = tab.title if full else tab.short
            line.append(f" {name}" if full else name, tone("strong") + _UNDERLINE if chosen else tone("faint"))
            self.spots.append((start, line.cell_len, f"show_tab.{tab.name}"))
            line.append(gap)
        self.set_line(line)

    def on_resize(self) -> None:
        self.show(self.current)


class Footer(OneLine):
    """At most eight keys that make sense here and now."""

    def show(self, rows: list[actions.Action]) -> None:
        width = self.size.width or 80
        line, spots = self._lay(rows, "  ")
        while line.cell_len > width and len(rows) > 1:  # narrower gaps, then without the last but Help
            line, spots = self._lay(rows, " ")
            rows = [*rows[:-2], rows[-1]]
        self.spots = spots
        self.set_line(line)

    def _lay(self, rows: list[actions.Action], gap: str) -> tuple[Text, list[tuple[int, int, str]]]:
        line, spots = text((" ", "plain")), []
        for row in rows:
            start = line.cell_len
            line.append(row.first, tone("accent"))
            line.append(f" {row.short}{gap}", tone("faint"))
            spots.append((start, line.cell_len, row.identity))
        line.rstrip()
        return line, spots
