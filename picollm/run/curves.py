"""Curves of the report: as lines of text, and as SVG. Long ones are thinned by buckets whose extremes stay."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT = 72, 10  # characters
SVG_WIDTH, SVG_HEIGHT = 640, 220
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 14, 30
MOST_BUCKETS = 300
DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""Bits of a braille character, by row and column (Unicode, block 2800)."""


def points(steps: Sequence[int], values: Sequence[float], buckets: int = MOST_BUCKETS) -> list[tuple[int, float]]:
    """(step, value) of the finite values in order: the first, the last, and the lowest and highest of each bucket."""
    found = [(step, value) for step, value in zip(steps, values, strict=True) if math.isfinite(value)]
    if len(found) <= 2 * buckets:
        return found
    kept = []
    for bucket in range(buckets):
        part = found[bucket * len(found) // buckets : (bucket + 1) * len(found) // buckets]
        ends = {min(part, key=lambda point: point[1]), max(part, key=lambda point: point[1])}
        kept += sorted(ends)
    return list(dict.fromkeys([found[0], *kept, found[-1]]))


def lines(
    steps: Sequence[int], values: Sequence[float], width: int = WIDTH, height: int = HEIGHT, marks: Sequence[int] = ()
) -> list[str]:
    """The curve in braille dots, with its lowest and highest value at the left and the steps below.

    `marks`: steps with a dotted line from top to bottom.
    """
    found = points(steps, values)
    if not found:
        return ["(no values)"]
    (first, last), (low, high) = _range([step for step, _ in found]), _range([value for _, value in found])
    cells = [[0] * width for _ in range(height)]

    def across(step: int) -> int:
        return round((step - first) / (last - first) * (2 * width - 1))

    for x in {across(step) for step in marks if first <= step <= last}:
        for cell in cells:
            cell[x // 2] |= DOTS[1][x % 2]
    previous = None
    for step, value in found:
        column = across(step)
        row = round((high - value) / (high - low) * (4 * height - 1))
        for x, y in _line(previous or (column, row), (column, row)):
            cells[y // 4][x // 2] |= DOTS[y % 4][x % 2]
        previous = column, row
    labels = [number(high), *[""] * (height - 2), number(low)]
    margin = max(map(len, labels))
    drawn = ["".join(chr(0x2800 + cell) for cell in row) for row in cells]
    chart = [f"{label:>{margin}} ┤{row}" for label, row in zip(labels, drawn, strict=True)]
    left, right = str(found[0][0]), str(found[-1][0])
    return [*chart, " " * (margin + 2) + left + right.rjust(width - len(left))]


def svg(
    title: str,
    steps: Sequence[int],
    values: Sequence[float],
    note: str = "",
    marks: Sequence[tuple[int, str]] = (),
) -> str:
    """An `<svg>` of its own: axes with ticks, the curve, and its last value. Colours come from the page's classes.

    `marks`: steps with a line from top to bottom, which says its words when it is pointed at.
    """
    found = points(steps, values)
    if not found:
        return f'<p class="about">{escape(title)}: no values</p>'
    (first, last), (low, high) = _range([step for step, _ in found]), _range([value for _, value in found])
    across, down = SVG_WIDTH - LEFT - RIGHT, SVG_HEIGHT - TOP - BOTTOM

    def at(step: float, value: float) -> tuple[float, float]:
        return LEFT + (step - first) / (last - first) * across, TOP + (high - value) / (high - low) * down

    told = f"{title}: from {number(found[0][1])} at step {found[0][0]} to {number(found[-1][1])} at step {found[-1][0]}"
    parts = [
        f'<svg class="curve" viewBox="0 0 {SVG_WIDTH} {SVG_HEIGHT}" role="img" aria-label="{escape(told)}">',
        f"<title>{escape(told)}{escape('; ' + note if note else '')}</title>",
    ]
    for value in ticks(low, high):
        _, y = at(first, value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{SVG_WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{number(value)}</text>')
    for step in ticks(first, last):
        x, _ = at(step, low)
        parts.append(f'<text class="tick" x="{x:.1f}" y="{SVG_HEIGHT - 10}" text-anchor="middle">{number(step)}</text>')
    for step, text in marks:
        if first <= step <= last:
            x, _ = at(step, low)
            parts.append(f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{SVG_HEIGHT - BOTTOM}">')
            parts.append(f"<title>{escape(f'{step:,}: {text}')}</title></line>")
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*point) for point in found))
    x, y = at(*found[-1])
    parts.append(f'<polyline class="line" points="{path}"/><circle class="end" cx="{x:.1f}" cy="{y:.1f}" r="3"/>')
    return "".join([*parts, "</svg>"])


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round values within the range, 1, 2 or 5 times a power of ten apart."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    apart = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
    found = (n * apart for n in range(math.floor(low / apart), math.ceil(high / apart) + 1))
    return [tick for tick in found if low <= tick <= high]


def number(value: float) -> str:
    """`1,234`, `0.4712`, `3.1e-05`."""
    if value == int(value) and abs(value) < 1e9:
        return f"{int(value):,}"
    return f"{value:,.4g}" if 1e-3 <= abs(value) < 1e5 else f"{value:.2e}"


def _range(values: Sequence[float]) -> tuple[float, float]:
    """Lowest and highest, never equal."""
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2)


def _line(start: tuple[int, int], end: tuple[int, int]) -> list[tuple[int, int]]:
    """Whole places from one to the other."""
    (x0, y0), (x1, y1) = start, end
    count = max(abs(x1 - x0), abs(y1 - y0), 1)
    return [(round(x0 + (x1 - x0) * i / count), round(y0 + (y1 - y0) * i / count)) for i in range(count + 1)]
