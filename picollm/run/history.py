"""The history of one stage over all its attempts, read incrementally: what plots, tables and the report draw.

`Resumed(step)` drops the points that the new attempt supersedes, so a curve never doubles back.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable
from typing import Any

from picollm.run import events as ev
from picollm.run import pipeline
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

    def cut(self, step: int) -> None:
        """Forget every point after `step`."""
        keep = bisect_right(self.steps, step)
        del self.steps[keep:], self.values[keep:], self.times[keep:]


class StageHistory:
    """Call `poll()` now and then; it reads what is new and says whether anything was.

    `until`: the last attempt that is read; None: all there are.
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
        self._reader: ev.EventReader | None = None

    def poll(self) -> bool:
        """Read at most 4 MB of new events; True when there may be something new to draw."""
        changed = False
        attempts = [number for number in self.run.attempts(self.name) if self.until is None or number <= self.until]
        while True:
            events = self._reader.poll() if self._reader else []
            for event in events:
                self._take(event)
            if events:
                self.version += 1
                return True
            following = next((number for number in attempts if number > self._attempt), None)
            if following is None:
                return changed
            self._attempt = following
            self._reader = ev.EventReader(self.run.events_file(self.name, following))
            changed = True

    def read_all(self) -> StageHistory:
        """Everything there is now; for reports and tests."""
        while self.poll():
            pass
        return self

    def _take(self, event: Any) -> None:
        self._count(event)
        match event:
            case ev.Metrics():
                for key, value in event.values.items():
                    self.series.setdefault(key, Series()).add(event.step, value, event.time)
            case ev.Eval():
                self.evals.append(event)
                for key, value in event.values.items():
                    self.series.setdefault(f"{event.name}/{key}", Series()).add(event.step, value, event.time)
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
                    self.series.clear()
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
        self._last_time = event.time
        if self.spans:
            begin = self.spans[-1][0]
            self.spans[-1] = begin, begin + self.seconds - self._before

    def _resume(self, step: int) -> None:
        if step == 0:  # from nothing: what is read before the first step is read again
            step = -1
            del self.warnings[: self._earlier]
        for series in self.series.values():
            series.cut(step)
        self.evals = [event for event in self.evals if event.step <= step]
        self.samples = [event for event in self.samples if event.step <= step]
        self.notes = [event for event in self.notes if event.step <= step]
        self.checkpoints = [event for event in self.checkpoints if event.step <= step]
