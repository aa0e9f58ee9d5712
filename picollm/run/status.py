"""What state every stage is in: the fold of its newest attempt's events plus liveness (`lease`). Nothing is stored.

A stage's state is read from both ends of its event file, so a million lines cost as much as a hundred.
"""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from picollm.run import config as settings
from picollm.run import events as ev
from picollm.run import lease, pipeline

if TYPE_CHECKING:
    from picollm.run.folder import Run

STATES = (
    "waiting", "ready", "running", "stalled", "stopping", "stopped", "failed", "crashed", "done", "stale", "skipped",
)  # fmt: skip
ACTIVE = ("running", "stalled", "stopping")
COMPILE_PATIENCE = 5  # compiling is silent for minutes: this many times `machine.stall_after` before it counts


class StageStatus(msgspec.Struct, kw_only=True):
    """What one row of the rail, of `picollm status` and of the report's table says.

    `seconds`: time spent in the newest attempt; `eta`: seconds still to go (None: unknown); `started`: unix seconds.
    """

    name: str
    state: str
    attempt: int = 0
    step: int = 0
    steps: int = 0
    started: float | None = None
    seconds: float = 0.0
    eta: float | None = None
    predicted_s: float | None = None
    reason: str = ""
    phase: str = ""
    pid: int = 0


def status_of(run: Run, name: str, now: float | None = None, config: settings.Config | None = None) -> StageStatus:
    """The state of one stage of `run`. Raises `UserError` when the run's settings or plan cannot be read."""
    now = time.time() if now is None else now
    plan = run.plan()
    predicted = (plan.seconds.get(name) if plan else None) or pipeline.stage(name).typical_s
    status = StageStatus(name=name, state="waiting", predicted_s=predicted, eta=predicted)
    attempts = run.attempts(name)
    # Liveness is asked before the events are read: a process that ends in between has left its last word.
    alive = lease.is_held(run.lock_file(name))
    if not attempts:
        if alive:
            status.state = "running"
        return status
    status.attempt = attempts[-1]
    file = run.events_file(name, status.attempt)
    head, tail = ev.head_events(file), ev.tail_events(file)
    terminal = next((event for event in reversed(tail) if isinstance(event, ev.TERMINAL)), None)
    _fold(status, head, tail, now, alive and terminal is None)
    if isinstance(terminal, ev.Finished):
        status.state, status.seconds, status.eta = "done", terminal.seconds, 0.0
        reasons = _stale_reasons(run, name, head, terminal, config)
        if reasons:
            status.state, status.reason = "stale", "; ".join(reasons)
    elif isinstance(terminal, ev.Failed):
        status.state, status.reason = "failed", terminal.error + (f"; {terminal.hint}" if terminal.hint else "")
    elif isinstance(terminal, ev.Stopped):
        status.state, status.reason = "stopped", f"stopped at step {terminal.step}" if terminal.step else "stopped"
    elif alive:
        quiet = now - (tail[-1].time if tail else _touched(file, now))
        config = config or run.config()
        allowed = config.machine.stall_after * (COMPILE_PATIENCE if status.phase == "compile" else 1)
        if run.stop_file(name).exists():
            status.state, status.reason = "stopping", "stop asked for"
        elif quiet > allowed:
            status.state, status.reason = "stalled", f"alive, but no sign for {quiet:.0f} s"
        else:
            status.state = "running"
    else:
        status.state, status.reason = "crashed", _cause(run, name, status.attempt)
    return status


def statuses_of(run: Run, now: float | None = None) -> list[StageStatus]:
    """Every stage in pipeline order; done stages downstream of a stale or unfinished one are stale too."""
    config = run.config()
    found: dict[str, StageStatus] = {}
    for row in pipeline.STAGES:
        status = status_of(run, row.name, now, config)
        if status.state == "done":
            for need in row.needs:
                if found[need].state == "stale":
                    status.state, status.reason = "stale", f"{need} is stale"
                elif found[need].state != "done":
                    status.state, status.reason = "stale", f"{need} is being made again ({found[need].state})"
        elif status.state == "waiting" and all(found[other].state == "done" for other in pipeline.upstream(row.name)):
            status.state = "ready"
        found[row.name] = status
    return list(found.values())


def _fold(status: StageStatus, head: list[ev.AnyEvent], tail: list[ev.AnyEvent], now: float, going_on: bool) -> None:
    """Times, steps, phase and ETA from both ends of one attempt. Only what goes on grows older with the clock."""
    started = next((event for event in head if isinstance(event, ev.Started)), None)
    if started is not None:
        status.started, status.pid = started.time - started.age, started.pid
        status.predicted_s = started.predicted_s or status.predicted_s
    last = tail[-1].time if tail else now
    points = [event for event in tail if isinstance(event, ev.Progress)]
    phases = [event.name for event in (*head, *tail) if isinstance(event, ev.Phase)]
    status.phase = phases[-1] if phases else ""
    if status.started is not None:
        status.seconds = max(0.0, (max(now, last) if going_on else last) - status.started)
    if points:
        status.step, status.steps = points[-1].step, points[-1].steps
    if not going_on:
        status.eta = None
        return
    status.eta = max(0.0, (status.predicted_s or 0.0) - status.seconds)
    if len(points) > 1 and points[-1].step > points[0].step and points[-1].time > points[0].time:
        pace = (points[-1].time - points[0].time) / (points[-1].step - points[0].step)
        status.eta = max(0.0, (status.steps - status.step) * pace - max(0.0, now - points[-1].time))


def _touched(file: Path, now: float) -> float:
    try:
        return file.stat().st_mtime
    except OSError:
        return now


def _stale_reasons(
    run: Run, name: str, head: list[ev.AnyEvent], finished: ev.Finished, config: settings.Config | None
) -> list[str]:
    started = next((event for event in head if isinstance(event, ev.Started)), None)
    reasons = [f"{path} is gone" for path in finished.paths.values() if not (run.dir / path).exists()]
    if started is None:
        return [*reasons, "its first event is lost"]
    then, now = started.inputs, msgspec.to_builtins(run.inputs(name, config))
    for key in sorted(then.keys() | now.keys()):
        if then.get(key) != now.get(key):
            if ":" in key:
                reasons.append(f"{key.partition(':')[0]} made a new {key.partition(':')[2]}")
            else:
                reasons.append(f"{key} was {then.get(key)!r}, is now {now.get(key)!r}")
    return reasons


def _cause(run: Run, name: str, attempt: int) -> str:
    """What the launcher saw of a process that left no terminal event."""
    for event in reversed(ev.tail_events(run.conductor_events)):
        if isinstance(event, ev.Exited) and (event.stage, event.attempt) == (name, attempt):
            if event.code < 0:
                return f"killed by {signal_name(-event.code)}; start it again to resume"
            return f"exit code {event.code} without a last word; see {run.console_file(name, attempt).name}"
    return "the process is gone and nobody saw how; start it again to resume"


def signal_name(number: int) -> str:
    """`SIGKILL (kill -9, or the system ran out of memory)` for 9."""
    try:
        name = signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
    return f"{name} (kill -9, or the system ran out of memory)" if name == "SIGKILL" else name
