"""How the charts of the Train pane are looked at: what its keys change. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from tui.axis import Range
from tui.figures import metric
from tui.search import Query, query
from tui.widgets.chart import figure

STRENGTHS = (0.0, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999)
"""Of the smoothing: the share of the average so far that each new step leaves."""
USUAL = STRENGTHS.index(0.95)


@dataclass
class Look:
    """`window`, `cross` and `unit` are of the X axis that all charts share; `ys` and `logs` of single charts, by the
    names of their series. `chosen`: somebody has pressed a key among the charts; until then the first has the focus.
    `whole`: without a window, X spans the plan to its end, else what there is so far."""

    focused: str = ""
    chosen: bool = False
    window: Range | None = None
    cross: float | None = None
    unit: str = "step"
    whole: bool = True
    smoothing: int = USUAL
    filter: str = ""
    ys: dict[str, Range] = field(default_factory=dict)
    logs: set[str] = field(default_factory=set)

    @property
    def strength(self) -> float:
        return STRENGTHS[self.smoothing]

    def pattern(self) -> Query | None:
        return query(self.filter, any_case=True)

    def forget(self) -> None:
        """Another stage: places on its axes mean nothing there; unit, smoothing, filter and log scales are kept."""
        self.window, self.cross = None, None
        self.ys.clear()

    def smoother(self, by: int) -> None:
        self.smoothing = max(0, min(len(STRENGTHS) - 1, self.smoothing + by))

    def follow(self, newest: float) -> None:
        """A window that showed the newest step goes on showing it: it jumps on by a quarter when the step leaves it."""
        window = self.window
        if window is not None and 1 < window.share(newest) <= 1.25:
            self.window = window.moved(0.25)

    def move_cross(self, cells: int, x: Range, columns: int, newest: float) -> None:
        """The crosshair by so many cells; it begins at the newest step, and takes a window along at its edge."""
        if self.cross is None:
            self.cross = min(newest, x.high)
            return
        share = x.share(self.cross) + cells / max(1, columns - 1)
        if self.window is not None and not 0 <= share <= 1:
            self.window = moved = self.moved(x, share - 1 if share > 1 else share, newest)
            share = moved.share(x.at(share))
            x = moved
        self.cross = x.at(max(0.0, min(1.0, share)))

    def moved(self, x: Range, by: float, newest: float) -> Range:
        """A window moved by a share of its length, but not to before the beginning nor past the newest step."""
        by = max(by, -x.low / (x.high - x.low))
        if by > 0:
            by = max(0.0, min(by, x.share(newest) - 0.5))
        return x.moved(by)

    def words(self, units: tuple[str, ...]) -> list[str]:
        """What differs from how charts begin, for the line above them."""
        found = []
        if self.unit != "step":
            found.append(f"X: {self.unit}" if self.unit in units else f"X: {self.unit} (not known here, so steps)")
        if self.window is not None:
            found.append(f"{figure(self.unit, self.window.low)} to {figure(self.unit, self.window.high)}")
        elif not self.whole:
            found.append("so far")
        if self.smoothing != USUAL:
            found.append(f"smoothing {self.strength:g}" if self.strength else "not smoothed")
        if self.focused in self.ys:
            y = self.ys[self.focused]
            found.append(f"Y {metric(y.low)} to {metric(y.high)}")
        if self.focused in self.logs:
            found.append("log Y")
        if self.filter:
            found.append(f"filter {self.filter}")
        return found
