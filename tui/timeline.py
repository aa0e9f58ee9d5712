"""Readings over time as columns, and what follows from their course. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Any

SPANS: tuple[tuple[str, float], ...] = (("10 min", 600.0), ("1 h", 3600.0), ("6 h", 21600.0), ("all", 0.0))
"""What the history can show, in seconds; 0: from the first reading on."""
TREND_S, TREND_LEAST_S = 1800.0, 60.0
LONG_S = 7 * 86400.0
SLOWLY = 64 << 10
"""Bytes a second: what fills a disk more slowly is not spoken of."""

Reading = Any


class Columns:
    """`width` columns of one length that together hold `span` seconds before `now`; which column each reading is in is
    found once, for all the curves. Columns begin at multiples of their length, so a curve moves only when one is full.
    """

    def __init__(self, readings: Sequence[Reading], now: float, span: float, width: int) -> None:
        self.width = max(1, width)
        first = readings[0].time if readings else now
        span = span or max(60.0, now - first)
        self.each = span / self.width
        last = int(now // self.each)
        self._places: list[list[Reading]] = [[] for _ in range(self.width)]
        for reading in reversed(readings):
            place = self.width - 1 - (last - int(reading.time // self.each))
            if place < 0:
                break
            self._places[min(place, self.width - 1)].append(reading)

    def mean(self, value: Callable[[Reading], float | None]) -> list[float | None]:
        """The mean of each column; None where nothing was read."""
        found: list[float | None] = []
        for readings in self._places:
            values = [number for reading in readings if (number := value(reading)) is not None]
            found.append(sum(values) / len(values) if values else None)
        return found


def gpu_value(index: int, key: str) -> Callable[[Reading], float | None]:
    """Reads `key` of GPU `index`; None where it was not reported."""

    def value(reading: Reading) -> float | None:
        for gpu in reading.gpus:
            if gpu.get("index", 0) == index:
                return gpu.get(key)
        return None

    return value


def disk(reading: Reading, path: str) -> dict[str, Any] | None:
    """The reading's record of the disk at `path`; one without a path is of an old record."""
    return next((one for one in reading.disks if one["path"] == path), None)


def filling(readings: Sequence[Reading], path: str) -> tuple[float, float] | None:
    """(seconds until the disk is full, bytes a second) by the course of the last half hour; None where it does not
    fill, or not before a week is over."""
    if not readings:
        return None
    newest = readings[-1]
    end = disk(newest, path)
    first = bisect_left(readings, newest.time - TREND_S, key=lambda reading: reading.time)
    begin, begun = next(
        ((one, reading.time) for reading in readings[first:] if (one := disk(reading, path)) is not None), (None, 0.0)
    )
    if end is None or begin is None or newest.time - begun < TREND_LEAST_S:
        return None
    rate = (begin["free"] - end["free"]) / (newest.time - begun)
    left = end["free"] / rate if rate > 0 else LONG_S
    return (left, rate) if rate > SLOWLY and left < LONG_S else None


def quiet_gpus(readings: Sequence[Reading], seconds: float = 60.0) -> list[int]:
    """GPUs that did nothing for so long while another one worked all the time."""
    if not readings:
        return []
    recent = []
    for reading in reversed(readings):
        if readings[-1].time - reading.time > seconds:
            break
        recent.append(reading)
    if recent[0].time - recent[-1].time < 0.8 * seconds:
        return []
    busy: dict[int, list[float]] = {}
    for reading in recent:
        for gpu in reading.gpus:
            if "utilisation" in gpu:
                busy.setdefault(gpu.get("index", 0), []).append(gpu["utilisation"])
    if not any(min(values) > 30 for values in busy.values()):
        return []
    return [index for index, values in busy.items() if max(values) <= 2]
