"""The min/max pyramid under the charts: any floats, any lengths, any windows; no spike is lost."""

from __future__ import annotations

import math
from itertools import accumulate, chain

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tui import pyramid
from tui.pyramid import Curve, Pyramid

anything = st.floats(allow_nan=True, allow_infinity=True)
portions = st.lists(st.lists(anything, max_size=700), max_size=5)


@pytest.fixture(params=[1 << 17, 64], ids=["whole", "halved"], autouse=True)
def limit(request, monkeypatch) -> int:
    """Once with room for every point, once with so little that neighbours are bundled again and again."""
    monkeypatch.setattr(pyramid, "LIMIT", request.param)
    return request.param


def fed(portions: list[list[float]]) -> tuple[Pyramid, list[tuple[float, float]]]:
    """A pyramid and the finite points it was given, at steps 1, 2, 3, …"""
    tower, points, step = Pyramid(), [], 0
    for values in portions:
        steps = [float(step + number) for number in range(1, len(values) + 1)]
        tower.extend(steps, values)
        points += [(x, y) for x, y in zip(steps, values, strict=True) if math.isfinite(y)]
        step += len(values)
    return tower, points


def even(low: float, high: float, n: int) -> list[float]:
    return [low + (high - low) * number / n for number in range(n + 1)]


@settings(max_examples=80, deadline=None)
@given(portions, st.integers(1, 90), st.floats(0, 1), st.floats(0, 1))
def test_every_point_lies_in_exactly_one_column(portions, columns, a, b) -> None:
    tower, points = fed(portions)
    curve = tower.curve()
    total = sum(map(len, portions))
    assert curve.count == total and curve.lost == total - len(points)
    low, high = sorted((a * (total + 1), b * (total + 1)))
    found = curve.columns(even(0, total + 1, columns))
    assert sum(column.count for column in found) == len(points)
    assert [column.step for column in found] == sorted(column.step for column in found)
    if points:
        ys = [y for _, y in points]
        assert min(column.low for column in found) == min(ys) and max(column.high for column in found) == max(ys)
        assert all(column.low <= column.mean <= column.high or math.isclose(column.mean, column.low, rel_tol=1e-9)
                   or math.isclose(column.mean, column.high, rel_tol=1e-9) for column in found)  # fmt: skip
    part = curve.columns(even(low, high, columns)) if high > low else []
    inside = [y for x, y in points if low <= x <= high]
    if pyramid.LIMIT > 64 and high > low:  # the window's own extremes, exact while no neighbours are bundled
        assert sum(column.count for column in part) == len(inside)
        assert {min(c.low for c in part), max(c.high for c in part)} == {min(inside), max(inside)} if inside else True


@settings(max_examples=40, deadline=None)
@given(portions, portions, st.integers(0, 2000))
def test_cut_and_go_on_is_as_if_the_rest_had_never_been(first, then, step) -> None:
    tower, _ = fed(first)
    given_away = tower.curve()
    before = given_away.columns(even(0, 4000, 50))
    tower.cut(step)
    kept = [values for values in [list(chain.from_iterable(first))[:step]] if values]
    at = float(min(step, sum(map(len, first))))
    rest = list(chain.from_iterable(then))
    tower.extend([at + number for number in range(1, len(rest) + 1)], rest)
    fresh, points = fed([*kept, rest])
    if pyramid.LIMIT > 64:
        assert tower.curve().columns(even(0, 4000, 50)) == fresh.curve().columns(even(0, 4000, 50))
        assert tower.curve().count == fresh.curve().count and tower.curve().lost == fresh.curve().lost
    assert given_away.columns(even(0, 4000, 50)) == before
    finite = {y for _, y in points}
    assert all(column.low in finite and column.high in finite for column in tower.curve().columns(even(0, 4000, 9)))


def test_points_that_come_one_by_one_are_as_if_they_had_come_at_once(limit: int) -> None:
    """Also those that fill it to the brim."""
    xs = [float(x) for x in range(limit + 7)]
    tower, whole = Pyramid(), Pyramid()
    tower.extend(xs[: limit - 3], xs[: limit - 3])
    for x in xs[limit - 3 :]:
        tower.extend([x], [x])
    whole.extend(xs, xs)
    edges = even(0, limit, 40)
    assert tower.curve().columns(edges) == whole.curve().columns(edges)
    assert tower.curve().count == whole.curve().count == limit + 7


def test_a_spike_survives_any_length_and_any_window() -> None:
    tower = Pyramid()
    n = 200_000 if pyramid.LIMIT > 64 else 3_000
    tower.extend([float(x) for x in range(n)], [1e6 if x == n // 3 else 2.0 for x in range(n)])
    curve = tower.curve()
    assert curve.drawn <= pyramid.LIMIT + n // pyramid.LIMIT * 2
    for columns in (1, 7, 60, 400):
        assert sum(column.high == 1e6 for column in curve.columns(even(0, n, columns))) == 1


def test_smoothing_is_the_moving_average_where_points_are_drawn_one_by_one() -> None:
    values = [float((x * 7919) % 13) for x in range(50)]
    tower, _ = fed([values])
    if pyramid.LIMIT <= 64:
        return
    found = tower.curve().smooth(even(1, 50, 60), 0.9)
    plain = list(accumulate(values, lambda e, y: 0.9 * e + 0.1 * y, initial=0.0))[1:]
    wanted = [e / (1 - 0.9**number) for number, e in enumerate(plain, 1)]
    assert [step for step, _ in found] == [float(x) for x in range(1, 51)]
    assert all(math.isclose(got, want, rel_tol=1e-9) for (_, got), want in zip(found, wanted, strict=True))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=3000), st.sampled_from([0.5, 0.9, 0.99, 0.999]))
def test_a_smoothed_line_stays_between_the_extremes(values, strength) -> None:
    tower, _ = fed([values])
    n = len(values)
    for low, high in ((0, n + 1), (n / 2, n)):
        for _, y in tower.curve().smooth(even(low, high, 40), strength):
            assert min(values) - 1e-6 <= y <= max(values) + 1e-6


def test_broken_readings_are_kept_by_step_and_counted() -> None:
    tower = Pyramid()
    tower.extend([1.0, 2.0, 3.0, 4.0], [1.0, math.nan, math.inf, 2.0])
    curve = tower.curve()
    assert [step for step, _ in curve.broken] == [2.0, 3.0] and curve.lost == 2 and curve.last == 2.0
    assert curve.near(2.9) == (4.0, 2.0) and curve.near(0) == (1.0, 1.0) and curve.span == (1.0, 4.0)
    tower.cut(2)
    assert tower.curve().lost == 1 and tower.curve().span == (1.0, 1.0) and curve.lost == 2
    assert Curve().near(3) is None and Curve().columns([0, 1]) == [] and tower.curve() != curve
