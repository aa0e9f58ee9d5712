"""Every run in the runs folder: how each stands, sorted and filtered, with the selected one in words below."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from rich.console import RenderableType
from rich.text import Text
from textual import events, on
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.message import Message
from textual.strip import Strip
from textual.widgets import Input

from picollm.run.errors import UserError
from picollm.run.overview import Overview, Summary
from tui import actions, shelf_actions, state, table
from tui.widgets import tones
from tui.widgets.frame import OneLine
from tui.widgets.lines import LinesView, empty_state

if TYPE_CHECKING:
    from tui.app import PicollmApp

AGES_S = 20.0
"""How often ages are looked at again."""


class RunsTable(LinesView, inherit_bindings=False):
    """One line a run; one is selected."""

    class Clicked(Message):
        def __init__(self, line: int, twice: bool) -> None:
            super().__init__()
            self.line, self.twice = line, twice

    def __init__(self, id: str) -> None:
        super().__init__(id=id)
        self._drawn: dict[str, tuple[object, Strip]] = {}

    def draw(self, found: Sequence[Summary], columns: dict[str, int], now: float, chosen: str, opened: str) -> None:
        """Lines that look as before are taken from before: a key press draws two of hundreds."""
        width, before = self.scrollable_content_region.width, self._drawn
        shape = (width, tones.current().name, *columns.items())
        self._drawn, self._blocks = {}, ()
        for one in found:
            marks = one.dir == chosen, one.dir == opened
            key = (one, *marks, table.age(now - one.touched), shape)
            known = before.get(one.dir)
            if known is None or known[0] != key:
                line = table.line(one, columns, width, now, *marks)
                known = key, Strip(line.render(self.app.console, end="")).simplify()
            self._drawn[one.dir] = known
        self.put([strip for _, strip in self._drawn.values()])

    def lay_out(self) -> None:
        if self._blocks:
            super().lay_out()

    def on_click(self, event: events.Click) -> None:
        self.post_message(self.Clicked(event.y + self.scroll_offset.y, event.chain > 1))


class RunsPane(Vertical):
    """The tab Runs. Its summaries come from the reader (`take`); what it does to runs is in `shelf_actions`."""

    app: PicollmApp

    def __init__(self, id: str | None = None) -> None:
        super().__init__(id=id)
        self.summaries: tuple[Summary, ...] = ()
        self.read = asyncio.Event()  # once the reader has seen what runs there are
        self.order, self.words = "activity", ""
        self.archived = False
        self.rows: list[Summary] = []
        self.selected = ""
        self._open, self._at = "", 0
        self._overview = Overview()

    def compose(self) -> ComposeResult:
        yield OneLine(id="runs-counts")
        yield OneLine(id="runs-head")
        yield RunsTable(id="runs-lines")
        yield Input(placeholder="words of name, state, stage or note", id="runs-filter")
        yield LinesView(id="runs-detail")

    def on_mount(self) -> None:
        self.query_one("#runs-filter").display = False
        self.query_one("#runs-detail", LinesView).can_focus = False
        self.set_interval(AGES_S, self.draw)

    def on_resize(self) -> None:
        self.draw()

    def on_show(self) -> None:
        self.call_after_refresh(self.query_one(RunsTable).focus)

    def update_from(self, view: state.RunView) -> None:
        self._open = view.folder
        self.draw()

    def overview(self) -> Overview:
        """What the reader remembers of the runs, for as long as this pane lives."""
        self._overview.archived = self.archived
        return self._overview

    @property
    def known(self) -> bool:
        return self.read.is_set()

    def take(self, summaries: tuple[Summary, ...]) -> None:
        """What the reader saw."""
        self.summaries = summaries
        self.read.set()
        self.draw()

    def renamed(self, one: Summary, name: str) -> None:
        """Show it under its new name, selected, before the reader comes to it."""
        folder = str(Path(one.dir).with_name(name))
        new = msgspec.structs.replace(one, name=name, dir=folder)
        self.selected = folder
        self.take(tuple(new if other.dir == one.dir else other for other in self.summaries))

    # drawing --------------------------------------------------------------------------------------------------------

    @property
    def run(self) -> Summary | None:
        """The selected run."""
        return next((one for one in self.rows if one.dir == self.selected), None)

    def draw(self) -> None:
        if not self.is_attached or not self.display:
            return
        self.rows = table.arranged(self.summaries, self.order, self.words)
        if self.run is None:
            self.selected = self._nearest()
        self._at = next((at for at, one in enumerate(self.rows) if one.dir == self.selected), 0)
        lines = self.query_one(RunsTable)
        width = lines.scrollable_content_region.width or self.size.width - 1
        columns = table.columns(width, self.rows)
        counts = table.counts(self.summaries, self.rows, self.order, self.words)
        self.query_one("#runs-counts", OneLine).set_line(counts)
        self.query_one("#runs-head", OneLine).set_line(table.head(columns, self.order) if self.rows else Text(""))
        now = time.time()
        if self.rows:
            lines.draw(self.rows, columns, now, self.selected, self._open)
        else:
            lines.show(self._empty())
        detail = self.query_one("#runs-detail", LinesView)
        detail.show(table.detail(self.run, now, self.app.readonly) if self.run else [])

    def _nearest(self) -> str:
        """What to select when the selected run is gone: itself in another place, else what stands where it stood; at
        first the open one."""
        moved = [one.dir for one in self.rows if one.name == Path(self.selected).name]
        here = [one.dir for one in self.rows if one.dir == self._open and not self.selected]
        stands = [one.dir for one in self.rows[: self._at + 1]][-1:]
        return (moved or here or stands or [""])[0]

    def _empty(self) -> list[RenderableType]:
        if not self.known:
            return empty_state("Reading the runs folder …")
        if self.words:
            key = actions.find("filter", "runs").first
            return empty_state(f"No run has “{self.words}”", f"{key} changes the words; empty, they show all runs.")
        if self.app.readonly:
            return empty_state("No run yet", "Nothing is made or launched here: the app was started to look only.")
        new, launch = actions.find("new", "runs").first, actions.find("launch").first
        form = f"{new} makes one: a form of all settings, with time, memory, disk and cost."
        if self.app.main.view.gone:
            return empty_state("No run is left", form)
        return empty_state("No run yet", form, f"{launch} makes the usual one and launches it at once.")

    # moving ---------------------------------------------------------------------------------------------------------

    def move(self, by: int) -> None:
        """Select the run `by` lines further; stays inside the list."""
        places = [one.dir for one in self.rows]
        if not places:
            return
        at = places.index(self.selected) if self.selected in places else 0
        at = max(0, min(len(places) - 1, at + by))
        self.selected = places[at]
        self.draw()
        lines = self.query_one(RunsTable)
        top, height = lines.scroll_offset.y, max(1, lines.size.height)
        if not top <= at < top + height:
            lines.scroll_to(y=at if at < top else at - height + 1, animate=False)

    def page(self) -> int:
        """Lines of a screenful."""
        return max(1, self.query_one(RunsTable).size.height - 1)

    @on(RunsTable.Clicked)
    async def _clicked(self, message: RunsTable.Clicked) -> None:
        if message.line < len(self.rows):
            self.selected = self.rows[message.line].dir
            self.draw()
            if message.twice:
                await self.do_open()

    # actions --------------------------------------------------------------------------------------------------------

    def _chosen(self) -> Summary:
        """What to do something with. Raises `UserError` where no run is selected."""
        if self.run is None:
            raise UserError("no run is selected" if self.known else "the runs are still being read; try again")
        return self.run

    async def do_open(self) -> None:
        await shelf_actions.open_run(self.app, self._chosen())

    def do_new(self) -> None:
        shelf_actions.new_run(self.app, [one.name for one in self.summaries])

    def do_duplicate(self) -> None:
        shelf_actions.duplicate(self.app, self._chosen(), [one.name for one in self.summaries])

    def do_note(self) -> None:
        shelf_actions.note(self.app, self._chosen())

    def do_rename(self) -> None:
        shelf_actions.rename(self.app, self._chosen())

    def do_archive(self) -> None:
        shelf_actions.archive(self.app, self._chosen())

    def do_delete(self) -> None:
        shelf_actions.delete(self.app, self._chosen())

    def do_filter(self) -> None:
        box = self.query_one("#runs-filter", Input)
        box.display = True
        box.focus()

    def do_sort(self) -> None:
        self.order = table.ORDERS[(table.ORDERS.index(self.order) + 1) % len(table.ORDERS)]
        self.draw()

    def do_show_archived(self) -> None:
        self.archived = not self.archived
        self.app.watch_runs()

    @on(Input.Changed, "#runs-filter")
    def _words_changed(self, event: Input.Changed) -> None:
        self.words = event.value.strip()
        self.draw()

    @on(Input.Submitted, "#runs-filter")
    def _words_taken(self) -> None:
        self.query_one("#runs-filter", Input).display = bool(self.words)
        self.query_one(RunsTable).focus()

    def leave_filter(self) -> bool:
        """Show all runs again; False when all are shown."""
        box = self.query_one("#runs-filter", Input)
        if not box.display:
            return False
        box.value, box.display = "", False
        self.query_one(RunsTable).focus()
        return True
