from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from picollm.run import curves

VALUES = st.lists(st.floats(-1e12, 1e12) | st.sampled_from([math.nan, math.inf, -math.inf, 0.0]), max_size=50)


def test_a_spike_survives_thinning():
    steps, values = list(range(1, 100_001)), [2.0] * 100_000
    values[77_777], values[5_000] = 9.5, 0.5
    kept = curves.points(steps, values)
    assert (77_778, 9.5) in kept and (5_001, 0.5) in kept and kept[-1][0] == 100_000 and len(kept) <= 602
    assert [step for step, _ in kept] == sorted({step for step, _ in kept})


def test_the_ends_stay_and_cost_no_extreme():
    steps, values = list(range(1, 100_001)), [2.0] * 100_000
    values[5], values[9], values[-9], values[-5] = 0.5, 9.5, 0.25, 9.75
    kept = curves.points(steps, values)
    assert kept[:3] == [(1, 2.0), (6, 0.5), (10, 9.5)] and kept[-3:] == [(99_992, 0.25), (99_996, 9.75), (100_000, 2.0)]
    assert curves.lines(steps, values)[-1].split() == ["1", "100000"]


def test_a_falling_curve_is_drawn_from_the_upper_left_to_the_lower_right():
    drawn = curves.lines(list(range(1, 101)), [100.0 - n for n in range(100)], width=20, height=5)
    assert drawn[0].startswith("100 ┤") and drawn[4].startswith("  1 ┤") and drawn[5].split() == ["1", "100"]
    rows = [line.partition("┤")[2] for line in drawn[:5]]
    inked = [[i for i, char in enumerate(row) if char != "\u2800"] for row in rows]
    assert inked[0][0] == 0 and inked[4][-1] == 19 and all(a[0] < b[0] for a, b in pairwise(inked))
    assert {len(row) for row in rows} == {20}


def test_a_marked_step_has_a_line_of_its_own():
    steps, values = list(range(1, 101)), [5.0] * 50 + [1.0] * 50
    plain, marked = curves.lines(steps, values, 20, 5), curves.lines(steps, values, 20, 5, marks=[100, 101])
    assert [row[:-1] for row in plain[:5]] == [row[:-1] for row in marked[:5]] and plain[5:] == marked[5:]
    assert all(row[-1] != "\u2800" for row in marked[:5]) and plain[0][-1] == "\u2800"
    found = ET.fromstring(curves.svg("loss", steps, values, marks=[(100, "spike <1>"), (101, "beyond")]))
    [line] = [line for line in found.iter("line") if line.attrib["class"] == "mark"]
    assert line.attrib["x1"] == line.attrib["x2"] == f"{curves.SVG_WIDTH - curves.RIGHT:.1f}"
    assert "".join(line.itertext()) == "100: spike <1>"


@given(VALUES, st.lists(st.integers(-5, 60), max_size=4))
def test_any_values_can_be_drawn(values, marks):
    steps = list(range(len(values)))
    assert all(len(line) < 100 for line in curves.lines(steps, values, marks=marks))
    found = ET.fromstring(curves.svg("a <b> & c", steps, values, marks=[(mark, "why") for mark in marks]))
    assert "a <b> & c" in "".join(found.itertext())
    for element in found.iter("polyline"):
        places = [tuple(map(float, point.split(","))) for point in element.attrib["points"].split()]
        assert all(0 <= x <= curves.SVG_WIDTH and 0 <= y <= curves.SVG_HEIGHT for x, y in places)


@given(st.floats(-1e9, 1e9), st.floats(1e-3, 1e9))
def test_ticks_are_few_and_within(low, width):
    found = curves.ticks(low, low + width)
    assert 1 <= len(found) <= 6 and all(low <= tick <= low + width for tick in found)


def test_numbers_are_short():
    assert [curves.number(v) for v in (1234.0, 0.47123, 3.14e-5, 0.0, -2.5, 123456.7)] == [
        "1,234", "0.4712", "3.14e-05", "0", "-2.5", "1.23e+05",
    ]  # fmt: skip
