"""The stage rail: every stage with its state as symbol and word, time spent, time to go; totals below."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text
from textual import events
from textual.geometry import Region
from textual.message import Message
from textual.reactive import reactive
from textual.strip import Strip

from picollm.run import pipeline
from tui import state
from tui.figures import bar, clock
from tui.widgets.lines import Unmoved, text
from tui.widgets.tones import tone

if TYPE_CHECKING:
    from tui.app import PicollmApp

NARROW, TINY = 30, 23


class Rail(Unmoved, can_focus=True):
    """One line a stage; repaints only the lines that changed."""

    selected: reactive[str] = reactive(pipeline.NAMES[0], repaint=False)

    class Selected(Message):
        def __init__(self, stage: str) -> None:
            super().__init__()
            self.stage = stage

    app: PicollmApp

    def __init__(self, id: str | None = None) -> None:
        super().__init__(id=id)
        self.view = state.empty("")
        self._lines: list[Text] = []

    def show(self, view: state.RunView) -> None:
        self.view = view
        self._draw()

    def watch_selected(self) -> None:
        self._draw()
        self.post_message(self.Selected(self.selected))

    def move(self, by: int) -> None:
        """Select the stage `by` rows further; stays inside the list."""
        index = pipeline.NAMES.index(self.selected) + by
        self.selected = pipeline.NAMES[max(0, min(len(pipeline.NAMES) - 1, index))]

    def on_resize(self) -> None:
        self._draw()

    def watch_has_focus(self, has_focus: bool) -> None:
        super().watch_has_focus(has_focus)
        self._draw()

    def on_click(self, event: events.Click) -> None:
        y = event.get_content_offset_capture(self).y
        if 0 <= y < len(pipeline.NAMES):
            self.app.action_select_stage(pipeline.NAMES[y])

    def _draw(self) -> None:
        if not self.is_attached or not self.size.width:
            return
        narrow = self.size.width < NARROW
        lines = [self._row(status, narrow) for status in self.view.stages]
        sums = self._sums(narrow)
        if len(lines) + len(sums) > self.size.height:  # the air first
            sums = [line for line in sums if line.plain]
        lines += sums
        for y in range(max(len(lines), len(self._lines))):
            before = self._lines[y] if y < len(self._lines) else None
            after = lines[y] if y < len(lines) else None
            if before is None or after is None or before != after or before.spans != after.spans:
                self.refresh(Region(0, y, self.size.width, 1))
        self._lines = lines

    def _row(self, status: state.StageStatus, narrow: bool) -> Text:
        look = self.view.look(status.name)
        title = pipeline.stage(status.name).title
        chosen = status.name == self.selected
        line = text(("▌" if chosen else " ", "accent"), (look.symbol + " ", look.tone))
        quiet = status.state in ("waiting", "skipped")
        done = state.share(status)
        going = f"{done:.0%}" if status.state == "running" and done is not None else ""
        tiny = self.size.width < TINY
        name = title[: self.size.width - 8].ljust(self.size.width - 8) if tiny else title.ljust(15)
        line.append(name, tone("faint" if quiet and not chosen else "strong" if chosen else "plain"))
        if tiny:
            line.append(going.rjust(5), tone(look.tone))
        elif narrow:
            line.append((going or look.short).rjust(5), tone(look.tone))
        else:
            line.append((state.progress_word(status) if going else look.word).ljust(9), tone(look.tone))
            spent = clock(status.seconds) if status.attempt else ""
            line.append(spent.rjust(6), tone("plain"))
            ahead = "" if status.state in ("done", "skipped", "stale") else f"~{clock(status.eta)}"
            line.append(("" if ahead == "~–" else ahead).rjust(7), tone("faint"))
        line.append(" " * max(0, self.size.width - line.cell_len))
        if chosen:
            line.stylize(tone("selected" if self.has_focus else "panel"))
        return line

    def _sums(self, narrow: bool) -> list[Text]:
        sums = state.totals(self.view)
        width = self.size.width - 2
        filled = bar(sums.done / max(1, sums.stages), width).rstrip()
        lines = [Text(""), text(" ", (filled, "accent"), ("─" * (width - len(filled)), "line"))]
        done = f" {sums.done} of {sums.stages} done"
        if narrow:
            lines += [text((done, "plain")), text((f" {clock(sums.elapsed)} spent", "faint"))]
            if sums.left:
                lines.append(text((f" ~{clock(sums.left)} to go", "faint")))
        else:
            lines.append(text((done, "plain"), (f"  {clock(sums.elapsed)} spent", "faint"),
                              (f"  ~{clock(sums.left)} to go" if sums.left else "", "faint")))  # fmt: skip
        lines.append(Text(""))
        lines.append(text((" conductor at work" if self.view.conductor else " conductor at rest", "faint")))
        return lines

    def render_line(self, y: int) -> Strip:
        width = self.size.width
        if y < len(self._lines):
            return Strip(self._lines[y].render(self.app.console, end="")).extend_cell_length(width).crop(0, width)
        return Strip.blank(width)

    @property
    def plain(self) -> str:
        return "\n".join(line.plain for line in self._lines)
