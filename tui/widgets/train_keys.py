"""What the keys of the Train pane do: each `do_<name>` answers one row of `actions/train.py`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from textual.events import Click

from picollm.run.folder import Run
from tui import state
from tui.axis import Range
from tui.search import query
from tui.widgets.chart import LABELS

if TYPE_CHECKING:
    from textual.widget import Widget

    from tui.widgets.chart import Picture, Trace, View
    from tui.widgets.chart_list import Chart
    from tui.widgets.looks import Look

    class _Pane(Widget):
        """What the pane has that its keys use."""

        look: Look
        stage: str
        charts: list[Chart]
        alone: bool
        detail: state.Detail | None
        _pictures: dict[str, tuple[object, Picture]]

        def redraw(self) -> None: ...
        def choose_charts(self) -> None: ...
        def newest(self) -> float: ...
        def x_range(self) -> Range: ...
        def traces(self, series: str) -> list[Trace]: ...
        def view_of(self, one: Chart, width: int, height: int) -> View: ...
        def _grid(self) -> tuple[int, int, int]: ...
        def _arrange(self) -> None: ...
        def _shown(self) -> list[Chart]: ...

    from tui.app import PicollmApp
else:
    _Pane = object

MOST_OVER = 4
GAP = 2
"""Cells between charts."""
ZOOM = 2.0
PAN = 0.25


def wrong_pattern(text: str) -> str:
    """Why a text is no regular expression; "" when it is one."""
    looked_for = query(text)
    return f"not a regular expression: {looked_for.doubt}" if looked_for and looked_for.doubt else ""


class TrainKeys(_Pane):
    """`_without_tokens`: the stage that was said to know no tokens."""

    app: PicollmApp
    _without_tokens = ""

    def _ready(self) -> bool:
        """Whether there is anything for a key to change; whoever presses one wants the focus to stay where it is."""
        ready = bool(self.charts) and self.detail is not None
        self.look.chosen = self.look.chosen or ready
        return ready

    def on_click(self, event: Click) -> None:
        """A click chooses the chart and puts the crosshair there; two show it alone, or all again."""
        at = event.get_content_offset(self)
        columns, width, height = self._grid()
        shown = self._shown()
        if at is None or not self._ready():
            return
        column, line = min(columns - 1, at.x // (width + GAP)), at.y + self.scroll_offset.y - 1
        index = line // height * columns + column
        if line < 0 or index >= len(shown):
            return
        one = shown[index]
        self.look.focused = one.series
        if event.chain > 1:
            self.do_full_screen()
            return
        cells = self.view_of(one, width, height).columns
        cell = at.x - column * (width + GAP) - LABELS
        if 0 <= cell < cells:
            self.look.cross = min(self.newest(), self.x_range().at(cell / max(1, cells - 1)))
        self._arrange()

    # which chart ----------------------------------------------------------------------------------------------------

    def _focus(self, by: int) -> None:
        if not self._ready():
            return
        names = [one.series for one in self.charts]
        index = (names.index(self.look.focused) + by) % len(names)
        self.look.focused = names[index]
        if self.alone:
            self.redraw()
            return
        columns, _, height = self._grid()
        top, bottom = 1 + index // columns * height, 1 + (index // columns + 1) * height
        if top < self.scroll_offset.y + 1 or bottom > self.scroll_offset.y + self.size.height:
            self.scroll_to(y=0 if index < columns else max(0, bottom - self.size.height), animate=False)
        self._arrange()

    def do_next_chart(self) -> None:
        self._focus(1)

    def do_previous_chart(self) -> None:
        self._focus(-1)

    def do_full_screen(self) -> None:
        if self._ready():
            self._set_alone(not self.alone)

    def _set_alone(self, alone: bool) -> None:
        if alone == self.alone:
            return
        self.alone = alone
        self.app.main.rail.display = not alone
        self.scroll_home(animate=False)
        self._pictures.clear()
        self.call_after_refresh(self.redraw)

    def on_show(self) -> None:
        self.app.main.rail.display = not self.alone

    def cancel(self) -> bool:
        """Escape: one thing at a time, the last that came over the charts first; False when nothing is left."""
        if self.look.cross is not None:
            self.look.cross = None
            self._arrange()
        elif self.alone:
            self._set_alone(False)
        elif self.look.window is not None or self.look.ys:
            self.look.window = None
            self.look.ys.clear()
            self.redraw()
        elif self.look.filter:
            self._take_filter("")
        else:
            return False
        return True

    # X --------------------------------------------------------------------------------------------------------------

    def _zoom(self, factor: float) -> None:
        """Around the crosshair, else the newest step where it is in sight, else the middle."""
        if not self._ready():
            return
        x = self.x_range()
        around = x.share(self.look.cross if self.look.cross is not None else self.newest())
        zoomed = x.zoomed(factor, around if 0 <= around <= 1 else 0.5)
        self.look.window = None
        whole = self.x_range()
        if zoomed.low > whole.low or zoomed.high < whole.high:
            self.look.window = Range(max(zoomed.low, whole.low), min(zoomed.high, whole.high))
        self.redraw()

    def do_zoom_in(self) -> None:
        self._zoom(ZOOM)

    def do_zoom_out(self) -> None:
        self._zoom(1 / ZOOM)

    def _sideways(self, direction: int) -> None:
        """The crosshair by a cell where there is one, else the window by a quarter."""
        if not self._ready():
            return
        x, (_, width, height) = self.x_range(), self._grid()
        if self.look.cross is not None:
            columns = self.view_of(self.charts[0], width, height).columns
            self.look.move_cross(direction, x, columns, self.newest())
            if self.x_range() == x:
                self._arrange()
                return
        elif self.look.window is None:
            self.app.notify("this is all of it: zoom in first (+), or show the crosshair (c)", timeout=3)
            return
        else:
            self.look.window = self.look.moved(x, PAN * direction, self.newest())
        self.redraw()

    def do_left(self) -> None:
        self._sideways(-1)

    def do_right(self) -> None:
        self._sideways(1)

    def do_crosshair(self) -> None:
        if self._ready():
            look = self.look
            look.cross = None if look.cross is not None else min(self.newest(), self.x_range().high)
            self._arrange()

    def do_unit(self) -> None:
        """Steps, tokens, time, FLOPs: the next one that this stage can tell; window and crosshair stay."""
        if not self._ready() or self.detail is None:
            return
        ways, look = self.detail.ways, self.look
        units = ways.units()
        before, after = look.unit, units[(units.index(look.unit) + 1) % len(units)] if look.unit in units else units[0]

        def moved(x: float) -> float:
            return ways.there(after, ways.back(before, x))

        look.unit = after
        look.window = look.window and Range(moved(look.window.low), moved(look.window.high))
        look.cross = None if look.cross is None else moved(look.cross)
        if len(units) < 3 and self._without_tokens != self.stage:
            self._without_tokens = self.stage  # once is enough
            self.app.notify("tokens and FLOPs are not known here: the events tell no tokens per second", timeout=4)
        self.redraw()

    def do_whole(self) -> None:
        """Everything again; when it is shown already: the whole plan, or what there is so far."""
        look = self.look
        if look.window is None and not look.ys:
            look.whole = not look.whole
        look.window = None
        look.ys.clear()
        self.redraw()

    # Y --------------------------------------------------------------------------------------------------------------

    def _y(self) -> Range | None:
        known = self._pictures.get(self.look.focused)
        return known[1].y if self._ready() and known is not None else None

    def _set_y(self, y: Range | None) -> None:
        if y is not None:
            self.look.ys[self.look.focused] = y
            self.redraw()

    def do_taller(self) -> None:
        self._set_y((y := self._y()) and y.zoomed(ZOOM, self._height_of_line(y)))

    def do_flatter(self) -> None:
        self._set_y((y := self._y()) and y.zoomed(1 / ZOOM, self._height_of_line(y)))

    def _height_of_line(self, y: Range) -> float:
        """Where the curve is at the crosshair, or at its end: what zooming goes towards."""
        traces = self.traces(self.look.focused)
        if not traces:
            return 0.5
        trace = traces[0]
        at = trace.ways.back(self.look.unit, self.look.cross) if self.look.cross is not None else trace.curve.span[1]
        found = trace.curve.near(at)
        share = y.share(found[1]) if found else 0.5
        return share if 0 <= share <= 1 else 0.5

    def do_up(self) -> None:
        self._set_y((y := self._y()) and y.moved(PAN))

    def do_down(self) -> None:
        self._set_y((y := self._y()) and y.moved(-PAN))

    def do_log(self) -> None:
        if self._ready():
            self.look.logs ^= {self.look.focused}
            self.look.ys.pop(self.look.focused, None)
            self.redraw()

    # lines ----------------------------------------------------------------------------------------------------------

    def do_smoother(self) -> None:
        self.look.smoother(1)
        self.redraw()

    def do_rougher(self) -> None:
        self.look.smoother(-1)
        self.redraw()

    def do_filter(self) -> None:
        from tui.screens.line import LineScreen

        hint = "Charts whose title or metric matches, as a regular expression: loss|lr"
        self.app.push_screen(LineScreen("Filter charts", hint, self.look.filter, wrong_pattern), self._take_filter)

    def _take_filter(self, text: str | None) -> None:
        if text is not None:
            self.look.filter = text.strip()
            self.choose_charts()
            self.redraw()

    def do_overlay(self) -> None:
        """A list of the other runs, read in a thread; choosing one lays it over, or takes it away."""
        if self.detail is not None:
            self.app.work(self._find_runs)

    def _find_runs(self) -> str | None:
        mine = Path(self.app.main.view.folder)
        over = [name for name, _, _ in self.detail.others] if self.detail else []
        runs = [run for run in Run.all() if run.dir.resolve() != mine.resolve() and run.attempts(self.stage)]
        rows = [(name, name, "on the charts: choose it to take it away") for name in over]
        rows += [(run.name, run.name, "lay it over") for run in runs if run.name not in over]
        if not rows:
            return "no other run has trained this stage"
        self.app.call_from_thread(self._offer_runs, rows)
        return None

    def _offer_runs(self, rows: list[tuple[str, str, str]]) -> None:
        from tui.screens.ask import PickScreen

        self.app.push_screen(PickScreen("Runs to lay over the charts", rows), self._lay_over)

    def _lay_over(self, name: str | None) -> None:
        if name is None or self.detail is None:
            return
        over = [known for known, _, _ in self.detail.others]
        over = [known for known in over if known != name] if name in over else [*over, name]
        if len(over) > MOST_OVER:
            self.app.complain(f"{MOST_OVER} runs are over the charts already; take one away first")
            return
        self.app.reader.lay_over(tuple(over))

    # exports --------------------------------------------------------------------------------------------------------

    def do_export_data(self) -> None:
        self._export("csv")

    def do_export_picture(self) -> None:
        self._export("svg")

    def _export(self, kind: str) -> None:
        """All charts of the list as data; those on the screen as a picture (the focused one alone where it is)."""
        if not self._ready() or self.detail is None:
            self.app.complain("there is nothing to export yet")
            return
        from tui import chart_export

        detail, x = self.detail, self.x_range()
        charts = [one for one in self.charts if not self.alone or one.series == self.look.focused]
        found: list[Any] = [
            (one, self.traces(one.series), self.view_of(one, 80, 12), self._pictures[one.series][1].y
             if one.series in self._pictures and one.series in self.look.ys else None)
            for one in charts
        ]  # fmt: skip
        folder = Path(self.app.main.view.folder) / "exports"
        title = f"{self.app.main.view.name}: {self.stage}, by {self.look.unit}"
        others = [name for name, _, _ in detail.others]

        def job() -> str:
            Run(folder.parent).require()
            made = (chart_export.csv(folder, self.stage, detail, [one.series for one in charts]) if kind == "csv"
                    else chart_export.svg(folder, self.stage, title, found, x, others))  # fmt: skip
            return f"written: {made}"

        self.app.work(job)
