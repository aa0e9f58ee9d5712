"""The one place that knows plotext: lines between 0 and 1 in, cells out.

Values are scaled before plotext sees them and cut off at the edges, so that no float a training run can produce (NaN,
infinities, 1e308, denormals, a constant) reaches its arithmetic. Frame, ticks and marks are drawn by `chart`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

Point = tuple[float, float]

ASCII_MARKERS = "*.+x#o"
_COLOUR = re.compile(r"\x1b\[(?:38;2;0;0;(\d+)|0)?m")


@dataclass(frozen=True)
class Line:
    """Points in drawing order, each coordinate 0 to 1 inside the picture; what lies outside is cut off. A cell says
    which `layer` (1 to 250) it belongs to; later lines lie over earlier ones."""

    points: Sequence[Point]
    layer: int


@dataclass(frozen=True)
class Canvas:
    """`rows` of `width` characters, and for each character its layer, 0 where nothing is drawn."""

    rows: tuple[str, ...]
    layers: tuple[bytes, ...]


def blank(width: int, height: int) -> Canvas:
    return Canvas((" " * width,) * height, (bytes(width),) * height)


def draw(lines: Sequence[Line], width: int, height: int, ascii_only: bool = False) -> Canvas:
    """Exactly `height` rows of exactly `width` cells; braille dots, or one character a line with `ascii_only`."""
    if width < 1 or height < 1:
        return blank(max(0, width), max(0, height))
    strokes = [(stroke, line.layer) for line in lines for stroke in clip(line.points)]
    if not strokes:
        return blank(width, height)
    plotext = _plotext()
    plotext.clear_data()
    plotext.plot_size(width, height)
    plotext.xlim(0, 1)
    plotext.ylim(0, 1)
    for stroke, layer in strokes:
        marker = ASCII_MARKERS[(layer - 1) % len(ASCII_MARKERS)] if ascii_only else "braille"
        xs, ys = [x for x, _ in stroke], [y for _, y in stroke]
        put = plotext.plot if len(stroke) > 1 else plotext.scatter
        put(xs, ys, marker=marker, color=(0, 0, layer))
    drawn = plotext.build().split("\n")[:height]
    cells = [_cells(row, width) for row in drawn]
    empty = blank(width, height - len(cells))
    return Canvas((*(row for row, _ in cells), *empty.rows), (*(layers for _, layers in cells), *empty.layers))


@cache
def _plotext() -> Any:
    """The library with its one figure bared to the curves, when it is first needed: its import takes a while."""
    import plotext

    plotext.clear_figure()
    plotext.limit_size(False, False)
    plotext.theme("clear")
    plotext.xaxes(False, False)
    plotext.yaxes(False, False)
    plotext.xticks([], [])
    plotext.yticks([], [])
    return plotext


def _cells(row: str, width: int) -> tuple[str, bytes]:
    """One row of plotext's output; its colours are our layers."""
    text, layers, layer, at = [], bytearray(), 0, 0
    for code in _COLOUR.finditer(row):
        text.append(row[at : code.start()])
        layers += bytes([layer]) * (code.start() - at)
        layer, at = int(code[1] or 0), code.end()
    text.append(row[at:])
    layers += bytes([layer]) * (len(row) - at)
    return "".join(text)[:width].ljust(width), bytes(layers[:width]).ljust(width, b"\0")


def clip(points: Iterable[Point]) -> list[list[Point]]:
    """The parts of a line inside the unit square; its points ascend in x. What is no number is left out."""
    strokes: list[list[Point]] = []
    stroke: list[Point] = []
    before: Point | None = None
    for point in points:
        if math.isnan(point[0]) or math.isnan(point[1]):
            continue
        inside = 0 <= point[0] <= 1 and 0 <= point[1] <= 1
        if before is None:
            stroke = [point] if inside else []
        elif inside and stroke:
            stroke.append(point)
        else:
            piece = _inside(before, point)
            if stroke:  # it leaves
                stroke += [piece[1]] if piece else []
            elif inside:  # it comes in
                stroke = [piece[0], point] if piece else [point]
            elif piece:  # it passes through
                stroke = list(piece)
            if not inside and stroke:
                strokes.append(stroke)
                stroke = []
        before = point
    if stroke:
        strokes.append(stroke)
    return strokes


def _inside(a: Point, b: Point) -> tuple[Point, Point] | None:
    """The part of a straight line inside the unit square (Liang and Barsky, 1984)."""
    begin, end = 0.0, 1.0
    for start, stop in ((a[0], b[0]), (a[1], b[1])):
        start, stop = max(-1e9, min(1e9, start)), max(-1e9, min(1e9, stop))
        way = stop - start
        if way == 0:
            if not 0 <= start <= 1:
                return None
            continue
        first, last = sorted(((0 - start) / way, (1 - start) / way))
        begin, end = max(begin, first), min(end, last)
    if begin > end:
        return None
    return _on(a, b, begin), _on(a, b, end)


def _on(a: Point, b: Point, share: float) -> Point:
    near = [max(-1e9, min(1e9, value)) for value in (*a, *b)]
    x, y = (near[i] + share * (near[i + 2] - near[i]) for i in (0, 1))
    return max(0.0, min(1.0, x)), max(0.0, min(1.0, y))
