"""Curves that stay small: a bounded min/max envelope of any number of points, so that no spike is ever lost.

`Envelope.follow(series)` takes in what is new in a `history.Series`; `curve()` gives an immutable `Curve` that may
cross threads; `thin()` reduces a curve to two points a column for the plot.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from picollm.run.history import Series

BUCKETS = 512
EMA_BETA = 0.95


@dataclass(frozen=True)
class Curve:
    """Points in step order: extremes (`xs`, `ys`), the smoothed line (`ema_xs`, `ema_ys`), and the newest reading."""

    xs: tuple[float, ...] = ()
    ys: tuple[float, ...] = ()
    ema_xs: tuple[float, ...] = ()
    ema_ys: tuple[float, ...] = ()
    count: int = 0
    last: float = math.nan
    broken: int = 0


class _Bucket:
    __slots__ = ("ema", "high", "high_x", "low", "low_x", "x")

    def __init__(self, x: float, y: float, ema: float) -> None:
        self.x = self.low_x = self.high_x = x
        self.low = self.high = y
        self.ema = ema

    def merge(self, other: _Bucket) -> None:
        """Take in the bucket that follows this one."""
        if other.low < self.low:
            self.low, self.low_x = other.low, other.low_x
        if other.high > self.high:
            self.high, self.high_x = other.high, other.high_x
        self.x, self.ema = other.x, other.ema


class Envelope:
    """At most `BUCKETS` (min, max) pairs; when full, neighbours merge and each bucket holds twice as many points."""

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self._buckets: list[_Bucket] = []
        self._per_bucket = 1
        self._in_last = 0
        self._seen = 0
        self._mark: tuple[int, float] | None = None
        self._ema = 0.0
        self._weight = 0.0
        self._finite = 0
        self._last = math.nan

    def follow(self, series: Series) -> bool:
        """Take in new points; a series that was cut back (a resume) is read again. True when anything changed."""
        total = len(series.steps)
        rewound = self._seen > total or (
            self._seen and self._mark != (series.steps[self._seen - 1], series.times[self._seen - 1])
        )
        if rewound:
            self._clear()
        if self._seen == total:
            return bool(rewound)
        for index in range(self._seen, total):
            self._add(series.steps[index], series.values[index])
        self._seen = total
        self._mark = (series.steps[-1], series.times[-1])
        return True

    def _add(self, x: float, y: float) -> None:
        self._last = y
        if not math.isfinite(y):
            return
        self._finite += 1
        self._ema = EMA_BETA * self._ema + (1 - EMA_BETA) * y
        self._weight = EMA_BETA * self._weight + (1 - EMA_BETA)
        point = _Bucket(float(x), y, self._ema / self._weight)
        if self._buckets and self._in_last < self._per_bucket:
            self._buckets[-1].merge(point)
            self._in_last += 1
            return
        self._buckets.append(point)
        self._in_last = 1
        if len(self._buckets) > BUCKETS:
            merged = []
            for index in range(0, len(self._buckets), 2):
                bucket = self._buckets[index]
                if index + 1 < len(self._buckets):
                    bucket.merge(self._buckets[index + 1])
                merged.append(bucket)
            self._in_last = self._in_last if len(self._buckets) % 2 else self._per_bucket + self._in_last
            self._buckets = merged
            self._per_bucket *= 2

    def curve(self) -> Curve:
        """What there is now, as values that nobody changes any more."""
        xs: list[float] = []
        ys: list[float] = []
        for bucket in self._buckets:
            pair = [(bucket.low_x, bucket.low), (bucket.high_x, bucket.high)]
            for x, y in sorted(set(pair)):
                xs.append(x)
                ys.append(y)
        return Curve(
            tuple(xs),
            tuple(ys),
            tuple(bucket.x for bucket in self._buckets),
            tuple(bucket.ema for bucket in self._buckets),
            self._seen,
            self._last,
            self._seen - self._finite,
        )


def thin(
    xs: tuple[float, ...], ys: tuple[float, ...], columns: int, reach: float | None = None
) -> tuple[list[float], list[float]]:
    """At most two finite points a column, the lowest and the highest, so that spikes survive; order is by x.

    Columns span from the first point to the last, or to `reach` when the axis goes on.
    """
    points = [(x, y) for x, y in zip(xs, ys, strict=True) if math.isfinite(x) and math.isfinite(y)]
    columns = max(1, columns)
    if len(points) <= 2 * columns:
        return [x for x, _ in points], [y for _, y in points]
    first, last = points[0][0], max(points[-1][0], reach if reach is not None else points[-1][0])
    width = (last - first) / columns or 1.0
    kept: dict[int, list[tuple[float, float]]] = {}
    for point in points:
        column = min(columns - 1, max(0, int((point[0] - first) / width)))
        pair = kept.setdefault(column, [point, point])
        if point[1] < pair[0][1]:
            pair[0] = point
        if point[1] > pair[1][1]:
            pair[1] = point
    out = [point for column in sorted(kept) for point in sorted(set(kept[column]))]
    return [x for x, _ in out], [y for _, y in out]
