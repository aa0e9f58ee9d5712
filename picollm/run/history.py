"""The history of one stage over all its attempts, read incrementally: what plots, tables and the report draw.

`Resumed(step)` drops the points that the new attempt supersedes, so a curve never doubles back.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from itertools import groupby, islice, pairwise
from operator import itemgetter, le, lt
from typing import Any

from picollm.run import event_file, pipeline
from picollm.run import events as ev
from picollm.run.folder import Run, StageStatus


def together(spans: Iterable[tuple[float, float]]) -> float:
    """How long at least one of the spans lasted: stages that work at the same time are paid for once."""
    total, reached = 0.0, -math.inf
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


def spent(statuses: Iterable[StageStatus]) -> float:
    """Seconds in which at least one stage was at work, by the newest attempts."""
    return together((one.started, one.started + one.seconds) for one in statuses if one.started is not None)


NAN = float("nan")


class Series:
    """One metric: ascending `steps`, `values` (NaN where the event said null) and unix `times`."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.values: list[float] = []
        self.times: list[float] = []

    def add(self, step: int, value: float | None, time: float) -> None:
        """A step no later than the last one starts over from there: steps always ascend, and each stands once."""
        if self.steps and step <= self.steps[-1]:
            self.cut(step - 1)
        self.steps.append(step)
        self.values.append(float("nan") if value is None else float(value))
        self.times.append(time)

    def extend(self, steps: list[int], values: list[float], times: list[float]) -> None:
        """Points in ascending order of their steps; what is there from the first of them on is replaced."""
        if self.steps and steps[0] <= self.steps[-1]:
            self.cut(steps[0] - 1)
        self.steps += steps
        self.values += values
        self.times += times

    def cut(self, step: int) -> None:
        """Forget every point after `step`."""
        keep = bisect_right(self.steps, step)
        del self.steps[keep:], self.values[keep:], self.times[keep:]


class StageHistory:
    """Call `poll()` now and then; it reads what is new and says whether anything was.

    `until`: the last attempt that is read; None: all there are.
    A subclass that keeps points in another way overrides `_add`, `_cut` and `_forget`.
    """

    def __init__(self, run: Run, name: str, until: int | None = None) -> None:
        self.run, self.name, self.until = run, name, until
        self.series: dict[str, Series] = {}
        self.evals: list[ev.Eval] = []
        self.samples: list[ev.Sample] = []
        self.choices: list[ev.Choice] = []
        self.checks: list[ev.Check] = []
        self.warnings: list[str] = []
        self.notes: list[ev.Note] = []
        self.checkpoints: list[ev.Checkpoint] = []
        self.finished: ev.Finished | None = None
        self.started: list[ev.Started] = []
        self.version = 0
        self.seconds = 0.0
        self.spans: list[tuple[float, float]] = []  # unix times between which each attempt was at work
        self._earlier = 0  # warnings of the attempts before this one
        self._before = 0.0
        self._last_time = 0.0
        self._attempt = 0
        self._reader: event_file.EventReader | None = None

    def poll(self) -> bool:
        """Read at most 4 MB of new events; True when there may be something new to draw."""
        changed = False
        attempts = [number for number in self.run.attempts(self.name) if self.until is None or number <= self.until]
        while True:
            events = self._reader.poll() if self._reader else []
            self._take_all(events)
            if events:
                self.version += 1
                return True
            following = next((number for number in attempts if number > self._attempt), None)
            if following is None:
                return changed
            self._attempt = following
            self._reader = event_file.EventReader(self.run.events_file(self.name, following), without=ev.Progress)
            changed = True

    def read_all(self) -> StageHistory:
        """Everything there is now; for reports and tests."""
        while self.poll():
            pass
        return self

    def _take_all(self, events: Iterable[Any]) -> None:
        """In order; metrics with the same keys and ascending steps are taken together."""
        for kind, group in groupby(events, type):
            if kind is not ev.Metrics:
                for event in group:
                    self._take(event)
                continue
            together = list(group)
            if not self._metrics(together):
                for alike in _alike(together):
                    self._metrics(alike)

    def _metrics(self, group: list[ev.Metrics]) -> bool:
        """Take in what has the same metrics in ascending steps; False, and nothing done, where they are mixed."""
        steps, values = [event.step for event in group], [event.values for event in group]
        keys = tuple(values[0])
        if sum(map(len, values)) != len(keys) * len(group) or not all(map(lt, steps, islice(steps, 1, None))):
            return False
        try:
            columns: list[list[Any]] = [list(map(itemgetter(key), values)) for key in keys]
        except KeyError:
            return False
        times = [event.time for event in group]
        self._count(group[0])
        forward = all(map(le, times, islice(times, 1, None)))
        passed = times[-1] - times[0] if forward else sum(max(0.0, after - before) for before, after in pairwise(times))
        self._pass(passed, times[-1])
        for key, column in zip(keys, columns, strict=True):
            self._add(key, steps, [NAN if value is None else value for value in column] if None in column else column,
                      times)  # fmt: skip
        return True

    def _add(self, key: str, steps: list[int], values: list[float], times: list[float]) -> None:
        """Points of one metric, in ascending order of their steps."""
        self.series.setdefault(key, Series()).extend(steps, values, times)

    def _cut(self, step: int) -> None:
        """Every point after `step` is void."""
        for series in self.series.values():
            series.cut(step)

    def _forget(self) -> None:
        """Every point is void."""
        self.series.clear()

    def _take(self, event: Any) -> None:
        self._count(event)
        match event:
            case ev.Eval():
                self.evals.append(event)
                for key, value in event.values.items():
                    self._add(f"{event.name}/{key}", [event.step], [NAN if value is None else value], [event.time])
            case ev.Resumed():
                self._resume(event.step)
            case ev.Sample():
                self.samples.append(event)
            case ev.Choice():
                self.choices = [choice for choice in self.choices if choice.what != event.what] + [event]
            case ev.Check():
                self.checks = [check for check in self.checks if check.name != event.name] + [event]
            case ev.Checkpoint():
                self.checkpoints.append(event)
            case ev.Warning():
                self.warnings.append(event.text)
            case ev.Note():
                self.notes.append(event)
            case ev.Started():
                self.started.append(event)
                self._earlier = len(self.warnings)
                self.checks.clear()
                self.finished = None
                if not pipeline.stage(self.name).trains:  # it starts from nothing, and says no `Resumed`
                    self._forget()
                    self.evals, self.samples, self.warnings, self.notes = [], [], [], []
            case ev.Finished():
                self.finished = event

    def _count(self, event: ev.Event) -> None:
        """`seconds` spent in this stage over all attempts; a clock that jumps back counts as no time."""
        if isinstance(event, ev.Finished):
            self.seconds = self._before + event.seconds
        elif isinstance(event, ev.Started):
            self._before = self.seconds
            self.seconds += event.age
            self.spans.append((event.time - event.age, event.time))
        else:
            self.seconds += max(0.0, event.time - self._last_time)
        self._pass(0.0, event.time)

    def _pass(self, seconds: float, now: float) -> None:
        self.seconds += seconds
        self._last_time = now
        if self.spans:
            begin = self.spans[-1][0]
            self.spans[-1] = begin, begin + self.seconds - self._before

    def _resume(self, step: int) -> None:
        if step == 0:  # from nothing: what is read before the first step is read again
            step = -1
            del self.warnings[: self._earlier]
        self._cut(step)
        self.evals = [event for event in self.evals if event.step <= step]
        self.samples = [event for event in self.samples if event.step <= step]
        self.notes = [event for event in self.notes if event.step <= step]
        self.checkpoints = [event for event in self.checkpoints if event.step <= step]


def _alike(events: list[ev.Metrics]) -> Iterator[list[ev.Metrics]]:
    """In order, as few groups as there are in which all have the same metrics and the steps ascend."""
    begin, last, keys = 0, -1, events[0].values.keys()
    for number, event in enumerate(events):
        if event.step <= last or event.values.keys() != keys:
            if number > begin:
                yield events[begin:number]
            begin, keys = number, event.values.keys()
        last = event.step
    yield events[begin:]
