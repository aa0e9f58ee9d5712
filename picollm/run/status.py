"""What state every stage is in: the fold of its newest attempt's events plus liveness (`lease`). Nothing is stored.

A stage's state is read from both ends of its event file, so a million lines cost as much as a hundred.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import msgspec

from picollm.run import config as settings
from picollm.run import event_file, lease, pipeline
from picollm.run import events as ev

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
    `usable`: not done, but what it makes is known and its first part is there (`events.Ready`).

    Of a stale stage: `pending`: only because what it is made from is being made again, so that whoever asked for that
    asked for this. `lost`: only because files outside the run folder are gone, "own" ones or those of something
    "upstream"; made again they are the same, and then it is done. Neither: something changed, and a person decides.
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
    pending: bool = False
    lost: Literal["", "own", "upstream"] = ""
    usable: bool = False

    @property
    def undecided(self) -> bool:
        """Stale because something changed: only a person can say whether it is made again."""
        return self.state == "stale" and not self.pending and not self.lost

    def feeds(self, row: pipeline.Stage) -> bool:
        """Whether `row`, which comes after this stage, may start on what this one has made so far."""
        return self.state == "done" or (row.early and self.usable and self.state in ("running", "stalled"))


class _Reason(NamedTuple):
    """Why a stage is stale. `kind`: a file outside the run folder is "lost", something it needs "made" another
    artifact, or anything else "changed"."""

    kind: str
    text: str


def status_of(run: Run, name: str, now: float | None = None, config: settings.Config | None = None) -> StageStatus:
    """The state of one stage of `run`. Raises `UserError` when the run's settings or plan cannot be read."""
    return _look(run, name, now, config)[0]


def _look(run: Run, name: str, now: float | None, config: settings.Config | None) -> tuple[StageStatus, list[_Reason]]:
    now = time.time() if now is None else now
    plan = run.plan()
    predicted = plan.seconds.get(name) if plan else None
    if not predicted:
        predicted = pipeline.unplanned_s(name, (config or run.wishes()).run.minutes)
    status = StageStatus(name=name, state="waiting", predicted_s=predicted, eta=predicted)
    attempts = run.attempts(name)
    # Liveness is asked before the events are read: a process that ends in between has left its last word.
    alive = lease.is_held(run.lock_file(name))
    if not attempts:
        if alive:
            status.state = "running"
        return status, []
    status.attempt = attempts[-1]
    file = run.events_file(name, status.attempt)
    head, tail = run.ends(name, status.attempt)
    terminal = next((event for event in reversed(tail) if isinstance(event, ev.TERMINAL)), None)
    _fold(status, head, tail, now, alive and terminal is None)
    reasons: list[_Reason] = []
    status.usable = not isinstance(terminal, ev.Finished) and run.ready(name, status.attempt) is not None
    if isinstance(terminal, ev.Finished):
        status.state, status.seconds, status.eta = "done", terminal.seconds, 0.0
        reasons = _stale_reasons(run, name, head, terminal, config)
        if reasons:
            status.state, status.reason = "stale", "; ".join(reason.text for reason in reasons)
            status.lost = "own" if {reason.kind for reason in reasons} == {"lost"} else ""
        elif (other := run.inherited(name)) is not None:
            status.reason = f"from {other.run}"
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
            status.state, status.reason, status.eta = "stalled", f"alive, but no sign for {quiet:.0f} s", None
        else:
            status.state, status.reason = "running", "can be used already" if status.usable else ""
    else:
        status.state, status.reason = "crashed", _cause(run, name, status.attempt)
    return status, reasons


def statuses_of(run: Run, now: float | None = None) -> list[StageStatus]:
    """Every stage in pipeline order; done stages downstream of a stale or unfinished one are stale too."""
    config = run.config()
    found: dict[str, StageStatus] = {}
    for row in pipeline.STAGES:
        status, reasons = _look(run, row.name, now, config)
        if status.state in ("done", "stale"):
            _inherit(status, {reason.kind for reason in reasons}, [found[need] for need in row.needs])
        elif status.state == "waiting" and all(found[other].feeds(row) for other in pipeline.upstream(row.name)):
            status.state = "ready"
        found[row.name] = status
    return list(found.values())


def asked_for(run: Run) -> tuple[str, ...] | None:
    """The stages that were asked for and are not done, as the run's conductor says; None where none is at work, or it
    has said nothing yet."""
    if not lease.is_held(run.conductor_lock):
        return None
    for event in reversed(event_file.tail_events(run.conductor_events, 16 << 10)):
        if isinstance(event, ev.Queue):
            return tuple(event.stages)
        if isinstance(event, ev.Conductor) and event.what == "started":  # what stands before is another one's
            break
    return None


def _inherit(status: StageStatus, own: set[str], needs: list[StageStatus]) -> None:
    """What became of the things a finished stage was made from; `own`: the kinds of its own reasons to be stale."""
    unfinished = [n for n in needs if n.state not in ("done", "stale") and (not n.usable or "made" in own)]
    stale = [need for need in needs if need.state == "stale"]
    changed = [need for need in stale if not need.pending and not need.lost]
    if status.state == "done" and (unfinished or stale):
        status.state = "stale"
        status.reason = (
            f"{pipeline.title((changed or stale)[-1].name)} is stale"
            if changed or not unfinished
            else (f"{pipeline.title(unfinished[-1].name)} is being made again ({unfinished[-1].state})")
        )
    awaited = unfinished or any(need.pending for need in stale)
    status.pending = bool(awaited) and not changed and own <= {"made", "lost"}
    if status.pending or (changed and status.lost):
        status.lost = ""
    elif stale and not own and not changed and not awaited:
        status.lost = "upstream"


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
    left = (status.predicted_s or 0.0) - status.seconds
    if len(points) > 1 and points[-1].step > points[0].step and points[-1].time > points[0].time:
        pace = (points[-1].time - points[0].time) / (points[-1].step - points[0].step)
        left = (status.steps - status.step) * pace - max(0.0, now - points[-1].time)
    status.eta = left if left > 0 else None  # it takes longer than anybody thought


def _touched(file: Path, now: float) -> float:
    try:
        return file.stat().st_mtime
    except OSError:
        return now


def _stale_reasons(
    run: Run, name: str, head: list[ev.AnyEvent], finished: ev.Finished, config: settings.Config | None
) -> list[_Reason]:
    started = next((event for event in head if isinstance(event, ev.Started)), None)
    gone = [path for path in finished.paths.values() if not (run.dir / path).exists()]
    reasons = [_Reason("lost" if os.path.isabs(path) else "changed", f"{path} is gone") for path in gone]
    if started is None:
        return [*reasons, _Reason("changed", "its first event is lost")]
    before = {key: knob.default for key, knob in settings.knobs().items() if knob.added}
    then, now = before | started.inputs, before | msgspec.to_builtins(run.inputs(name, config))
    for key in sorted(then.keys() | now.keys()):
        if then.get(key) != now.get(key):
            if ":" in key:
                maker, _, made = key.partition(":")
                reasons.append(_Reason("made", f"{pipeline.title(maker)} made a new {made}"))
            else:
                reasons.append(_Reason("changed", f"{key} was {then.get(key)!r}, is now {now.get(key)!r}"))
    return reasons


def _cause(run: Run, name: str, attempt: int) -> str:
    """What the launcher saw of a process that left no terminal event."""
    for event in reversed(event_file.tail_events(run.conductor_events)):
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
