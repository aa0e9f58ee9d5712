"""The curves of the selected training stage, drawn one chart at a time and only when its data changed."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import Any

from rich.console import RenderableType
from rich.text import Text
from textual.events import Resize
from textual.strip import Strip
from textual.timer import Timer

from picollm.run import pipeline
from tui import actions, state
from tui.curves import Curve
from tui.figures import metric
from tui.widgets import plot
from tui.widgets.lines import LinesView, empty_state, text

REDRAW_S = 2.0
STAGGER_S = 0.06
WIDE = 70
NOTED = "loss"  # the series whose chart bears the notes
MOST_NOTES = 3


@dataclass(frozen=True)
class Chart:
    """Which series go into one chart: the first whose name matches."""

    title: str
    pattern: str
    smooth: bool = False


CHARTS: tuple[Chart, ...] = (
    Chart("Reward", r"^(train/|rollout/)?(mean_)?reward(_mean)?$", True),
    Chart("Rollout length, tokens", r"^(rollout_|answer_)?(length|len|tokens)(_mean)?$", True),
    Chart("Entropy of the sampling, nats", r"^entropy$", True),
    Chart("Loss", r"^(train/)?loss$", True),
    Chart("Bits per byte, validation", r"(^|/)(val_)?bpb$"),
    Chart("Tokens per second", r"(^|/)(tok_s|tokens_per_s(ec)?|tok_per_s)$", True),
    Chart("Held-out accuracy", r"(^|/)(heldout_)?(accuracy|pass_at_1|acc)$"),
    Chart("pass@k, held out", r"(^|/)pass_at_\d+$"),
    Chart("Loss, validation", r"/loss$"),
    Chart("Model FLOPs utilisation", r"(^|/)mfu$", True),
    Chart("Gradient norm", r"(^|/)grad_norm$", True),
    Chart("Seconds per step", r"(^|/)step_s$", True),
    Chart("Learning rate", r"(^|/)(lr|lr_mult)$"),
)

BOUNDS = re.compile(r"(^|/)(low|high)(_\d+)?$")
"""Ends of intervals: said with the readings, and no curves of their own."""


def choose(names: list[str]) -> list[tuple[str, str, bool]]:
    """(title, series, smooth) in the order to show: the known charts, then whatever else the stage measures."""
    chosen: list[tuple[str, str, bool]] = []
    left = [name for name in names if not BOUNDS.search(name)]
    for chart in CHARTS:
        matches = [name for name in left if re.search(chart.pattern, name)]
        for number, name in enumerate(matches):
            title = chart.title if number == 0 and len(matches) == 1 else f"{chart.title}: {name}"
            chosen.append((title, name, chart.smooth))
            left.remove(name)
    return chosen + [(name, name, False) for name in sorted(left)]


class TrainPane(LinesView):
    """A grid of charts. `zoomed` is 0 for all, or the number of the chart shown alone."""

    def __init__(self, id: str | None = None) -> None:
        super().__init__(id=id)
        self.zoomed = 0
        self._stage = ""
        self._live = False
        self._curves: dict[str, Curve] = {}
        self._notes: tuple[Any, ...] = ()
        self._picked: list[tuple[str, str, bool]] = []
        self._drawn: dict[str, tuple[object, list[Text]]] = {}
        self._drawn_at: dict[str, float] = {}
        self._timer: Timer | None = None

    def update_from(self, view: state.RunView, name: str, detail: state.Detail | None) -> None:
        if name != self._stage:
            self._stage, self.zoomed = name, 0
            self._drawn.clear()
            self._drawn_at.clear()
            self.scroll_home(animate=False)
        if detail is None or detail.stage != name:
            self._curves, self._picked = {}, []
            self.show([])
            return
        self._live = view.stage(name).state in state.ACTIVE
        self._curves, self._notes = dict(detail.curves), detail.notes
        self._picked = choose([key for key, curve in self._curves.items() if curve.xs or curve.broken])
        if not self._picked:
            self.show(self._nothing(view, name))
            return
        self._tick()

    def do_zoom(self) -> None:
        """All charts, then each alone, then all again."""
        self.zoomed = (self.zoomed + 1) % (len(self._picked) + 1) if self._picked else 0
        self._drawn_at.clear()
        self.scroll_home(animate=False)
        self._tick()

    def on_resize(self, event: Resize) -> None:
        self._drawn_at.clear()
        if self._picked:
            self._tick()
        else:
            self.lay_out()

    def _nothing(self, view: state.RunView, name: str) -> list[RenderableType]:
        title = pipeline.stage(name).title
        if not pipeline.stage(name).trains:
            best = ", ".join(row.title for row in pipeline.STAGES if row.trains)
            down = actions.find("stage_down").first
            return empty_state(f"{title} draws no curves", f"These stages train: {best}.", f"Select one with {down}.")
        if view.stage(name).state in ("running", "stopping", "stalled"):
            phase = view.stage(name).phase
            return empty_state(f"{title} has begun", f"It is busy with: {phase}." if phase else "No reading yet.")
        return empty_state(f"{title} has not trained yet", "Its curves appear here after its first steps.")

    def _tick(self) -> None:
        """Draw the one chart that needs it most, then put everything on the screen; come back for the next."""
        if self._timer is not None:
            self._timer.stop()
            self._timer = None
        if not self.is_attached or self.scrollable_content_region.width <= 0 or not self._picked:
            return
        now = time.monotonic()
        width, height = self._cell()
        stale = []
        for title, name, smooth in self._shown():
            key = (self._curves[name], width, height, self._live, self._notes)
            if name not in self._drawn or self._drawn[name][0] != key:
                stale.append((self._drawn_at.get(name, 0.0), title, name, smooth, key))
        if stale:
            stale.sort(key=lambda item: item[0])
            at, title, name, smooth, key = stale[0]
            if now - at >= REDRAW_S:
                self._drawn[name] = (key, self._chart(title, name, smooth, width, height))
                self._drawn_at[name] = time.monotonic()
                self._arrange(width, height)
                wait = STAGGER_S if len(stale) > 1 else REDRAW_S
            else:
                wait = REDRAW_S - (now - at)
            self._timer = self.set_timer(max(STAGGER_S, wait), self._tick)
        elif not self._strips:
            self._arrange(width, height)

    def _shown(self) -> list[tuple[str, str, bool]]:
        return [self._picked[min(self.zoomed, len(self._picked)) - 1]] if self.zoomed else self._picked

    def _columns(self) -> int:
        return 1 if self.zoomed or self.scrollable_content_region.width < WIDE or len(self._picked) == 1 else 2

    def _cell(self) -> tuple[int, int]:
        """Width and height of one chart, its title line included."""
        region = self.scrollable_content_region
        columns = self._columns()
        width = region.width // columns - (2 if columns > 1 else 0)
        if self.zoomed:
            return width, max(6, region.height)
        down = -(-len(self._picked) // columns)
        return width, max(8, min(16, region.height // max(1, min(down, 3))))

    def _chart(self, title: str, name: str, smooth: bool, width: int, height: int) -> list[Text]:
        curve = self._curves[name]
        head = text((title, "strong"), (f"  {metric(curve.last)}", "accent"))
        if smooth and len(curve.ema_ys) >= 8:
            head.append_text(text((f"  smoothed {metric(curve.ema_ys[-1])}", "faint")))
        if curve.broken:
            head.append_text(text((f"  ! {curve.broken} not finite", "bad")))
        head.truncate(width, overflow="ellipsis")
        lines = plot.raw_and_smooth(curve.xs, curve.ys, curve.ema_xs, curve.ema_ys, smooth)
        if name != NOTED or not self._notes:
            return [head, *plot.draw(lines, width, height - 1, self._live)]
        shown = self._notes[-(MOST_NOTES if self.zoomed else 1) :]
        words = [text(("  │ ", "faint"), (f"{note.step:,}: {note.text}", "second")) for note in shown]
        for line in words:
            line.truncate(width, overflow="ellipsis")
        marks = [note.step for note in self._notes]
        return [head, *plot.draw(lines, width, height - 1 - len(words), self._live, marks), *words]

    def _arrange(self, width: int, height: int) -> None:
        """Charts side by side into strips."""
        columns = self._columns()
        shown = self._shown()
        console = self.app.console
        strips: list[Strip] = []
        for start in range(0, len(shown), columns):
            group = [self._drawn.get(name, (None, []))[1] for _, name, _ in shown[start : start + columns]]
            for y in range(height):
                pieces = []
                for chart in group:
                    line = chart[y] if y < len(chart) else Text("")
                    piece = Strip(line.render(console, end="")).simplify()
                    pieces.append(piece.extend_cell_length(width + 3).crop(0, width + 3))
                strips.append(Strip.join(pieces))
        self.put(strips)
