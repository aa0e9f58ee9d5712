"""Charts as files in the run's exports/ folder: their points as CSV, their picture as SVG. Runs in a thread."""

from __future__ import annotations

import csv as tables
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

from picollm.run.folder import write_atomic
from tui import state
from tui.axis import Range, fitting
from tui.figures import metric
from tui.pyramid import Curve
from tui.widgets.chart import OVERLAY_TONES, SMOOTHABLE, Trace, View, figure, zigzag
from tui.widgets.chart_list import Chart
from tui.widgets.tones import PALETTES

WIDTH, HEIGHT = 960, 280
LEFT, RIGHT, TOP, BOTTOM = 76, 28, 40, 30
COLUMNS = 600


def _file(folder: Path, stage: str, kind: str) -> Path:
    """A name that is not taken yet: the stage and the time of day."""
    folder.mkdir(parents=True, exist_ok=True)
    base = f"{stage}-{time.strftime('%Y%m%d-%H%M%S')}"
    names = [f"{base}.{kind}", *(f"{base}-{number}.{kind}" for number in range(2, 1000))]
    return next(folder / name for name in names if not (folder / name).exists())


def csv(folder: Path, stage: str, detail: state.Detail, series: Sequence[str]) -> Path:
    """One row a step: step, seconds at work, tokens trained on so far, then each metric, empty where it was not read.
    Metrics of the runs laid over it follow by step, as `run: name`; seconds and tokens are this run's.

    Of a metric with more points than are kept one by one, `name` is the mean of neighbours, beside `name.low` and
    `name.high`. Raises `OSError`.
    """
    rows: dict[float, dict[str, str]] = {}
    heads: list[str] = []
    for run, curves in [("", detail.curves), *((f"{other}: ", curves) for other, _, curves in detail.others)]:
        for name in series:
            if name in curves:
                heads += _column(rows, run + name, curves[name])
    counted = "tokens" in detail.ways.units()
    file = _file(folder, stage, "csv")
    part = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with open(part, "w", newline="", encoding="utf-8") as out:
            table = tables.writer(out, lineterminator="\n")
            table.writerow(["step", "elapsed_s", *(["trained_tokens"] if counted else []), *heads])
            for step in sorted(rows):
                ways = [f"{detail.ways.there('time', step):.3f}"]
                ways += [f"{detail.ways.there('tokens', step):.0f}"] if counted else []
                table.writerow([f"{step:.0f}", *ways, *(rows[step].get(head, "") for head in heads)])
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)
    return file


def _column(rows: dict[float, dict[str, str]], head: str, curve: Curve) -> list[str]:
    """A curve's points into the rows; the heads of the columns they stand in."""
    bundled = curve.stride > 1
    for column in curve.points():
        row = rows.setdefault(column.step, {})
        row[head] = repr(column.mean)
        if bundled:
            row[f"{head}.low"], row[f"{head}.high"] = repr(column.low), repr(column.high)
    for step, value in curve.broken:
        rows.setdefault(step, {})[head] = repr(value)
    return [head, f"{head}.low", f"{head}.high"] if bundled else [head]


def svg(folder: Path, stage: str, title: str, charts: Sequence[tuple[Chart, list[Trace], View, Range | None]],
        x: Range, others: Sequence[str] = ()) -> Path:  # fmt: skip
    """Charts below each other, dark on light, as they are looked at: window, unit, smoothing, log scales, other runs
    (`others`, by name). Raises `OSError`."""
    colours = PALETTES["light"]
    legend = "".join(
        f'<tspan dx="16" fill="{_colour(number)}">{escape(name)}</tspan>' for number, name in enumerate(others)
    )
    height = len(charts) * HEIGHT + TOP
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" '
        f'font-size="12" fill="{colours.ink}">',
        f'<rect width="{WIDTH}" height="{height}" fill="{colours.ground}"/>',
        f'<text x="{LEFT}" y="24" font-size="16">{escape(title)}{legend}</text>',
    ]
    for number, (one, traces, view, y) in enumerate(charts):
        parts.append(f'<g transform="translate(0 {TOP + number * HEIGHT})">')
        parts += _chart(one, traces, view, x, y)
        parts.append("</g>")
    file = _file(folder, stage, "svg")
    write_atomic(file, "\n".join([*parts, "</svg>\n"]))
    return file


def _colour(number: int) -> str:
    """Of another run's lines and name."""
    return str(getattr(PALETTES["light"], OVERLAY_TONES[number % len(OVERLAY_TONES)]))


def _chart(one: Chart, traces: list[Trace], view: View, x: Range, y: Range | None) -> list[str]:
    colours = PALETTES["light"]
    wide, high = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    places = [x.at(number / COLUMNS) for number in range(COLUMNS + 1)]
    lines: list[tuple[list[tuple[float, float]], str, float]] = []
    for number, trace in reversed(list(enumerate(traces))):
        edges = [trace.ways.back(view.unit, place) for place in places]
        points = zigzag(trace, edges, view.unit)
        smooth = [(trace.ways.there(view.unit, step), value)
                  for step, value in (trace.curve.smooth(edges, view.strength) if view.strength else [])]  # fmt: skip
        smooth = smooth if len(smooth) >= SMOOTHABLE else []
        if number:
            lines.append((smooth or points, _colour(number - 1), 1.2))
        else:
            lines.append((points, colours.raw if smooth else colours.accent, 0.8 if smooth else 1.4))
            lines += [(smooth, colours.accent, 1.6)] if smooth else []
    values = [value for points, _, _ in lines for _, value in points if value > 0 or not view.log]
    parts = [f'<text x="{LEFT}" y="{TOP - 14}" font-weight="bold">{escape(one.title)}</text>']
    if not values:
        return [*parts, f'<text x="{LEFT}" y="{TOP + 20}">no finite value</text>']
    y = y or fitting(min(values), max(values), view.log)
    for share in (0, 0.25, 0.5, 0.75, 1):
        down, across = TOP + (1 - share) * high, LEFT + share * wide
        parts.append(f'<path d="M{LEFT} {down:.1f}H{LEFT + wide}" stroke="{colours.line}" stroke-width="0.6"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{down + 4:.1f}" text-anchor="end">{metric(y.at(share))}</text>')
        parts.append(f'<text x="{across:.1f}" y="{TOP + high + 18}" text-anchor="middle">'
                     f"{figure(view.unit, x.at(share))}</text>")  # fmt: skip
    parts.append(f'<svg x="{LEFT}" y="{TOP}" width="{wide}" height="{high}" viewBox="0 0 {wide} {high}">')
    for points, colour, thick in lines:
        at = [(x.share(a) * wide, (1 - y.share(b)) * high) for a, b in points]
        drawn = " ".join(f"{a:.1f},{max(-high, min(2 * high, b)):.1f}" for a, b in at if math.isfinite(b))
        parts.append(f'<polyline points="{drawn}" fill="none" stroke="{colour}" stroke-width="{thick}"/>')
    for step, _ in traces[0].curve.broken:
        across = x.share(traces[0].ways.there(view.unit, step)) * wide
        parts.append(f'<text x="{across:.1f}" y="{high - 3}" fill="{colours.bad}">!</text>')
    return [*parts, "</svg>"]
