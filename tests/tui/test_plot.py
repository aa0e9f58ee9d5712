"""Curves and the plotext wrapper: any floats, any size."""

from __future__ import annotations

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from picollm.run.history import Series
from tui.curves import BUCKETS, Envelope, thin
from tui.figures import bar, clock, metric, size, sparkline
from tui.widgets import plot
from tui.widgets.train import choose

anything = st.floats(allow_nan=True, allow_infinity=True)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(anything, anything), max_size=60), st.integers(0, 130), st.integers(0, 40))
def test_any_floats_draw_at_any_size(points, width, height) -> None:
    xs, ys = tuple(x for x, _ in points), tuple(y for _, y in points)
    lines = plot.draw([plot.Line(xs, ys)], width, height, live=height % 2 == 0)
    assert len(lines) == height
    assert all(line.cell_len <= max(width, 0) for line in lines)


@settings(max_examples=60, deadline=None)
@given(st.lists(anything, max_size=200), st.integers(1, 20))
def test_thinning_keeps_the_extremes(ys, columns) -> None:
    xs = tuple(float(n) for n in range(len(ys)))
    _, kept = thin(xs, tuple(ys), columns)
    finite = [y for y in ys if math.isfinite(y)]
    assert len(kept) <= max(2 * columns, 0)
    if finite:
        assert min(kept) == min(finite) and max(kept) == max(finite)
    else:
        assert kept == []


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(anything, max_size=400), max_size=8))
def test_envelope_keeps_spikes_and_counts_what_is_broken(portions) -> None:
    series, envelope = Series(), Envelope()
    step = 0
    for portion in portions:
        for value in portion:
            series.add(step, value, float(step))
            step += 1
        envelope.follow(series)
    curve = envelope.curve()
    finite = [value for value in series.values if math.isfinite(value)]
    assert len(curve.xs) <= 2 * BUCKETS and list(curve.xs) == sorted(curve.xs)
    assert curve.count == step and curve.broken == step - len(finite)
    if finite:
        assert (min(curve.ys), max(curve.ys)) == (min(finite), max(finite))


def test_a_long_series_stays_small_and_its_spike_survives() -> None:
    series, envelope = Series(), Envelope()
    for step in range(50_000):
        series.add(step, 1e6 if step == 31_337 else 2.0, float(step))
    envelope.follow(series)
    curve = envelope.curve()
    assert len(curve.xs) <= 2 * BUCKETS and max(curve.ys) == 1e6
    assert 1e6 in thin(curve.xs, curve.ys, 60)[1]


def test_a_resume_replaces_the_points_after_it() -> None:
    series, envelope = Series(), Envelope()
    for step in range(100):
        series.add(step, 5.0, 1.0)
    envelope.follow(series)
    series.cut(49)
    for step in range(50, 120):
        series.add(step, 1.0, 2.0)
    assert envelope.follow(series)
    curve = envelope.curve()
    assert curve.count == 120 and curve.ys[-1] == 1.0 and list(curve.xs) == sorted(curve.xs)
    assert not envelope.follow(series)


def test_nothing_finite_is_blank() -> None:
    lines = plot.draw([plot.Line((1.0, 2.0), (math.nan, math.inf))], 40, 8)
    assert [line.plain for line in lines] == [""] * 8


@given(anything)
def test_figures_take_any_number(value: float) -> None:
    for words in (clock(value), metric(value), size(value), bar(value, 10), sparkline([value, 1.0], 8)):
        assert isinstance(words, str)
    assert len(bar(value, 10)) == 10
    assert len(metric(value)) <= 10


def test_clock_reads_well() -> None:
    assert [clock(s) for s in (None, 7, 723, 3723, 183_600)] == ["–", "0:07", "12:03", "1:02:03", "2d 03:00"]


def test_the_charts_of_rl_and_no_curve_for_the_ends_of_an_interval() -> None:
    names = ["reward", "entropy", "tokens", "lr", "useful", "heldout/accuracy", "heldout/low", "heldout/high",
             "sampled/pass_at_1", "sampled/low_1", "sampled/high_1", "sampled/pass_at_4",
             "sampled/pass_at_8", "sampled/low_8"]  # fmt: skip
    titles = {series: title for title, series, _ in choose(names)}
    assert not any("low" in series or "high" in series for series in titles)
    assert titles["entropy"].startswith("Entropy") and titles["reward"] == "Reward" and titles["useful"] == "useful"
    assert "pass_at_8" in titles["sampled/pass_at_8"]


def test_a_mark_is_a_line_at_its_step() -> None:
    ys = tuple([1.0] * 100)
    line = plot.Line(tuple(float(x) for x in range(100)), ys)
    plain, marked = ("\n".join(t.plain for t in plot.draw([line], 60, 12, marks=marks)) for marks in ((), (50.0,)))
    assert plain != marked and plot.draw([line], 60, 12, marks=(500.0,)) == plot.draw([line], 60, 12)
