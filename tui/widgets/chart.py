"""One chart as lines of cells: title with the newest values, labelled axes, the curves, and marks on the X axis.

Pure: no screen is touched and no clock is asked. `picture` is the costly half (it draws), and depends only on its
arguments; `title` and `body` put the rest around it, and are cheap enough for every key press.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby

from rich.segment import Segment
from textual.strip import Strip

from tui.axis import Range, Ways, are_round, fitting, ticks
from tui.figures import clock, count, metric
from tui.pyramid import Column, Curve
from tui.widgets.canvas import Canvas, Line, blank, draw
from tui.widgets.tones import tone

LABELS = 8  # cells left of the curves: seven for a value, one for the axis
LETTERS = "abcdefgh"
SMOOTHABLE = 8  # points from which on a smoothed line says something
RAW, SMOOTH, OVER = 1, 2, 3
OVERLAY_TONES = ("good", "second", "warn", "bad")
CROSS, BEYOND = 250, 251

Points = Sequence[tuple[float, float]]
Cell = tuple[int, int, str, int]
"""Row, column, character, layer."""


@dataclass(frozen=True)
class Trace:
    """One run's curve of a metric, and how its steps become places on the X axis."""

    curve: Curve
    ways: Ways
    letter: str = ""


@dataclass(frozen=True)
class View:
    """How a chart looks at its traces: where on the axes, in which unit, how smooth (0: not at all), in which cells."""

    width: int
    height: int
    x: Range
    unit: str = "step"
    strength: float = 0.0
    log: bool = False
    y: Range | None = None
    """Chosen by hand; None: what there is to see."""

    @property
    def columns(self) -> int:
        return max(1, self.width - LABELS)

    @property
    def rows(self) -> int:
        """Of the curves: the title, the axis and its labels take three."""
        return max(1, self.height - 3)


@dataclass(frozen=True, eq=False)
class Picture:
    """The drawn half: cells, the range of Y, and how many values lie outside it or at or below 0 on a log axis."""

    canvas: Canvas
    y: Range
    smooth: tuple[tuple[float, float], ...] = ()
    below_zero: int = 0


@dataclass(frozen=True)
class Mark:
    """A sign on the X axis at a step; of two in one cell the later one is seen."""

    step: float
    sign: str
    tone: str


@dataclass(frozen=True)
class Words:
    """What a chart says besides its curves."""

    title: str
    focused: bool = False
    marks: tuple[Mark, ...] = ()
    notes: tuple[tuple[str, str], ...] = field(default=())
    """Lines below it, as (words, tone)."""


def picture(traces: Sequence[Trace], view: View, before: Range | None = None, ascii_only: bool = False) -> Picture:
    """Draw the traces, the first one over the others; `before`: the range of Y so far, kept while it will do."""
    edges_x = [view.x.at(number / view.columns) for number in range(view.columns + 1)]
    drawn: list[tuple[int, Points]] = []  # the run's own last, over the others
    ends: dict[int, Points] = {}
    smoothed: Points = []
    for number, trace in reversed(list(enumerate(traces))):
        edges = [trace.ways.back(view.unit, x) for x in edges_x]
        columns = trace.curve.columns(edges)
        smooth = trace.curve.smooth(edges, view.strength, columns) if view.strength else []
        line = [(trace.ways.there(view.unit, x), y) for x, y in smooth] if len(smooth) >= SMOOTHABLE else []
        if number and line:  # of other runs the smoothed line only: more would hide the curve itself
            found: list[Points] = [line]
        else:
            found = corridor(trace, columns, view.unit)
        if not number:
            smoothed = line
        layer = OVER + number - 1 if number else RAW if line else SMOOTH
        drawn += [(layer, points) for points in found]
        ends[number] = found[0]
    ys = [y for _, points in drawn for _, y in points]
    above = [y for y in ys if y > 0] if view.log else ys
    below_zero = len(ys) - len(above)
    if not above:
        return Picture(blank(view.columns, view.rows), view.y or Range(0.0, 1.0), (), below_zero)
    y = view.y or fitting(min(above), max(above), view.log, before)
    share_x, share_y = view.x.share, y.share
    lines = [Line([(share_x(a), share_y(b)) for a, b in points], layer) for layer, points in drawn]
    lines.append(Line([(share_x(a), share_y(b)) for a, b in smoothed], SMOOTH))
    canvas = draw(lines, view.columns, view.rows, ascii_only)
    over = [(trace.letter, ends[number]) for number, trace in enumerate(traces) if number]
    own = [point for layer, points in drawn if layer in (RAW, SMOOTH) for point in points]
    canvas = _with(canvas, [*_letters(over, view, y), *_beyond(own, view, y)])
    return Picture(canvas, y, tuple(smoothed), below_zero)


def corridor(trace: Trace, columns: Sequence[Column], unit: str) -> list[Points]:
    """The curve where there is at most one value a column, else two: what the lowest and the highest values do. Between
    them a smoothed line stands clear, and every spike is a point of one of them."""
    there = [trace.ways.there(unit, column.step) for column in columns]
    low = [(x, column.low) for x, column in zip(there, columns, strict=True)]
    if all(column.low == column.high for column in columns):
        return [low]
    return [low, [(x, column.high) for x, column in zip(there, columns, strict=True)]]


def zigzag(trace: Trace, edges: Sequence[float], unit: str) -> list[tuple[float, float]]:
    """Two points a column, lowest and highest, the nearer to what came before first."""
    points: list[tuple[float, float]] = []
    last = 0.0
    there = trace.ways.there
    for column in trace.curve.columns(edges):
        x = there(unit, column.step)
        if column.low == column.high:
            points.append((x, column.low))
        elif abs(last - column.low) <= abs(last - column.high):
            points += ((x, column.low), (x, column.high))
        else:
            points += ((x, column.high), (x, column.low))
        last = points[-1][1]
    return points


def _with(canvas: Canvas, cells: Sequence[Cell]) -> Canvas:
    """Single cells over a drawn canvas."""
    rows, layers = list(canvas.rows), [bytearray(row) for row in canvas.layers]
    for row, column, character, layer in cells:
        if 0 <= row < len(rows) and 0 <= column < len(rows[row]):
            rows[row] = rows[row][:column] + character + rows[row][column + 1 :]
            layers[row][column] = layer
    return Canvas(tuple(rows), tuple(bytes(row) for row in layers))


def _letters(overlays: Sequence[tuple[str, Points]], view: View, y: Range) -> list[Cell]:
    """Each overlay's letter where its line ends, so that runs are told apart without their colour."""
    cells: dict[tuple[int, int], Cell] = {}
    for number, (letter, points) in enumerate(overlays):
        seen = [(view.x.share(a), y.share(b)) for a, b in points]
        seen = [(a, b) for a, b in seen if 0 <= a <= 1 and 0 <= b <= 1]
        if seen and letter:
            row, column = _row(seen[-1][1], view.rows), _cell(seen[-1][0], view.columns)
            while (row, column) in cells:  # two end in one place: side by side
                column -= 1
            cells[row, column] = (row, column, letter, OVER + number)
    return list(cells.values())


def _beyond(points: Points, view: View, y: Range) -> list[Cell]:
    """Arrows at the edge for what lies above or below a range that was chosen by hand: no spike is hidden."""
    if view.y is None:
        return []
    cells = set()
    for a, b in points:
        at, share = view.x.share(a), y.share(b)
        if 0 <= at <= 1 and share > 1:
            cells.add((0, _cell(at, view.columns), "▲", BEYOND))
        elif 0 <= at <= 1 and share < 0:
            cells.add((view.rows - 1, _cell(at, view.columns), "▼", BEYOND))
    return sorted(cells)


def _cell(share: float, columns: int) -> int:
    return min(columns - 1, max(0, int(share * (columns - 1) + 0.5)))


def _row(share: float, rows: int) -> int:
    return min(rows - 1, max(0, int((1 - share) * (rows - 1) + 0.5)))


def figure(unit: str, x: float) -> str:
    """A place on the X axis as a person reads it."""
    if unit == "time":
        return clock(x)
    return count(round(x) if abs(x) >= 20 else x)


def body(drawn: Picture, traces: Sequence[Trace], view: View, words: Words, cross: float | None) -> list[Strip]:
    """All but the title: `view.height` - 1 strips and one for each note. `cross`: the crosshair, as a share of the X
    axis. Of new points that are not drawn yet, nothing but marks of broken ones shows here."""
    strips: list[Strip] = []
    column = None if cross is None else _cell(cross, view.columns)
    labels = _labels(view.rows, drawn.y)
    for number, row in enumerate(drawn.canvas.rows):
        cells, layers = row, drawn.canvas.layers[number]
        if column is not None:
            sign = "│" if cells[column] in " ⠀" else cells[column]
            cells = cells[:column] + sign + cells[column + 1 :]
            layers = layers[:column] + bytes([CROSS]) + layers[column + 1 :]
        strips.append(Strip([Segment(labels[number], tone("faint")), *_segments(cells, layers)]))
    strips += _axis(traces, view, words, cross)
    strips += [Strip([Segment(_shortened(text, view.width), tone(name))]) for text, name in words.notes]
    return strips


def _shortened(text: str, width: int) -> str:
    """As many of its words as there is room for."""
    if len(text) <= width:
        return text
    cut = text[:width].rfind(" ", width // 2)  # a very long word is cut itself
    return text[: cut if cut > 0 else width - 1].rstrip(" ,;:") + "…"


def _line(parts: Sequence[tuple[str, str]], width: int) -> Strip:
    """Words in their tones, cut to the width with an ellipsis."""
    found, left = [], width
    for text, name in parts:
        if left <= 0:
            break
        text = text if len(text) <= left else text[: left - 1] + "…"
        found.append(Segment(text, tone(name)))
        left -= len(text)
    return Strip(found)


def title(drawn: Picture, traces: Sequence[Trace], view: View, words: Words, cross: float | None) -> Strip:
    """What it is, and its newest value or the values under the crosshair; where room is short, values come first."""
    needed, wished = _now(drawn, traces[0], view) if cross is None else _under(drawn, traces, view, cross)
    room = view.width - 2 - sum(len(text) for text, _ in needed)
    name = words.title if len(words.title) <= room else words.title[: max(1, room - 1)] + "…"
    parts = [("▸ " if words.focused else "  ", "accent"), (name, "title" if words.focused else "strong"), *needed]
    for part in wished:
        if sum(len(text) for text, _ in [*parts, part]) <= view.width:
            parts.append(part)
    return _line(parts, view.width)


def _now(drawn: Picture, trace: Trace, view: View) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """The newest value and what is wrong; then what is said where there is room."""
    curve = trace.curve
    needed = [(f"  {_value(curve.last)}", "accent" if math.isfinite(curve.last) else "bad")]
    if curve.lost:
        needed.append((f"  ! {curve.lost:,} not finite", "bad"))
    if drawn.below_zero:
        needed.append((f"  ! {drawn.below_zero:,} not above 0", "warn"))
    if drawn.smooth and view.x.high >= trace.ways.there(view.unit, curve.last_step):
        return needed, [(f"  smoothed {metric(drawn.smooth[-1][1])}", "faint")]
    return needed, []


def _under(
    drawn: Picture, traces: Sequence[Trace], view: View, cross: float
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """The values under the crosshair, the run's own first; then what is said where there is room."""
    needed: list[tuple[str, str]] = []
    wished: list[tuple[str, str]] = []
    x = view.x.at(cross)
    for number, trace in enumerate(traces):
        found = trace.curve.near(trace.ways.back(view.unit, x))
        if found is None:
            continue
        apart = abs(trace.ways.there(view.unit, found[0]) - x) > (view.x.high - view.x.low) / view.columns
        if number:
            name = OVERLAY_TONES[(number - 1) % len(OVERLAY_TONES)]
            gone = apart and found[0] in trace.curve.span  # it ended before, or began later
            needed.append((f"  {trace.letter} {'–' if gone else metric(found[1])}", name))
            continue
        needed.append((f"  {metric(found[1])}", "accent"))
        if apart:
            needed.append((f" at step {found[0]:,.0f}", "faint"))  # the nearest there is lies elsewhere
        if drawn.smooth:
            smooth = min(drawn.smooth, key=lambda point: abs(point[0] - x))[1]
            wished.append((f"  smoothed {metric(smooth)}", "faint"))
    return needed, wished


def _value(value: float) -> str:
    return metric(value) if math.isfinite(value) else "not a number" if math.isnan(value) else f"{value:+}"


def _labels(rows: int, y: Range) -> list[str]:
    """The cells left of each row: values at the ends and evenly between, about one every three rows, as many as make
    the shortest numbers, or where those are not round (a range chosen by hand, a log axis) round ones between the ends;
    each stands in the row nearest to its value."""
    if rows < 2:
        return [f"{_short(y.high):>{LABELS - 1}}┤"] * rows
    most = max(2, min(6, (rows + 2) // 3))
    even = [[y.at(number / parts) for number in range(parts + 1)] for parts in range(max(1, most // 2), most)]
    tidy = [values for values in even if are_round(values, y.high - y.low)]
    if not tidy and len(found := ticks(y, max(2, rows // 2))) > 1:
        tidy = [found]
    choices = [(_figures(values), values) for values in tidy or even]
    texts, values = min(choices, key=lambda choice: (sum(map(len, choice[0])) / len(choice[0]), -len(choice[0])))
    at = {_row(y.share(value), rows): words for words, value in zip(texts, values, strict=True)}
    return [f"{at.get(row, ''):>{LABELS - 1}}" + ("┤" if row in at else "│") for row in range(rows)]


def _figures(values: Sequence[float]) -> list[str]:
    """Labels that tell the values apart, where there is room for the digits that this takes."""
    reach = max(map(abs, values))
    texts = [_short(0.0 if abs(value) < reach * 1e-9 else value) for value in values]
    for digits in (5, 6, 7):
        longer = [f"{value:.{digits}g}" for value in values]
        if len(set(texts)) == len(values) or max(map(len, longer)) >= LABELS:
            break
        texts = longer
    return texts


def _short(value: float) -> str:
    """A metric in the cells that labels have, with fewer digits where it takes that; never cut, which would make it
    another number."""
    texts = [metric(value), *(f"{value:.{digits}g}" for digits in (3, 2, 1))]
    texts = [re.sub(r"(\.0)?e([+-])0*", lambda found: "e" + found[2].strip("+"), text) for text in texts]
    return next((text for text in texts if len(text) < LABELS), texts[-1])


def _axis(traces: Sequence[Trace], view: View, words: Words, cross: float | None) -> list[Strip]:
    """The X axis with its marks, and below it the places: ends and between, and that of the crosshair."""
    columns = view.columns
    most = max(1, min(6, columns // 12))
    parts = min(
        range(max(1, (most + 1) // 2), most + 1),
        key=lambda parts: (
            sum(len(figure(view.unit, view.x.at(n / parts))) for n in range(parts + 1)) / (parts + 1),
            -parts,
        ),
    )
    shares = [number / parts for number in range(parts + 1)]
    line = ["─"] * columns
    for share in shares:
        line[_cell(share, columns)] = "┴"
    tones = {}
    marks = [*words.marks, *(Mark(step, "!", "bad") for step, _ in traces[0].curve.broken)]
    for mark in marks:
        share = view.x.share(traces[0].ways.there(view.unit, mark.step))
        if 0 <= share <= 1:
            line[_cell(share, columns)], tones[_cell(share, columns)] = mark.sign, mark.tone
    axis = [Segment(" " * (LABELS - 1) + "└", tone("faint"))]
    for name, group in groupby(range(columns), lambda column: tones.get(column, "faint")):
        axis.append(Segment("".join(line[column] for column in group), tone(name)))
    below = [" "] * view.width
    for share in [*([cross] if cross is not None else []), *shares]:
        _put(below, _cell(share, columns) + LABELS, figure(view.unit, view.x.at(share)))
    return [Strip(axis), Strip([Segment("".join(below), tone("faint"))])]


def _put(cells: list[str], centre: int, text: str) -> None:
    """Text around a cell, inside the line, where there is room for it."""
    begin = max(0, min(len(cells) - len(text), centre - len(text) // 2))
    around = cells[max(0, begin - 1) : begin + len(text) + 1]
    if len(text) <= len(cells) and all(cell == " " for cell in around):
        cells[begin : begin + len(text)] = text


def _segments(cells: str, layers: bytes) -> list[Segment]:
    found, at = [], 0
    for layer, group in groupby(layers):
        length = len(list(group))
        found.append(Segment(cells[at : at + length], tone(_tone(layer))))
        at += length
    return found


def _tone(layer: int) -> str:
    if layer >= CROSS:
        return {CROSS: "strong", BEYOND: "warn"}.get(layer, "plain")
    if layer >= OVER:
        return OVERLAY_TONES[(layer - OVER) % len(OVERLAY_TONES)]
    return {RAW: "raw", SMOOTH: "accent"}.get(layer, "plain")
