"""The curves of the selected training stage: a grid of charts that share one X axis.

Drawing is the only costly thing here, and happens where it is needed: charts on the screen, whose data or view changed,
the focused one first; after new data each at most every `REDRAW_S`, one at a time. `looks.Look` holds what the keys
change; `chart` draws.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from operator import is_
from typing import Any

from rich.console import RenderableType
from textual.events import Resize
from textual.strip import Strip
from textual.timer import Timer

from picollm.run import pipeline
from tui import actions, state
from tui.axis import Range, fitting
from tui.widgets import chart, tones
from tui.widgets.chart import LETTERS, Mark, Picture, Trace, View, Words
from tui.widgets.chart_list import Chart, choose
from tui.widgets.lines import LinesView, empty_state, text
from tui.widgets.looks import Look
from tui.widgets.train_keys import GAP, TrainKeys

REDRAW_S = 2.0
STAGGER_S = 0.03
PATIENCE_S = 1.5  # with a long run that is being read, before what there is so far is drawn
WIDE = 70
NOTED = "loss"  # the series whose chart bears the words of the notes
MOST_NOTES = 3  # in one chart alone
TWO_NOTES = 10  # cells that a chart of the grid is high for two of them
WORTH_SAYING = (*state.BROKEN, "stale")


class TrainPane(TrainKeys, LinesView, inherit_bindings=False):
    """A grid of charts, or one alone over the whole screen. Arrow keys are the registry's, not the scroll view's, when
    it has the focus. `_hurry`: somebody waits for the focused chart, so it is
    shown before the others are drawn."""

    def __init__(self, id: str | None = None) -> None:
        super().__init__(id=id)
        self.look = Look()
        self.stage = ""
        self.charts: list[Chart] = []
        self.alone = False
        self.detail: state.Detail | None = None
        self._status: Any = None
        self._view: state.RunView | None = None
        self._pictures: dict[str, tuple[object, Picture]] = {}
        self._strips_of: dict[str, tuple[object, list[Strip]]] = {}
        self._rows: dict[int, list[tuple[tuple[Strip, ...], Strip]]] = {}
        self._drawn_at: dict[str, float] = {}
        self._names: tuple[list[str], str] = ([], "")
        self._reading_since = 0.0
        self._hurry = False
        self._x: Range | None = None
        self._timer: Timer | None = None

    # what there is --------------------------------------------------------------------------------------------------

    def update_from(self, view: state.RunView, name: str, detail: state.Detail | None) -> None:
        if name != self.stage:
            self.stage, self._x = name, None
            self.look.forget()
            self._pictures.clear()
            self._drawn_at.clear()
            self.scroll_home(animate=False)
        self._view, self._status = view, view.stage(name)
        if self.detail is not None and self.detail.reading and detail is not None and not detail.reading:
            self._drawn_at.clear()  # all of it is here now: no need to wait until the next picture is due
        self.detail = detail if detail is not None and detail.stage == name else None
        if self.detail is None or not self.detail.reading:
            self._reading_since = 0.0
        elif not self._reading_since:
            self._reading_since = time.monotonic()
        self.choose_charts()
        if not self.charts:
            self.show(self._nothing())
            return
        if self.look.window is not None:
            self.look.follow(self.newest())
        self._tick()

    def choose_charts(self) -> None:
        curves = self.detail.curves if self.detail else {}
        names = [name for name, curve in curves.items() if curve.drawn or curve.lost]
        if (names, self.look.filter) != self._names:
            self._names = names, self.look.filter
            self.charts = choose(names, self.look.pattern())
        kept = (self.look.chosen or self.alone) and self.look.focused in {one.series for one in self.charts}
        if self.charts and not kept:
            self.look.focused = self.charts[0].series
        if not self.charts:
            self._set_alone(False)

    def _nothing(self) -> list[RenderableType]:
        title, readonly = pipeline.stage(self.stage).title, self.app.readonly
        if self.look.filter and self.detail and self.detail.curves:
            key = actions.find("filter", "train").first
            return empty_state(f"No chart matches {self.look.filter}", f"{key} changes the filter; empty shows all.")
        if not pipeline.stage(self.stage).trains:
            best = ", ".join(row.title for row in pipeline.STAGES if row.trains)
            down = actions.find("stage_down").first
            return empty_state(f"{title} draws no curves", f"These stages train: {best}.", f"Select one with {down}.")
        if self._status.state in ("running", "stopping", "stalled"):
            phase = self._status.phase
            return empty_state(f"{title} has begun", f"It is busy with: {phase}." if phase else "No reading yet.")
        if self._view is not None and self.stage in (self._view.queue or ()):
            return empty_state(f"{title} is queued", "Its curves appear here after its first steps.")
        if self._status.state in ("failed", "crashed"):
            words = [self._status.reason] if self._status.reason else []
            log = f"the log is in tab {_tab('log')}."
            words.append(log.capitalize() if readonly else f"{actions.find('resume').first} tries again; {log}")
            return empty_state(f"{title} {self._status.state} before its first step", *words)
        how = [] if readonly else [f"{actions.find('launch').first} launches every stage that is not done."]
        return empty_state(f"{title} has not trained yet", "Its curves appear here after its first steps.", *how)

    def traces(self, series: str) -> list[Trace]:
        """The run's curve, and those of the runs laid over it."""
        detail = self.detail
        if detail is None or series not in detail.curves:
            return []
        over = [Trace(curves[series], ways, LETTERS[number % len(LETTERS)])
                for number, (_, ways, curves) in enumerate(detail.others) if series in curves]  # fmt: skip
        return [Trace(detail.curves[series], detail.ways), *over]

    def newest(self) -> float:
        """The last step read, as a place on the X axis."""
        assert self.detail is not None
        last = max((curve.last_step for curve in self.detail.curves.values() if curve.count), default=0.0)
        return self.detail.ways.there(self.look.unit, last)

    # where things are -----------------------------------------------------------------------------------------------

    def x_range(self) -> Range:
        """What the X axis spans: what was zoomed to, else the plan to its end, else what there is so far."""
        if self.look.window is not None:
            return self.look.window
        detail = self.detail
        assert detail is not None
        unit, ways = self.look.unit, detail.ways
        ends = [self.newest()]
        for _, other, curves in detail.others:
            ends += [other.there(unit, curve.last_step) for curve in curves.values() if curve.count]
        horizon = self._status.steps if self.look.whole else 0
        ends.append(ways.there(unit, horizon))
        end = max(ends)
        if unit == "step" and horizon and end <= horizon:
            self._x = Range(0.0, float(horizon))
        else:
            self._x = fitting(0.0, end, before=self._x)
        return self._x

    def _shown(self) -> list[Chart]:
        return [one for one in self.charts if one.series == self.look.focused] if self.alone else self.charts

    def _grid(self) -> tuple[int, int, int]:
        """Columns of charts, and the width and height of one, its title line included."""
        region = self.scrollable_content_region
        columns = 1 if self.alone or region.width < WIDE or len(self.charts) == 1 else 3 if region.width >= 170 else 2
        width = (region.width - GAP * (columns - 1)) // columns
        space = region.height - 1
        if self.alone:
            return columns, width, max(6, space)
        down = -(-len(self.charts) // columns)
        return columns, width, max(8, min(18, space // max(1, min(down, 4 if space >= 36 else 3))))

    def _numbered(self) -> list[tuple[int, str, Any]]:
        """The notes, oldest first: number, the sign of it on the axis, note."""
        notes = self.detail.notes if self.detail else ()
        return [(number, str(number + 1) if number < 9 else "+", note) for number, note in enumerate(notes)]

    def _reach(self, note: Any) -> float:
        """How high the curve is where a note belongs: of a spike and what came of it, the spike is the higher."""
        curve = self.detail.curves.get(NOTED) if self.detail else None
        found = curve.near(note.step) if curve else None
        return found[1] if found else 0.0

    def _notes(self, one: Chart, height: int) -> list[tuple[str, str]]:
        """The words below a chart: of the highest note, and of the newest others while there is room."""
        numbered = self._numbered()
        if one.series != NOTED or not numbered:
            return []
        room = MOST_NOTES if self.alone else 2 if height >= TWO_NOTES else 1
        highest = max(numbered, key=lambda row: self._reach(row[2]))
        newest = [row for row in numbered if row is not highest][::-1][: room - 1]
        return [(f" {sign} step {note.step:,}: {note.text}", "second") for _, sign, note in sorted([highest, *newest])]

    def view_of(self, one: Chart, width: int, height: int) -> View:
        strength = self.look.strength if one.smooth else 0.0
        return View(width, height - len(self._notes(one, height)), self.x_range(), self.look.unit, strength,
                    one.series in self.look.logs, self.look.ys.get(one.series))  # fmt: skip

    # drawing --------------------------------------------------------------------------------------------------------

    def redraw(self) -> None:
        """Everything that a key changed, now: the focused chart first, the others right behind it."""
        self._drawn_at.clear()
        self._hurry = True
        if self.charts:
            self._tick()
        else:
            self.show(self._nothing())

    def on_resize(self, event: Resize) -> None:
        if self.charts:
            self.redraw()
        else:
            self.lay_out()

    def lay_out(self) -> None:
        """The base asks for this when the width or the theme changed."""
        if self.charts:
            self._arrange()
        else:
            super().lay_out()

    def watch_scroll_y(self, old: float, new: float) -> None:
        super().watch_scroll_y(old, new)
        if self.charts and self._timer is None:
            self._timer = self.set_timer(STAGGER_S, self._tick)

    def _tick(self) -> None:
        """Draw the chart that needs it most, put everything on the screen, and come back for the next."""
        if self._timer is not None:
            self._timer.stop()
            self._timer = None
        if not self.is_attached or self.scrollable_content_region.width <= 0 or not self.charts or self.detail is None:
            return
        stale = self._stale()
        waiting = [item for item in stale if not item[1]]  # for the first time, or because a key was pressed
        due, wait = waiting[:1] if self._hurry else waiting, 0.001
        if stale and not waiting:
            left = REDRAW_S - (time.monotonic() - stale[0][1])
            due, wait = ([], left) if left > 0 else (stale[:1], STAGGER_S)
        for _, _, one, view, key in due:
            before = self._pictures.get(one.series)
            picture = chart.picture(self.traces(one.series), view, before[1].y if before else None)
            self._pictures[one.series] = (key, picture)
            self._drawn_at[one.series] = time.monotonic()
        self._hurry = False
        if len(due) < len(stale):
            self._timer = self.set_timer(wait, self._tick)
        self._arrange()

    def _stale(self) -> list[tuple[bool, float, Chart, View, object]]:
        """Charts on the screen whose picture is out of date; those that wait longest first, the focused before all."""
        columns, width, height = self._grid()
        top, bottom = self.scroll_offset.y, self.scroll_offset.y + self.size.height
        found: list[tuple[bool, float, Chart, View, object]] = []
        assert self.detail is not None
        if self._reading_since and time.monotonic() - self._reading_since < PATIENCE_S:
            return []  # what is drawn now would be drawn again in a moment
        for number, one in enumerate(self._shown()):
            begin = 1 + number // columns * height
            if begin >= bottom or begin + height <= top:
                continue
            view = self.view_of(one, width, height)
            key = (tuple(trace.curve for trace in self.traces(one.series)), view)
            known = self._pictures.get(one.series)
            if known is None or (known[0] != key and not self.detail.reading):
                at = self._drawn_at.get(one.series, 0.0)
                found.append((one.series != self.look.focused, at, one, view, key))
        return sorted(found, key=lambda item: (item[1], item[0]))

    def _arrange(self) -> None:
        """Titles, charts side by side, and the line above them, into strips."""
        if not self.is_attached or self.detail is None or not self.charts:
            return
        columns, width, height = self._grid()
        shown = self._shown()
        strips: list[Strip] = [self._headline()]
        for start in range(0, len(shown), columns):
            group = [self._composed(one, width, height) for one in shown[start : start + columns]]
            blank = [Strip.blank(width + GAP)] * height
            lines = list(zip(*((one + blank)[:height] for one in group), strict=True))
            before = self._rows.get(start, [])
            self._rows[start] = [_joined(line, before[y] if y < len(before) else None) for y, line in enumerate(lines)]
            strips += [joined for _, joined in self._rows[start]]
        self.put(strips)

    def _composed(self, one: Chart, width: int, height: int) -> list[Strip]:
        """A chart's strips; an empty frame while it has not been drawn."""
        view = self.view_of(one, width, height)
        traces = self.traces(one.series)
        known = self._pictures.get(one.series)
        fits = known is not None and (len(known[1].canvas.rows), len(known[1].canvas.rows[0])) == (
            view.rows,
            view.columns,
        )
        if not traces or known is None or not fits:
            return [Strip.blank(width + GAP)] * height
        highest_last = sorted(self._numbered(), key=lambda row: self._reach(row[2]))  # over what shares their cell
        marks = tuple(Mark(note.step, sign, "second") for _, sign, note in highest_last)
        words = Words(one.title, one.series == self.look.focused, marks, tuple(self._notes(one, height)))
        share = None if self.look.cross is None else view.x.share(self.look.cross)
        cross = share if share is not None and 0 <= share <= 1 else None
        own = traces[0]
        ways = None if view.unit == "step" else own.ways
        key = (known[1], own.curve.lost, ways, view, words, cross, tones.current())
        kept = self._strips_of.get(one.series)
        if kept is None or kept[0] != key:
            below = [_padded(strip, width) for strip in chart.body(known[1], traces, view, words, cross)]
            kept = self._strips_of[one.series] = (key, below)
        return [_padded(chart.title(known[1], traces, view, words, cross), width), *kept[1]]

    def _headline(self) -> Strip:
        """One line above the charts: how the stage stands, and what the keys have set."""
        parts = list(self._alarm())
        status, look, detail = self._status, self.look, self.detail
        assert detail is not None
        if detail.reading:
            parts.append(("reading …", "faint"))
        last = max((curve.last_step for curve in detail.curves.values() if curve.count), default=0.0)
        parts.append((f"step {last:,.0f}" + (f" of {status.steps:,}" if status.steps else ""), "plain"))
        if look.cross is not None:
            parts.append((f"crosshair at {chart.figure(look.unit, look.cross)}", "accent"))
        parts += [(words, "faint") for words in look.words(detail.ways.units())]
        for number, (name, _, _) in enumerate(detail.others):
            parts.append(
                (f"{LETTERS[number % len(LETTERS)]} {name}", chart.OVERLAY_TONES[number % len(chart.OVERLAY_TONES)])
            )
        if status.state in WORTH_SAYING and status.reason:
            parts.append((status.reason, "faint"))
        line = text(*(part for index, (words, tone) in enumerate(parts)
                      for part in ((("  ·  ", "faint"),) if index else ()) + ((words, tone),)))  # fmt: skip
        line.truncate(self.scrollable_content_region.width, overflow="ellipsis")
        return Strip(line.render(self.app.console, end="")).simplify()

    def _alarm(self) -> list[tuple[str, str]]:
        status, found = self._status, []
        if status.state in WORTH_SAYING:
            look = state.LOOKS[status.state]
            found.append((f"{look.symbol} {look.word}", look.tone))
        lost: Mapping[str, Any] = {name: curve for name, curve in (self.detail.curves if self.detail else {}).items()
                                   if curve.lost}  # fmt: skip
        if lost:
            name, curve = max(lost.items(), key=lambda item: item[1].broken[-1][0])
            found.append(
                (f"! {name} not finite at {curve.lost:,} steps, last at step {curve.broken[-1][0]:,.0f}", "bad")
            )
        return found


def _joined(line: tuple[Strip, ...], before: tuple[tuple[Strip, ...], Strip] | None) -> tuple[tuple[Strip, ...], Strip]:
    """Pieces with the line they make: the one that was there, when the pieces are the same."""
    if before is not None and len(before[0]) == len(line) and all(map(is_, before[0], line)):
        return before
    return line, Strip.join(line)


def _padded(strip: Strip, width: int) -> Strip:
    return strip.extend_cell_length(width + GAP).crop(0, width + GAP)


def _tab(name: str) -> str:
    return f"{actions.TAB_NAMES.index(name)}"
