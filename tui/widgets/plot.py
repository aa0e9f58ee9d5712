"""The one place that knows plotext: finite points in, lines of text out.

Values are scaled to 0..1 before plotext sees them, so that no float a training run can produce (NaN, infinities, 1e308,
denormals, a constant) reaches its arithmetic; ticks are labelled by us.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich.text import Text

from tui.curves import thin
from tui.figures import count, metric
from tui.widgets.tones import ACCENT, FAINT, SECOND

LIMIT = 1e300


@dataclass(frozen=True)
class Line:
    """One line of a chart; `colour` is #rrggbb."""

    xs: tuple[float, ...]
    ys: tuple[float, ...]
    colour: str = ACCENT


def room_to_grow(low: float, high: float) -> float:
    """An end of the axis a little past `high`, which stays put while a live curve grows by up to an eighth.

    What is drawn already then stays where it is, and only new cells go over the wire.
    """
    span = high - low
    if not (math.isfinite(span) and span > 0):
        return high
    grain = 2.0 ** math.floor(math.log2(span / 8)) if span / 8 > 0 else 0.0
    return low + math.ceil(span / grain) * grain if grain and math.isfinite(span / grain) else high


def _clean(line: Line, columns: int, reach: float | None) -> tuple[list[float], list[float]]:
    xs, ys = thin(line.xs, line.ys, columns, reach)
    return [max(-LIMIT, min(LIMIT, x)) for x in xs], [max(-LIMIT, min(LIMIT, y)) for y in ys]


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """Lowest and highest, pulled apart when they are equal; never overflows."""
    low, high = min(values), max(values)
    if not high / 2 - low / 2 > max(abs(low), abs(high)) * 1e-12:
        pad = max(abs(low) * 0.05, 1e-9)
        low, high = low - pad, high + pad
    return low, high


def _unit(value: float, low: float, high: float) -> float:
    half = high / 2 - low / 2
    return min(1.0, max(0.0, (value / 2 - low / 2) / half)) if half > 0 else 0.5


def _between(low: float, high: float, share: float) -> float:
    return low * (1 - share) + high * share


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def draw(lines: Sequence[Line], width: int, height: int, live: bool = False, marks: Sequence[float] = ()) -> list[Text]:
    """A chart of exactly `height` lines of at most `width` cells; blank when there is nothing finite to draw.

    `live` leaves room at the right for what comes; `marks` are xs with a faint vertical line.
    """
    blank = [Text("") for _ in range(height)]
    if width < 12 or height < 4:
        return blank
    seen = [max(-LIMIT, min(LIMIT, x)) for line in lines for x in line.xs if math.isfinite(x)]
    reach = min(LIMIT, room_to_grow(min(seen), max(seen))) if live and seen else None
    cleaned = [(line, *_clean(line, width, reach)) for line in lines]
    cleaned = [(line, xs, ys) for line, xs, ys in cleaned if xs]
    if not cleaned:
        return blank
    import plotext

    x_low, x_high = _limits([x for _, xs, _ in cleaned for x in xs] + ([reach] if reach is not None else []))
    y_low, y_high = _limits([y for _, _, ys in cleaned for y in ys])
    plotext.clear_figure()
    plotext.limit_size(False, False)
    plotext.plot_size(width, height)
    plotext.theme("clear")
    plotext.xaxes(True, False)
    plotext.yaxes(True, False)
    plotext.xlim(0, 1)
    plotext.ylim(0, 1)
    steps = max(2, min(5, height // 3))
    shares = [index / (steps - 1) for index in range(steps)]
    labels = [metric(_between(y_low, y_high, share)) for share in shares]
    wide = max(len(label) for label in labels)
    plotext.yticks(shares, [label.rjust(max(6, wide)) for label in labels])
    across = [index / (max(2, min(5, width // 16)) - 1) for index in range(max(2, min(5, width // 16)))]
    plotext.xticks(across, [count(round(_between(x_low, x_high, share))) for share in across])
    plotext.ticks_color(_rgb(FAINT))
    for mark in marks:
        if x_low <= mark <= x_high:
            plotext.vertical_line(_unit(mark, x_low, x_high), color=_rgb(FAINT))
    for line, xs, ys in cleaned:
        unit_xs = [_unit(x, x_low, x_high) for x in xs]
        unit_ys = [_unit(y, y_low, y_high) for y in ys]
        if len(unit_xs) == 1:
            plotext.scatter(unit_xs, unit_ys, marker="braille", color=_rgb(line.colour))
        else:
            plotext.plot(unit_xs, unit_ys, marker="braille", color=_rgb(line.colour))
    drawn = plotext.build().split("\n")
    plotext.clear_figure()
    texts = [Text.from_ansi(row, no_wrap=True, end="") for row in drawn[:height]]
    for row in texts:
        row.truncate(width)
    return texts + blank[len(texts) :]


def raw_and_smooth(xs: tuple[float, ...], ys: tuple[float, ...], ema_xs: tuple[float, ...], ema_ys: tuple[float, ...],
                   smooth: bool) -> list[Line]:  # fmt: skip
    """The raw points, and over them the smoothed line where it says something."""
    if not smooth or len(ema_xs) < 8:
        return [Line(xs, ys, ACCENT)]
    return [Line(xs, ys, "#46566f"), Line(ema_xs, ema_ys, ACCENT if math.isfinite(ema_ys[-1]) else SECOND)]
