"""Curves that stay small and quick at any length: a min/max pyramid of the points of one metric.

A `Pyramid` is fed by the reader's thread. Its ground floor holds the points (up to `LIMIT` of them, after that the
lows, highs and means of 2, 4, 8 … neighbours), each floor above the low, high and mean of `FAN` neighbours below. All
of it only ever grows at the end, and is replaced rather than changed where points become void; a `Curve` therefore
needs no copy: it is the pyramid up to a count, and may cross threads.

Reading a window of n columns looks at a few values a column whatever the length of the run, and no spike is lost: every
point lies in exactly one column, whose lowest and highest value are exact.
"""

from __future__ import annotations

import itertools
import math
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

FAN = 64
LIMIT = 1 << 17
MOST_BROKEN = 1024
_SERIAL = itertools.count(1)

Floor = tuple["array[float]", "array[float]", "array[float]"]
"""Lows, highs and means."""


@dataclass(frozen=True, slots=True)
class Column:
    """What lies between two edges: the step where it begins, the lowest, the highest and the mean value, and how many
    values there are."""

    step: float
    low: float
    high: float
    mean: float
    count: int


@dataclass(frozen=True, eq=False, slots=True)
class Curve:
    """A pyramid as it was when it had `count` readings. Equal to another one when it is the same state of the same
    pyramid. `broken` are the newest readings that were no finite number, as (step, value); `lost` counts them all."""

    serial: int = 0
    count: int = 0
    steps: array[float] = field(default_factory=lambda: array("d"))
    floors: tuple[Floor, ...] = ()
    size: int = 0
    stride: int = 1
    tail: tuple[tuple[float, float], ...] = ()
    last: float = math.nan
    last_step: float = math.nan
    broken: tuple[tuple[float, float], ...] = ()
    lost: int = 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Curve) and (self.serial, self.count) == (other.serial, other.count)

    def __hash__(self) -> int:
        return hash((self.serial, self.count))

    @property
    def drawn(self) -> int:
        """How many values there are to draw."""
        return self.size + len(self.tail)

    @property
    def span(self) -> tuple[float, float]:
        """First and last step that has a finite value; NaN where there is none."""
        first = self.steps[0] if self.size else self.tail[0][0] if self.tail else math.nan
        return first, self.tail[-1][0] if self.tail else self.steps[self.size - 1] if self.size else math.nan

    def points(self) -> Iterator[Column]:
        """Everything that is kept, one by one."""
        lows, highs, means = self.floors[0] if self.floors else (array("d"),) * 3
        for index in range(self.size):
            yield Column(self.steps[index], lows[index], highs[index], means[index], self.stride)
        for x, y in self.tail:
            yield Column(x, y, y, y, 1)

    def columns(self, edges: Sequence[float]) -> list[Column]:
        """What lies in [edge, next edge) for each that is not empty, and in the last up to and with its end.

        Where there are few points, each is a column of its own. Edges ascend, and are in steps.
        """
        if len(edges) < 2 or not self.drawn:
            return []
        begin = bisect_left(self.steps, edges[0], 0, self.size)
        end = bisect_right(self.steps, edges[-1], begin, self.size)
        rest = [Column(x, y, y, y, 1) for x, y in self.tail if edges[0] <= x <= edges[-1]]
        if end - begin + len(rest) <= 2 * (len(edges) - 1):
            lows, highs, means = self.floors[0] if self.floors else (array("d"),) * 3
            each = self.stride
            return [Column(self.steps[i], lows[i], highs[i], means[i], each) for i in range(begin, end)] + rest
        wide = (end - begin) / (len(edges) - 1)  # points a column
        level = 0
        while level + 1 < len(self.floors) and FAN ** (level + 1) * 3 <= wide:
            level += 1
        found = []
        at, stop = begin, begin
        for number in range(1, len(edges)):
            last = number == len(edges) - 1
            at, stop = stop, end if last else bisect_left(self.steps, edges[number], stop, end)
            if stop > at:
                found.append(Column(self.steps[at], *self._over(at, stop, level), (stop - at) * self.stride))
        return found + rest

    def _over(self, begin: int, end: int, level: int) -> tuple[float, float, float]:
        """Lowest, highest and mean of the points [begin, end): the whole blocks of a floor, and the ends below it."""
        low, high, total = math.inf, -math.inf, 0.0
        pieces = [(begin, end, 0)] if not level else self._split(begin, end, level)
        for first, stop, floor in pieces:
            lows, highs, means = self.floors[floor]
            low, high = min(low, min(lows[first:stop])), max(high, max(highs[first:stop]))
            total += _mean(means[first:stop]) * ((stop - first) * FAN**floor / (end - begin))
        return low, high, total

    def _split(self, begin: int, end: int, level: int) -> list[tuple[int, int, int]]:
        """[begin, end) on the ground as ranges of floors, none higher than `level`."""
        block = FAN**level
        first, stop = -(-begin // block), min(end // block, len(self.floors[level][0]))
        if first >= stop:
            return self._split(begin, end, level - 1) if level else [(begin, end, 0)] if end > begin else []
        pieces = [(first, stop, level)]
        if level:
            pieces += self._split(begin, first * block, level - 1) if begin < first * block else []
            pieces += self._split(stop * block, end, level - 1) if stop * block < end else []
        return pieces

    def near(self, step: float) -> tuple[float, float] | None:
        """The (step, value) nearest to `step`; the mean where neighbours stand together."""
        if not self.drawn:
            return None
        index = bisect_left(self.steps, step, 0, self.size)
        around = [(self.steps[i], self.floors[0][2][i]) for i in (index - 1, index) if 0 <= i < self.size]
        return min([*around, *self.tail], key=lambda point: abs(point[0] - step))

    def smooth(
        self, edges: Sequence[float], strength: float, columns: Sequence[Column] | None = None
    ) -> list[tuple[float, float]]:
        """The exponential moving average at the end of each column: e ← strength·e + (1 − strength)·y, free of the bias
        towards its beginning (divided by 1 − strength^n, as Adam's moments are). `columns`: those of `edges`, if known.

        It begins early enough before the window for what lies further back not to matter (its weight is below 1 %).
        Where a column holds many points it is taken over their means, n at a time with strength^n.
        """
        if len(edges) < 2 or not self.drawn or not 0 < strength < 1:
            return []
        memory = math.log(0.01) / math.log(strength)
        first = bisect_left(self.steps, edges[0], 0, self.size)
        begin = max(0, first - math.ceil(memory / self.stride))
        average, weight = 0.0, 0.0
        if begin < first:
            parts = max(1, min(64, math.ceil(memory)))
            lead = _even(self.steps[begin], self.steps[first - 1], parts)
            for column in self.columns([*lead, self.steps[first - 1]]):
                keep = strength**column.count
                average, weight = keep * average + (1 - keep) * column.mean, keep * weight + (1 - keep)
        found = []
        for column in self.columns(edges) if columns is None else columns:
            keep = strength**column.count
            average, weight = keep * average + (1 - keep) * column.mean, keep * weight + (1 - keep)
            found.append((column.step, average / weight))
        return found


class Pyramid:
    """Takes the points of one metric in ascending order of their steps; `curve()` is what there is now."""

    def __init__(self) -> None:
        self._serial = next(_SERIAL)
        self._stride = 1
        self._steps: array[float] = array("d")
        self._floors: list[Floor] = []
        self._tail: list[tuple[float, float]] = []
        self._broken: list[tuple[float, float]] = []
        self._lost = self._count = 0
        self._last = self._last_step = math.nan
        self._curve: Curve | None = None

    def extend(self, steps: Sequence[float], values: Sequence[float]) -> None:
        """Points in ascending order; what is there from the first of them on is replaced."""
        if not steps:
            return
        if self._count and steps[0] <= self._last_step:
            self.cut(steps[0] - 1)
        self._curve = None
        self._count += len(steps)
        self._last, self._last_step = values[-1], steps[-1]
        if not math.isfinite(sum(values)):
            broken = [(x, y) for x, y in zip(steps, values, strict=True) if not math.isfinite(y)]
            if broken:
                self._lost += len(broken)
                self._broken = (self._broken + broken)[-MOST_BROKEN:]
                good = [(x, y) for x, y in zip(steps, values, strict=True) if math.isfinite(y)]
                steps, values = [x for x, _ in good], [y for _, y in good]
        if self._stride == 1 and len(self._steps) + len(steps) <= LIMIT:
            self._ground(steps, values, values, values)
        else:
            self._bundle(steps, values)
        self._build()

    def _ground(self, steps: Sequence[float], *sides: Sequence[float]) -> None:
        """Points, or bundles of them, at the end of the ground floor; while they are points its sides are one array."""
        if not self._floors:
            points: array[float] = array("d")
            self._floors.append((points, points, points))
        _append(self._steps, steps)
        done: set[int] = set()
        for array_, values in zip(self._floors[0], sides, strict=True):
            if id(array_) not in done:
                _append(array_, values)
                done.add(id(array_))

    def _bundle(self, steps: Sequence[float], values: Sequence[float]) -> None:
        """One point at a time, `stride` of them to a bundle; when the floor is full its bundles become twice as big."""
        if len(self._steps) >= LIMIT:  # filled to the brim by points that came one by one
            self._halve()
        for point in zip(steps, values, strict=True):
            self._tail.append(point)
            if len(self._tail) >= self._stride:
                ys = [y for _, y in self._tail]
                self._ground([self._tail[0][0]], [min(ys)], [max(ys)], [_mean(ys)])
                self._tail = []
                if len(self._steps) >= LIMIT:
                    self._halve()

    def _halve(self) -> None:
        """Neighbours on the ground floor become one, in new arrays: curves that were given away keep the old ones."""
        even = len(self._steps) // 2 * 2
        assert even == len(self._steps)
        lows, highs, means = self._floors[0]
        self._floors = [
            (
                array("d", map(min, lows[::2], lows[1::2])),
                array("d", map(max, highs[::2], highs[1::2])),
                array("d", (a / 2 + b / 2 for a, b in zip(means[::2], means[1::2], strict=True))),
            )
        ]
        self._steps = self._steps[::2]
        self._stride *= 2
        self._build()

    def _build(self) -> None:
        """Complete what the floors above lack; a floor stands while the one below has at least one whole block."""
        level = 0
        while level < len(self._floors) and len(self._floors[level][0]) >= FAN:
            if level + 1 == len(self._floors):
                self._floors.append((array("d"), array("d"), array("d")))
            below, above = self._floors[level], self._floors[level + 1]
            missing = range(len(above[0]) * FAN, len(below[0]) // FAN * FAN, FAN)
            if missing:
                done: dict[int, list[list[float]]] = {}
                for array_ in below:  # while they are points its sides are one array
                    if id(array_) not in done:
                        values = array_[missing.start : missing.stop].tolist()
                        done[id(array_)] = [values[i : i + FAN] for i in range(0, len(values), FAN)]
                lows, highs, means = (done[id(array_)] for array_ in below)
                above[0].fromlist(list(map(min, lows)))
                above[1].fromlist(list(map(max, highs)))
                above[2].fromlist(list(map(_mean, means)))
            level += 1

    def cut(self, step: float) -> None:
        """Forget every point after `step`; of a bundle that reaches past it, all."""
        if not self._count or self._last_step <= step:
            return
        self._serial, self._curve = next(_SERIAL), None
        keep = bisect_right(self._steps, step)
        if keep and self._stride > 1:
            keep -= 1
            self._tail = []
        self._tail = [point for point in self._tail if point[0] <= step]
        self._steps = self._steps[:keep]
        if self._floors:
            lows, highs, means = self._floors[0]
            shared = lows[:keep]
            same = lows is highs
            self._floors = [(shared, shared if same else highs[:keep], shared if same else means[:keep])]
        self._build()
        gone = sum(x > step for x, _ in self._broken)
        self._broken, self._lost = self._broken[: len(self._broken) - gone], self._lost - gone
        self._count = keep * self._stride + len(self._tail) + self._lost
        ends = [(self._steps[-1], self._floors[0][2][-1])] if self._steps else []
        self._last_step, self._last = max([*ends, *self._tail[-1:], *self._broken[-1:]], default=(math.nan, math.nan))

    def curve(self) -> Curve:
        """What there is now, as a value that never changes."""
        if self._curve is None:
            self._curve = Curve(
                self._serial, self._count, self._steps, tuple(self._floors), len(self._steps), self._stride,
                tuple(self._tail), self._last, self._last_step, tuple(self._broken), self._lost,
            )  # fmt: skip
        return self._curve


def _append(to: array[float], values: Sequence[float]) -> None:
    """Much quicker than `extend`, which takes one item at a time from anything but an array."""
    if isinstance(values, array):
        to.extend(values)
    else:
        to.fromlist(list(values))


def _mean(values: Sequence[float]) -> float:
    total = sum(values)
    return total / len(values) if math.isfinite(total) else math.fsum(value / len(values) for value in values)


def _even(low: float, high: float, parts: int) -> list[float]:
    return [low + (high - low) * number / parts for number in range(parts)]
