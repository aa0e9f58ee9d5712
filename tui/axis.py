"""The axes of the charts: what X may mean, and ranges that stay put while a curve grows.

A `Pace` turns steps into tokens, seconds or FLOPs and back, from what the stage's own events say. It is fed by the
reader's thread as `pyramid.Pyramid` is; `Ways` is what it was at a moment, and never changes.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from operator import mul, sub

LIMIT = 1 << 17
UNITS = ("step", "tokens", "time", "FLOPs")


@dataclass(frozen=True, eq=False)
class Ways:
    """From steps to tokens, seconds at work and FLOPs, and back; `flops` per token, 0 where nobody knows."""

    steps: array[float] = field(default_factory=lambda: array("d"))
    tokens: array[float] = field(default_factory=lambda: array("d"))
    seconds: array[float] = field(default_factory=lambda: array("d"))
    size: int = 0
    flops: float = 0.0

    def units(self) -> tuple[str, ...]:
        """What X may be: tokens need tok/s and seconds per step in the events, FLOPs the model's shape besides."""
        if not self.size:
            return UNITS[:1]
        counted = self.tokens[self.size - 1] > 0
        return tuple(
            unit for unit in UNITS if unit in ("step", "time") or (counted and (unit == "tokens" or self.flops))
        )

    def there(self, unit: str, step: float) -> float:
        """The place of a step on the axis; in proportion before the first step and past the last."""
        if unit == "step":
            return step
        column = self._column(unit)
        if column is None or not self.size:
            return step
        return _along(self.steps, column, self.size, step) * (self.flops if unit == "FLOPs" else 1.0)

    def back(self, unit: str, x: float) -> float:
        """The step at a place on the axis."""
        if unit == "step":
            return x
        column = self._column(unit)
        if column is None or not self.size:
            return x
        return _along(column, self.steps, self.size, x / (self.flops if unit == "FLOPs" else 1.0))

    def _column(self, unit: str) -> array[float] | None:
        return {"tokens": self.tokens, "FLOPs": self.tokens, "time": self.seconds}.get(unit)


def _along(xs: array[float], ys: array[float], size: int, x: float) -> float:
    """`ys` at `x`, straight between the points and on past them with the slope of the whole."""
    first, last = xs[0], xs[size - 1]
    if x > last or size == 1:
        slope = ys[size - 1] / last if last > 0 else 0.0
        return ys[size - 1] + (x - last) * slope
    if x <= first:
        return ys[0] * x / first if first > 0 else ys[0]
    index = bisect_left(xs, x, 0, size)
    before, after = xs[index - 1], xs[index]
    share = (x - before) / (after - before) if after > before else 1.0
    return ys[index - 1] + share * (ys[index] - ys[index - 1])


class Pace:
    """Takes in every step's time, speed and duration; keeps every 2nd, 4th … where there are too many."""

    def __init__(self) -> None:
        self._steps, self._tokens, self._seconds = array("d"), array("d"), array("d")
        self._before: float | None = None
        self._stride, self._count = 1, 0
        self._end = (0.0, 0.0, 0.0)  # the newest step, tokens and seconds
        self.flops = 0.0

    def pause(self) -> None:
        """An attempt ended here: the time until the next step is not spent at work."""
        self._before = None

    def extend(self, steps: Sequence[float], times: Sequence[float], tok_s: Sequence[float] | None,
               step_s: Sequence[float] | None) -> None:  # fmt: skip
        """Ascending steps with their unix times, tokens per second and seconds, where known."""
        if steps[0] <= self._end[0]:
            self.cut(steps[0] - 1)
        last, tokens, seconds = self._end
        begin = self._before if self._before is not None else times[0] - (step_s[0] if step_s else 0.0)
        passed = list(map(sub, times, [begin, *times]))
        if min(passed) < 0:  # a clock that was put back
            passed = [max(0.0, value) for value in passed]
        counted = [0.0] * len(steps)
        if tok_s and step_s:
            counted = list(map(mul, tok_s, step_s))
            if not last or steps[-1] - last != len(steps):  # not every step is here
                gaps = [after - before for before, after in zip([last, *steps], steps, strict=False)]
                gaps[0] = gaps[0] if last else 1.0
                counted = list(map(mul, counted, gaps))
            if not (math.isfinite(sum(counted)) and min(counted) >= 0):
                counted = [value if math.isfinite(value) and value > 0 else 0.0 for value in counted]
        all_seconds = list(accumulate(passed, initial=seconds))[1:]
        all_tokens = list(accumulate(counted, initial=tokens))[1:]
        self._end = (steps[-1], all_tokens[-1], all_seconds[-1])
        self._before = times[-1]
        skip = -self._count % self._stride
        self._count += len(steps)
        self._steps.fromlist(list(steps[skip :: self._stride]))
        self._tokens.fromlist(all_tokens[skip :: self._stride])
        self._seconds.fromlist(all_seconds[skip :: self._stride])
        while len(self._steps) > LIMIT:
            self._steps, self._tokens, self._seconds = self._steps[::2], self._tokens[::2], self._seconds[::2]
            self._stride *= 2

    def cut(self, step: float) -> None:
        """Forget every step after `step`."""
        keep = bisect_right(self._steps, step)
        if keep == len(self._steps) and self._end[0] <= step:
            return
        self._steps, self._tokens, self._seconds = self._steps[:keep], self._tokens[:keep], self._seconds[:keep]
        self._count = keep * self._stride
        self._end = (self._steps[-1], self._tokens[-1], self._seconds[-1]) if keep else (0.0, 0.0, 0.0)

    def ways(self) -> Ways:
        return Ways(self._steps, self._tokens, self._seconds, len(self._steps), self.flops)


@dataclass(frozen=True)
class Range:
    """A stretch of an axis; `log`: its ends are powers of ten, and so is what lies between."""

    low: float
    high: float
    log: bool = False

    def share(self, value: float) -> float:
        """Where `value` lies, 0 at the low end and 1 at the high one; may lie outside. NaN for ≤ 0 on a log axis."""
        if self.log:
            if value <= 0:
                return math.nan
            low, high, value = math.log10(self.low), math.log10(self.high), math.log10(value)
        else:
            low, high = self.low, self.high
        half = high / 2 - low / 2
        return (value / 2 - low / 2) / half if half > 0 else 0.5

    def at(self, share: float) -> float:
        """The value at a share of the way."""
        if self.log:
            power = math.log10(self.low) * (1 - share) + math.log10(self.high) * share
            return 10.0 ** max(-300.0, min(300.0, power))
        return self.low * (1 - share) + self.high * share

    def zoomed(self, factor: float, around: float = 0.5) -> Range:
        """`factor` > 1 shows less, around a share of the way."""
        reach = 1 / factor
        return self._part(around - around * reach, around + (1 - around) * reach)

    def moved(self, by: float) -> Range:
        """Moved by a share of its length."""
        return self._part(by, 1 + by)

    def _part(self, begin: float, end: float) -> Range:
        low, high = self.at(begin), self.at(end)
        whole = math.isfinite(low) and math.isfinite(high) and high - low > max(abs(low), abs(high)) * 1e-9
        return Range(low, high, self.log) if whole and (low > 0 or not self.log) else self


def fitting(low: float, high: float, log: bool = False, before: Range | None = None) -> Range:
    """A range with round ends that holds [low, high]: `before` again while that fits without wasting half of it, so
    that a live curve does not make its axis twitch."""
    low, high = max(-1e300, min(1e300, low)), max(-1e300, min(1e300, high))
    if before is not None and before.log == log:
        begin, end = before.share(low), before.share(high)
        if begin >= 0 and end <= 1 and (end - begin >= 0.45 or (low == high and before.high > before.low)):
            return before
    if log:
        if not low > 0:
            low = high / 1e6 if high > 0 else 1.0
        low = max(low, 1e-300)
        high = max(high, low * 1.0000001)
        ends = math.log10(low), math.log10(high)
        if ends[1] - ends[0] < 1:  # less than one power of ten: round ends between the powers
            begin, end = _round_ends(low, high)
            return Range(begin if begin > 0 else low / 2, end if end > low else low * 2, True)
        return Range(10 ** max(-300.0, math.floor(ends[0] * 4) / 4), 10 ** min(300.0, math.ceil(ends[1] * 4) / 4), True)
    return Range(*_round_ends(low, high))


def _round_ends(low: float, high: float) -> tuple[float, float]:
    """The nearest ends outside [low, high] that are multiples of 1, 2 or 5 · 10^k, about a tenth of the span each."""
    span, largest = high - low, max(abs(low), abs(high))
    if largest < 1e-100:  # as good as 0
        return (-1.0 if low < 0 else 0.0), 1.0
    if not span > largest * 1e-9:
        pad = abs(low) * 0.05
        low, high = low - pad, high + pad
        span = high - low
    grain = 10 ** math.floor(math.log10(span / 10)) if 1e-290 < span < 1e290 else 0.0
    grain = next((grain * times for times in (1, 2, 5, 10) if grain * times * 10 >= span), grain)
    if not grain > 0:
        return low, high
    begin, end = math.floor(low / grain) * grain, math.ceil(high / grain) * grain
    return (0.0 if low >= 0 and begin <= 0 else begin), end


def are_round(values: Sequence[float], span: float) -> bool:
    """Whether all of them are whole hundredths of the power of ten in `span`."""
    if not 1e-290 < span < 1e290:
        return False
    grain = 10.0 ** math.floor(math.log10(span)) / 100
    return all(abs(value / grain - round(value / grain)) < 1e-6 for value in values)


def ticks(y: Range, most: int) -> list[float]:
    """At most so many values in a range, low to high, that are 1, 2 or 5 · 10^k apart; on a log axis 1, 2 or 5 · 10^k
    themselves, or powers of ten. May be fewer than two."""
    if y.log:
        first, last = math.log10(y.low) - 1e-9, math.log10(y.high) + 1e-9
        powers = range(math.floor(first), math.ceil(last) + 1)
        fine = [power + math.log10(digit) for power in powers for digit in (1, 2, 5)]
        fine = [power for power in fine if first <= power <= last]
        tens = [power for power in fine if power == round(power)]
        tens = tens[:: -(-len(tens) // most) or 1]
        for found in (fine, tens):
            if 2 <= len(found) <= most:
                return [10.0**power for power in found]
    span = y.high - y.low
    if not 1e-290 < span < 1e290:
        return []
    grain = 10.0 ** math.floor(math.log10(span / most))
    for step in (grain * times for times in (1, 2, 5, 10, 20)):
        begin, end = math.ceil(y.low / step - 1e-9), math.floor(y.high / step + 1e-9)
        if end - begin < most:
            return [number * step for number in range(begin, end + 1)]
    return []
