"""The one screen: title, rail, tabs, footer. Panes are built when first looked at, and updated only while visible."""

from __future__ import annotations

import asyncio
import inspect
from typing import TYPE_CHECKING, Any

from textual.app import ComposeResult
from textual.containers import Container, Horizontal
from textual.screen import Screen
from textual.widget import Widget
from textual.widgets import Input, TextArea

from picollm.run import pipeline
from tui import actions, state
from tui.guard import Guarded
from tui.screens.steady import Steady
from tui.widgets.frame import Footer, TabBar, TitleLine
from tui.widgets.lines import LinesView
from tui.widgets.rail import Rail
from tui.widgets.stage import StagePane

if TYPE_CHECKING:
    from tui.app import PicollmApp
    from tui.widgets.runs import RunsPane


TINY = 70


class MainScreen(Guarded, Steady, Screen[None]):
    """Holds the newest view, detail, readings and report; hands them to the pane that is visible."""

    app: PicollmApp

    def __init__(self, name_of_run: str) -> None:
        super().__init__()
        self.view = state.empty(name_of_run, known=False)
        self.detail: state.Detail | None = None
        self.checks: Any = None
        self.readings: tuple[Any, ...] = ()
        self.report = ("", "")
        self.tab = "stage"
        self.title_line, self.rail = TitleLine(id="title"), Rail(id="rail")
        self.tab_bar, self.footer = TabBar(id="tabs"), Footer(id="footer")
        self.panes: dict[str, Widget] = {"stage": StagePane(id="pane-stage")}

    def compose(self) -> ComposeResult:
        yield self.title_line
        yield self.tab_bar
        with Horizontal(id="body"):
            yield self.rail
            with Container(id="panes"):
                yield self.panes["stage"]
        yield self.footer

    def on_mount(self) -> None:
        self.rail.focus()
        self.call_after_refresh(self.redraw)

    @property
    def stage(self) -> str:
        return self.rail.selected

    def on_resize(self) -> None:
        self.set_class(self.size.width < TINY, "-tiny")
        self.call_after_refresh(self.redraw)

    def redraw(self) -> None:
        """Frame and visible pane from what is known now."""
        if not self.is_mounted:
            return
        self.title_line.show(self.view)
        self.rail.show(self.view)
        self.tab_bar.show(self.tab)
        self.show_footer()
        self.call_later(self.update_pane)

    def show_footer(self) -> None:
        self.footer.show(actions.footer(self.tab, self.app.possible(), self.app.readonly))

    def _make(self, tab: str) -> Widget:
        """A pane, with its imports, when it is first needed."""
        identity = f"pane-{tab}"
        if tab == "stage":
            return StagePane(id=identity)
        if tab == "runs":
            from tui.widgets.runs import RunsPane

            return RunsPane(id=identity)
        if tab == "doctor":
            from tui.widgets.doctor import DoctorPane

            return DoctorPane(id=identity)
        if tab == "train":
            from tui.widgets.train import TrainPane

            return TrainPane(id=identity)
        if tab == "machine":
            from tui.widgets.machine import MachinePane

            return MachinePane(id=identity)
        if tab == "log":
            from tui.widgets.log import LogPane

            return LogPane(id=identity)
        if tab == "report":
            from tui.widgets.report import ReportPane

            return ReportPane(id=identity)
        if tab == "compare":
            from tui.widgets.compare import ComparePane

            return ComparePane(self.app.talker, self.app.sampling, id=identity)
        from tui.widgets.chat import ChatPane

        return ChatPane(self.app.talker, self.app.conversations_folder, self.app.sampling, id=identity)

    async def show_tab(self, tab: str) -> None:
        """Bring a pane to the front."""
        self.rail.display = tab != "runs"
        if tab == "train":
            self.rail.selected = self.with_curves(self.stage)
        before = self.panes.get(self.tab)
        self.tab = tab
        if tab not in self.panes:
            self.panes[tab] = self._made(tab)
            self.panes[tab].display = False
            await self.query_one("#panes").mount(self.panes[tab])
        pane = self.panes[tab]
        if before is not None and before is not pane:
            if self.focused is not None and before in self.focused.ancestors_with_self:
                self.rail.focus()
            before.display = False
        pane.display = True
        if "runs" in self.panes:
            self.app.watch_runs()
        self.tab_bar.show(tab)
        self.show_footer()
        self.call_after_refresh(self._fill, self.app.begin())

    async def _fill(self, done: asyncio.Event) -> None:
        """Let the pane that was just opened show what there is; only then do keys reach it."""
        try:
            await self.update_pane()
            runs = self.list_of_runs()
            if runs is not None and not runs.known:
                self.app.asked = runs.read
        finally:
            done.set()

    async def show_failure(self, tab: str, error: Exception) -> None:
        """Put the error in the place of the pane that it came from."""
        await self._replace(tab, self._failed(tab, error))

    def _made(self, tab: str) -> Widget:
        """The tab's pane, or the error that kept it from being made."""
        try:
            return self._make(tab)
        except Exception as error:
            self.app.note_failure(error)
            return self._failed(tab, error)

    def _failed(self, tab: str, error: Exception) -> Widget:
        from tui.widgets.failed import FailedPane

        title = next(row.title for row in actions.TABS if row.name == tab)
        return FailedPane(title, error, id=f"pane-{tab}")

    async def build_anew(self) -> None:
        """The open tab's pane from nothing, when it had failed."""
        if getattr(self.panes[self.tab], "failing", False):
            await self._replace(self.tab, self._made(self.tab))
            self.call_after_refresh(self.update_pane)

    async def _replace(self, tab: str, pane: Widget) -> None:
        old = self.panes[tab]
        if self.focused is not None and old in self.focused.ancestors_with_self:
            self.rail.focus()
        self.panes[tab] = pane
        pane.display = self.tab == tab
        await old.remove()
        await self.query_one("#panes").mount(pane)

    def with_curves(self, stage: str) -> str:
        """`stage`, or the training stage to show where that draws no curves."""
        if pipeline.stage(stage).trains:
            return stage
        trains = [self.view.stage(row.name) for row in pipeline.STAGES if row.trains]
        active = [status.name for status in trains if status.state in state.ACTIVE]
        begun = [status.name for status in trains if status.attempt]
        return (active or begun[-1:] or [trains[0].name])[0]

    async def update_pane(self) -> None:
        """Give the visible pane what it shows."""
        pane: Any = self.panes.get(self.tab)
        if pane is None or not pane.is_mounted:
            return
        if self.tab in ("stage", "train"):
            result = pane.update_from(self.view, self.stage, self.detail)
        elif self.tab == "doctor":
            result = pane.update_from(self.view, self.checks)
        elif self.tab == "machine":
            result = pane.update_from(self.view, self.readings)
        elif self.tab == "log":
            result = pane.open() if self.view.known else None  # before, nobody knows which stage it opens at
        elif self.tab == "report":
            result = pane.update_from(*self.report)
        else:
            result = pane.update_from(self.view)
        if inspect.isawaitable(result):
            await result

    def list_of_runs(self) -> RunsPane | None:
        """The list that the arrows move in, when it is on the screen."""
        pane: Any = self.panes.get("runs")
        return pane if self.tab == "runs" and hasattr(pane, "summaries") else None  # a failed pane has none

    def scrolling(self) -> Widget:
        """What Page Up and Page Down scroll."""
        pane = self.panes[self.tab]
        inner = {"log": "#log-lines", "report": "#report-scroll", "chat": "#chat-turns"}
        if self.tab not in inner:
            return pane
        found = list(pane.query(inner[self.tab]))
        return found[0] if found else pane

    async def forget(self, name_of_run: str) -> None:
        """Begin again with another run: every pane but the overview is built anew when it is looked at."""
        self.view, self.detail = state.empty(name_of_run, known=False), None
        self.checks, self.readings, self.report = None, (), ("", "")
        await self.show_tab("stage")
        for tab in [tab for tab in self.panes if tab not in ("stage", "runs")]:
            await self.panes.pop(tab).remove()
        self.redraw()

    def typing(self) -> bool:
        """Whether the keys go into a text box."""
        return isinstance(self.focused, Input | TextArea)

    def leave_box(self) -> bool:
        """Focus back on the rail; False when it was there."""
        if self.focused is None or self.focused is self.rail:
            return False
        if self.tab == "log" and self.panes["log"].leave_search():  # type: ignore[attr-defined]
            return True
        runs = self.list_of_runs()
        if runs is not None:
            return runs.leave_filter()
        self.rail.focus()
        return True

    @property
    def plain(self) -> str:
        """The visible pane's drawn text."""
        pane = self.panes[self.tab]
        views = [pane] if isinstance(pane, LinesView) else list(pane.query(LinesView))
        return "\n".join(view.plain for view in views if view.display)
