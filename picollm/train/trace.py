"""Where a training step's time goes: its phases, and the operators that take longest.

`StepTrace` is told of every finished step. After `WARM` steps (compiling, first allocations) it times `steps` of them
undisturbed, then records as many with torch.profiler, which slows them down: shares come from the recorded ones, the
time of a step from the others.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.autograd.profiler_util import EventList
from torch.autograd.profiler_util import FunctionEventAvg as Average
from torch.profiler import ProfilerActivity, profile

from picollm.train.device import wait
from picollm.train.spans import PHASES, PREFIX

WARM = 3
TOP = 12


class Row(NamedTuple):
    """Milliseconds of one step: on the host, and on the GPU (0 where there is none); calls per step."""

    name: str
    host_ms: float
    device_ms: float
    calls: float


class StepTrace:
    """`stepped()` after every step; True when enough were seen. The rest is to be read then."""

    def __init__(self, steps: int, device: torch.device) -> None:
        self.steps, self.device, self.seen = steps, device, 0
        self.step_ms = self.recorded_ms = 0.0
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
        self.profile = profile(activities=activities)
        self._begun = 0.0
        self._averages: EventList | None = None

    @property
    def needed(self) -> int:
        """Steps in all. One is recorded in vain, since starting the recorder falls into it."""
        return WARM + self.steps + 1 + self.steps

    def stepped(self) -> bool:
        self.seen += 1
        if self.seen in (WARM, WARM + self.steps, WARM + self.steps + 1, self.needed):
            wait(self.device)
            passed = 1000 * (time.perf_counter() - self._begun) / self.steps
            if self.seen == WARM + self.steps:
                self.step_ms = passed
                with profile(activities=self.profile.activities):
                    pass
            elif self.seen == WARM + self.steps + 1:
                self.profile.start()
            elif self.seen == self.needed:
                self.recorded_ms = passed
                self.profile.stop()
                self._averages = self.profile.key_averages()
            self._begun = time.perf_counter()
        return self.seen >= self.needed

    def phases(self) -> list[Row]:
        """Every phase that took time, in the order of a step; last "other", which no phase covers."""
        rows = [self._row(name, [a for a in self._all() if a.key == PREFIX + name]) for name in PHASES]
        other = self.recorded_ms - sum(row.host_ms for row in rows)
        return [row for row in rows if row.calls] + [Row("other", max(0.0, other), 0.0, 1.0)]

    def operators(self) -> list[Row]:
        """The `TOP` operators by the time they take themselves, on the GPU where there is one."""
        rows = []
        for average in self._all():
            name = average.key or ""
            if not name.startswith((PREFIX, "ProfilerStep")):
                host, device = average.self_cpu_time_total, average.self_device_time_total
                rows.append(Row(name, *self._per_step(host, device, average.count)))
        on_device = any(row.device_ms for row in rows)
        return sorted(rows, key=lambda row: row.device_ms if on_device else row.host_ms, reverse=True)[:TOP]

    def save(self, file: Path) -> None:
        """All recorded steps for chrome://tracing or ui.perfetto.dev."""
        self.profile.export_chrome_trace(str(file))

    def table(self, title: str, tokens: int) -> str:
        """What the person reads; `tokens` of one step."""
        phases, operators = self.phases(), self.operators()
        on_device = any(row.device_ms for row in (*phases, *operators))
        lines = [
            title,
            f"step {self.step_ms:.1f} ms ({1000 * tokens / self.step_ms:,.0f} tok/s), mean of {self.steps}; "
            f"{self.recorded_ms:.1f} ms while recorded, which is what follows",
            "",
            *_lines("phase", phases, self.recorded_ms, on_device, PHASES),
            "",
            *_lines("operator, itself", operators, self.recorded_ms, on_device, {}),
        ]
        return "\n".join(lines) + "\n"

    def _all(self) -> list[Average]:
        assert self._averages is not None, "not all steps were seen"
        return list(self._averages)

    def _row(self, name: str, found: list[Average]) -> Row:
        """Of a span. With a GPU the profiler has an entry of its own for what the span put on it."""
        on_host = [a for a in found if a.device_type == torch.autograd.DeviceType.CPU]
        on_device = [a for a in found if a.device_type != torch.autograd.DeviceType.CPU] or on_host
        host, device = (sum(a.cpu_time_total for a in on_host), sum(a.device_time_total for a in on_device))
        return Row(name, *self._per_step(host, device, sum(a.count for a in on_host)))

    def _per_step(self, host_us: float, device_us: float, calls: float) -> tuple[float, float, float]:
        return host_us / 1000 / self.steps, device_us / 1000 / self.steps, calls / self.steps


def _lines(what: str, rows: list[Row], step_ms: float, on_device: bool, said: dict[str, Any]) -> list[str]:
    """A table; shares are of the step's time, by the GPU's milliseconds where there is one."""
    lines = [f"{what:30.30}  {'host ms':>9}  {'GPU ms':>9}  {'share':>7}  {'calls':>7}"]
    for row in rows:
        device = f"{row.device_ms:9.2f}" if on_device else f"{'-':>9}"
        share = (row.device_ms if on_device else row.host_ms) / step_ms
        text = f"{row.name:30.30}  {row.host_ms:9.2f}  {device}  {share:7.1%}  {row.calls:7.1f}"
        lines.append(f"{text}  {said.get(row.name, '')}".rstrip())
    return lines
