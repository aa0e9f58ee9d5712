"""Charts: any floats, any sizes; nothing is hidden, and nothing moves that does not have to."""

from __future__ import annotations

import csv
import math
import xml.etree.ElementTree as ET
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st
from textual.strip import Strip

from tui import chart_export, state
from tui.axis import Pace, Range, Ways, fitting
from tui.pyramid import Pyramid
from tui.widgets import canvas, chart
from tui.widgets.chart import Mark, Picture, Trace, View, Words
from tui.widgets.chart_list import Chart, choose
from tui.widgets.looks import STRENGTHS, Look

anything = st.floats(allow_nan=True, allow_infinity=True)
real = st.floats(allow_nan=False, allow_infinity=False)


def a_trace(values: list[float], first: int = 1, letter: str = "") -> Trace:
    tower, pace = Pyramid(), Pace()
    steps = [float(first + number) for number in range(len(values))]
    if steps:
        tower.extend(steps, values)
        pace.extend(steps, [1000 + 2 * step for step in steps], [100.0] * len(steps), [2.0] * len(steps))
    return Trace(tower.curve(), pace.ways(), letter)


def composed(drawn: Picture, traces: list[Trace], view: View, words: Words, cross: float | None) -> list[Strip]:
    """A whole chart, as the screen shows it."""
    return [chart.title(drawn, traces, view, words, cross), *chart.body(drawn, traces, view, words, cross)]


def rows_of(trace: Trace, view: View, cross: float | None = None, **words) -> list[str]:
    strips = composed(chart.picture([trace], view), [trace], view, Words("Loss", **words), cross)
    return [strip.text for strip in strips]


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(anything, anything), max_size=40), st.integers(0, 90), st.integers(0, 30))
def test_a_canvas_has_exactly_its_size(points, width, height) -> None:
    points = sorted(points, key=lambda point: -math.inf if math.isnan(point[0]) else point[0])
    drawn = canvas.draw([canvas.Line(points, 1), canvas.Line(points[:3], 7)], width, height)
    assert len(drawn.rows) == len(drawn.layers) == height
    assert all(len(row) == width for row in (*drawn.rows, *drawn.layers))
    assert {layer for row in drawn.layers for layer in row} <= {0, 1, 7}


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.floats(-3, 3), st.floats(-3, 3)), max_size=30))
def test_clipping_keeps_what_is_inside_and_nothing_else(points) -> None:
    points = sorted(points)
    strokes = canvas.clip(points)
    kept = [point for stroke in strokes for point in stroke]
    assert all(0 <= x <= 1 and 0 <= y <= 1 for x, y in kept)
    assert {(x, y) for x, y in points if 0 <= x <= 1 and 0 <= y <= 1} <= set(kept)


@settings(max_examples=60, deadline=None)
@given(st.lists(anything, max_size=300), st.integers(10, 100), st.integers(4, 30),
       st.sampled_from(["step", "time", "tokens"]), st.sampled_from(STRENGTHS), st.booleans(),
       st.none() | st.tuples(real, real), st.none() | st.floats(0, 1))  # fmt: skip
def test_any_floats_make_a_chart_of_its_size(values, width, height, unit, strength, log, y, cross) -> None:
    trace, other = a_trace(values), a_trace(values[::-1], 5, "a")
    by_hand = Range(*sorted(y)) if y and y[0] != y[1] and not log else None
    view = View(width, height, Range(0.0, max(1.0, 3.0 * len(values))), unit, strength, log, by_hand)
    drawn = chart.picture([trace, other], view)
    strips = composed(drawn, [trace, other], view, Words("Loss", True, (Mark(3, "1", "second"),)), cross)
    assert len(strips) == view.rows + 3
    assert all(strip.cell_length <= max(width, chart.LABELS + 1) for strip in strips)


@given(real, real, st.booleans(), st.floats(-10, 10))
def test_a_fitting_range_holds_what_it_is_for(a, b, log, step) -> None:
    low, high = sorted((a, b))
    found = fitting(low, high, log)
    assert found.low < found.high and math.isfinite(found.low) and math.isfinite(found.high)
    if not log and high < 1e299 and low > -1e299:
        near = 1e-9 * max(abs(low), abs(high))
        assert found.low <= low + near and found.high >= high - near
    again = fitting(low, high, log, found)
    assert again == found
    assert found.moved(step).low < found.moved(step).high and found.zoomed(2.0).low < found.zoomed(2.0).high


def test_the_axis_stays_while_a_curve_grows_and_follows_when_it_has_shrunk() -> None:
    first = fitting(2.0, 8.0)
    assert fitting(2.2, 7.5, before=first) == first and fitting(2.0, 9.5, before=first) != first
    assert fitting(2.0, 3.0, before=first).high < 4


def labels_of(y: Range, rows: int = 9) -> list[str]:
    return [label[:-1].strip() for label in chart._labels(rows, y) if label.endswith("┤")][::-1]


@given(st.floats(-1e300, 1e300) | st.floats(-1, 1) | st.floats(-1e5, 1e5))
def test_a_label_is_the_value_and_not_the_beginning_of_one(value) -> None:
    words = chart._short(value)
    read = float(words.rstrip("kMBT")) * {"k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}.get(words[-1], 1.0)
    assert len(words) < chart.LABELS and math.isclose(read, value, rel_tol=0.34)


@given(real, real, st.booleans(), st.integers(1, 40))
def test_labels_fill_their_cells(a, b, log, rows) -> None:
    found = chart._labels(rows, fitting(min(a, b), max(a, b), log))
    assert [len(label) for label in found] == [chart.LABELS] * rows and any(label.endswith("┤") for label in found)


def test_a_constant_has_a_range_that_can_be_read() -> None:
    assert fitting(0.0, 0.0) == Range(0.0, 1.0) and labels_of(fitting(0.0, 0.0)) == ["0", "1"]
    assert labels_of(Range(-1e-9, 1e-9)) == ["-1e-9", "0", "1e-9"]
    small = fitting(1e-12, 1e-12)
    assert 0.9e-12 < small.low < 1e-12 < small.high < 1.1e-12


def test_ticks_of_a_range_chosen_by_hand_and_of_a_log_axis_are_round() -> None:
    assert labels_of(Range(1.2345, 2.718)) == ["1.5", "2", "2.5"]
    assert labels_of(fitting(0.3, 70.0, True)) == ["1", "10", "100"]
    assert labels_of(fitting(1e-7, 3.0, True)) == ["1e-7", "1e-5", "0.001", "0.1"]
    assert labels_of(Range(2.1, 2.9731, True), 12) == ["2.2", "2.4", "2.6", "2.8"]
    assert labels_of(fitting(2.3, 2.30002)) == ["2.3", "2.30002"]


def test_a_spike_of_one_step_is_seen_and_what_is_not_finite_is_marked() -> None:
    values = [2.0 + 0.001 * (x % 7) for x in range(5000)]
    flat = rows_of(a_trace(values), View(60, 14, Range(0.0, 5000.0)))
    values[3210], values[1000] = 30.0, math.nan
    spiked = rows_of(a_trace(values), View(60, 14, Range(0.0, 5000.0)))
    assert flat != spiked and sum(bool(row[8:].strip("⠀ ")) for row in spiked[1:-2]) > 8
    assert "1 not finite" in spiked[0] and spiked[-2].index("!") == 8 + round(1001 / 5000 * 51)


def test_a_spike_above_a_range_chosen_by_hand_has_an_arrow() -> None:
    values = [2.0] * 400
    values[200] = 50.0
    rows = rows_of(a_trace(values), View(60, 12, Range(0.0, 400.0), y=Range(1.0, 3.0)))
    assert "▲" in rows[1] and "▲" not in "".join(rows[2:])


def test_a_log_axis_says_what_it_cannot_show() -> None:
    rows = rows_of(a_trace([0.0, 0.1, 1.0, 10.0]), View(60, 12, Range(0.0, 4.0), log=True))
    assert "1 not above 0" in rows[0] and any("10┤" in row for row in rows)


def test_the_crosshair_reads_the_value_and_marks_stand_on_the_axis() -> None:
    trace = a_trace([float(x) for x in range(1, 101)])
    rows = rows_of(trace, View(60, 12, Range(0.0, 100.0)), cross=0.5, marks=(Mark(75, "1", "second"),))
    assert "50" in rows[0] and all(row[8 + 26] == "│" or row[8 + 26] > "⠀" for row in rows[1:-2])
    assert rows[-2][8 + round(0.75 * 51)] == "1" and "50" in rows[-1]


def test_of_two_marks_in_one_cell_the_later_is_seen_and_notes_are_cut_at_a_word() -> None:
    trace = a_trace([float(x) for x in range(1, 101)])
    note = " 1 step 50: loss spiked to 7.20 where pretraining ended at 3.74"
    for width in (30, 45, len(note)):
        rows = rows_of(trace, View(width, 12, Range(0.0, 1000.0)), notes=((note, "second"),),
                       marks=(Mark(51, "2", "second"), Mark(50, "1", "second")))  # fmt: skip
        assert "1" in rows[-3] and "2" not in rows[-3] and len(rows[-1]) <= width
        kept = rows[-1].removesuffix("…")
        assert note.startswith(kept) and (kept == note) == (width == len(note))
        assert kept == note or note[len(kept)] == " "


def test_another_runs_line_ends_in_its_letter() -> None:
    mine, other = a_trace([2.0] * 50), a_trace([3.0] * 50, letter="a")
    view = View(60, 12, Range(0.0, 100.0), strength=0.9)
    strips = composed(chart.picture([mine, other], view), [mine, other], view, Words("Loss"), 0.4)
    assert "a 3" in strips[0].text and any("a" in strip.text[8:] for strip in strips[1:-2])


def test_steps_become_tokens_and_time_and_come_back() -> None:
    ways = a_trace([1.0] * 100).ways
    assert ways.units() == ("step", "tokens", "time")
    assert ways.there("tokens", 50) == 50 * 200 and ways.there("time", 50) == 100
    for unit in ("step", "tokens", "time"):
        for step in (0.0, 1.0, 33.3, 100.0, 250.0):
            assert math.isclose(ways.back(unit, ways.there(unit, step)), step, abs_tol=1e-9)
    assert Ways().units() == ("step",) and Ways().there("time", 7) == 7


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.floats(0, 100), min_size=1, max_size=30), min_size=1, max_size=6))
def test_time_at_work_ascends_whatever_clocks_say(portions) -> None:
    pace, step = Pace(), 0
    for times in portions:
        pace.extend([step + number for number in range(1, len(times) + 1)], times, None, None)
        step += len(times)
        pace.pause()
    ways = pace.ways()
    places = [ways.there("time", x) for x in range(step + 2)]
    assert places == sorted(places) and "tokens" not in ways.units()


def test_time_between_attempts_is_not_time_at_work() -> None:
    pace = Pace()
    pace.extend([1, 2, 3], [10.0, 12.0, 14.0], None, [2.0, 2.0, 2.0])
    pace.pause()
    pace.cut(2)
    pace.extend([3, 4], [9000.0, 9002.0], None, [2.0, 2.0])
    assert [pace.ways().there("time", step) for step in (1, 2, 3, 4)] == [2.0, 4.0, 6.0, 8.0]


def test_the_charts_of_rl_and_no_curve_for_the_ends_of_an_interval() -> None:
    names = ["reward", "entropy", "tokens", "lr", "useful", "heldout/accuracy", "heldout/low", "heldout/high",
             "sampled/pass_at_1", "sampled/low_1", "sampled/high_1", "sampled/pass_at_4",
             "sampled/pass_at_8", "sampled/low_8"]  # fmt: skip
    titles = {one.series: one.title for one in choose(names)}
    assert not any("low" in series or "high" in series for series in titles)
    assert titles["entropy"].startswith("Entropy") and titles["reward"] == "Reward" and titles["useful"] == "useful"
    assert "pass_at_8" in titles["sampled/pass_at_8"]


def test_a_run_that_ended_before_the_crosshair_has_no_value_there() -> None:
    trace, other = a_trace([float(step) for step in range(100)]), a_trace([7.0] * 10, letter="a")
    view = View(60, 12, Range(0.0, 100.0))
    picture = chart.picture([trace, other], view)
    there = [composed(picture, [trace, other], view, Words("Loss"), cross)[0].text for cross in (0.05, 0.5)]
    assert "a 7" in there[0] and "a –" in there[1]


def test_a_window_follows_the_newest_step_and_the_crosshair_takes_it_along() -> None:
    look = Look(window=Range(100.0, 200.0))
    look.follow(190.0)
    assert look.window == Range(100.0, 200.0)
    look.follow(201.0)
    assert look.window == Range(125.0, 225.0)
    look.follow(900.0)  # somebody looks at the past
    assert look.window == Range(125.0, 225.0)
    look.move_cross(-1, Range(0.0, 100.0), 51, 80.0)
    assert look.cross == 80.0
    look.move_cross(-1, Range(0.0, 100.0), 51, 80.0)
    assert look.cross == 78.0


def test_no_window_leaves_the_run() -> None:
    look = Look(window=Range(10.0, 20.0), cross=10.0)
    for _ in range(8):
        look.move_cross(-2, look.window, 11, 200.0)
    assert look.window == Range(0.0, 10.0) and look.cross == 0.0
    assert look.moved(Range(180.0, 220.0), 0.25, 200.0) == Range(180.0, 220.0)
    assert look.moved(Range(100.0, 140.0), 0.25, 200.0) == Range(110.0, 150.0)


def test_exports_hold_every_point_and_draw_every_chart(tmp_path) -> None:
    loss, bpb = [3.0, math.nan, 2.0, 1.0], [1.5]
    trace, other = a_trace(loss), a_trace(bpb, 4)
    detail = state.Detail(stage="sft", curves={"loss": trace.curve, "val/bpb": other.curve}, ways=trace.ways)
    file = chart_export.csv(tmp_path / "exports", "sft", detail, ["loss", "val/bpb"])
    rows = list(csv.DictReader(file.read_text().splitlines()))
    assert [row["loss"] for row in rows] == ["3.0", "nan", "2.0", "1.0"] and rows[3]["val/bpb"] == "1.5"
    assert [row["step"] for row in rows] == ["1", "2", "3", "4"] and rows[3]["trained_tokens"] == "800"
    again = chart_export.csv(tmp_path / "exports", "sft", detail, ["loss"])
    assert again != file and [path.suffix for path in (tmp_path / "exports").iterdir()] == [".csv", ".csv"]
    longer = a_trace([9.0] * 5)
    over = replace(detail, others=(("b", longer.ways, {"loss": longer.curve}),))
    rows = list(csv.DictReader(chart_export.csv(tmp_path, "sft", over, ["loss", "val/bpb"]).read_text().splitlines()))
    assert [row["b: loss"] for row in rows] == ["9.0"] * 5 and rows[4]["loss"] == "" and "b: val/bpb" not in rows[0]
    view = View(80, 12, Range(0.0, 10.0), strength=0.9)
    charts = [(Chart("Loss <raw>", "loss", True), [trace], view, None), (Chart("bpb", "val/bpb"), [other], view, None)]
    picture = ET.parse(chart_export.svg(tmp_path / "exports", "sft", "run & stage", charts, view.x)).getroot()
    lines = picture.findall(".//{http://www.w3.org/2000/svg}polyline")
    assert len(lines) == 2 and all(line.get("points") for line in lines)
