"""All runs at a glance, cheaply: one `Summary` each, looked at again only when something of the run was touched.

For `picollm runs` and the app's Runs tab, whose reader thread calls `Overview.look` now and then.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import msgspec

from picollm.run import estimate, lease, pipeline, shelf
from picollm.run import events as ev
from picollm.run.errors import UserError
from picollm.run.folder import ACTIVE, Run, StageStatus
from picollm.run.status import asked_for

BROKEN = ("failed", "crashed", "stopped", "stalled")
RECHECK_S = 60.0
"""What lies outside the run folder can be deleted without a trace in it: so often even an untouched run is read."""
_TOUCHED = (
    "config.toml", "plan.json", "notes.md", "base.json", "conductor/events.jsonl", "conductor/requests", "stages",
)  # fmt: skip


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """One run, in a row of a table.

    `state` is that of `stage`, where the run stands: what runs, else what broke, else what is stale or next; "done"
    when all is. `loss`, `bpb`: the newest readings of training and of the base model. `left`: seconds to its end.
    `queue`: what it waits for, or what comes next. `touched`: unix seconds of the newest sign of life.
    `read`: whether anybody has looked into it yet.
    """

    name: str
    dir: str
    profile: str = ""
    state: str = "waiting"
    stage: str = ""
    step: int = 0
    steps: int = 0
    loss: float | None = None
    bpb: float | None = None
    done: int = 0
    stages: int = len(pipeline.NAMES)
    left: float | None = None
    queue: str = ""
    conductor: bool = False
    reason: str = ""
    touched: float = 0.0
    note: str = ""
    origin: str = ""
    archived: bool = False
    problem: str = ""
    read: bool = True

    @property
    def active(self) -> bool:
        return self.state in ACTIVE or self.conductor


def summarise(run: Run, touched: float = 0.0) -> Summary:
    """One run as it is now; what cannot be read is a `problem`, never an exception."""
    name, folder, archived = run.name, str(run.dir), shelf.is_archived(run)
    note = shelf.notes(run).partition("\n")[0]
    try:
        statuses = run.statuses()
        wishes = run.wishes()
        origin = run.origin()
    except (UserError, OSError) as error:
        return Summary(name=name, dir=folder, archived=archived, touched=touched, note=note, problem=str(error))
    conductor = lease.is_held(run.conductor_lock)
    front = _front(statuses)
    done = sum(status.state in ("done", "skipped") for status in statuses)
    to_go = len(statuses) - done
    queue = asked_for(run) if conductor else None
    loss, bpb = _readings(run, statuses)
    return Summary(
        name=name,
        dir=folder,
        profile=wishes.run.profile,
        state=front.state if front else "done",
        stage=front.name if front else "",
        step=front.step if front else 0,
        steps=front.steps if front else 0,
        loss=loss,
        bpb=bpb,
        done=done,
        stages=len(statuses),
        left=None
        if not to_go or (front and front.state == "stalled")
        else estimate.left_seconds(wishes, statuses, queue),
        queue=_queue(run, front, conductor, queue),
        conductor=conductor,
        reason=front.reason if front else "",
        touched=touched,
        note=note,
        origin=origin.run if origin else "",
        archived=archived,
    )


def _front(statuses: list[StageStatus]) -> StageStatus | None:
    """Where the run stands; None when everything is done."""
    active = min((s for s in statuses if s.state in ACTIVE), key=lambda s: s.usable, default=None)
    if active is not None:
        return active
    for wanted in (BROKEN, ("stale",), ("ready",), ("waiting",)):
        for status in statuses:
            if status.state in wanted:
                return status
    return None


def _queue(run: Run, front: StageStatus | None, conductor: bool, queue: tuple[str, ...] | None) -> str:
    """What the run waits for, or which of the stages that were asked for come next."""
    if front is None:
        return ""
    if front.state in ACTIVE:
        if front.phase.startswith("wait"):
            return f"waits: {front.phase.removeprefix('wait').removeprefix(' for').strip()}"
        after = [pipeline.stage(name).title for name in queue or () if name != front.name]
        return f"{after[0]} +{len(after) - 1}" if len(after) > 1 else "".join(after)
    try:
        asked = any((run.dir / "conductor" / "requests").iterdir())
    except OSError:
        asked = False
    return "starting" if conductor else "asked for" if asked else ""


def _readings(run: Run, statuses: list[StageStatus]) -> tuple[float | None, float | None]:
    """The newest training loss, and the newest bits per byte of the base model."""
    loss = bpb = None
    for status in reversed(statuses):
        if not status.attempt or (status.name != "base_eval" and not pipeline.stage(status.name).trains):
            continue
        tail = run.ends(status.name, status.attempt)[1]
        if loss is None and status.name not in ("base_eval", "rl"):  # RL's figure is no likelihood
            loss = next((e.values["loss"] for e in reversed(tail) if isinstance(e, ev.Metrics) and "loss" in e.values),
                        None)  # fmt: skip
        if bpb is None and status.name in ("base_eval", "pretrain"):
            bpb = next((e.values["bpb"] for e in reversed(tail) if isinstance(e, ev.Eval) and "bpb" in e.values), None)
    return loss, bpb


class Overview:
    """Remembers what it saw: `look()` reads only runs that are at work or were touched since.

    Not for several threads at once.
    """

    def __init__(self, archived: bool = False) -> None:
        self.archived = archived
        self._known: dict[Path, tuple[object, float, Run, Summary]] = {}

    def look(self, budget_s: float = 0.2) -> tuple[list[Summary], bool]:
        """Newest activity first, and whether all were read within the budget; those that were not stand as they were
        seen last, or by name alone (`read` False)."""
        end = time.monotonic() + budget_s
        found, complete = [], True
        runs = Run.all() + (shelf.archived() if self.archived else [])
        known, self._known = self._known, {}
        for run in runs:
            before = known.get(run.dir)
            stamp, touched = _signature(run.dir)
            now = time.monotonic()
            fresh = before is not None and before[0] == stamp and now - before[1] < RECHECK_S
            if before is not None and fresh and not (before[3].active or lease.is_held(run.conductor_lock)):
                self._known[run.dir] = before
            elif now > end:
                complete = False
                if before is not None:
                    self._known[run.dir] = before
            else:
                kept = before[2] if before is not None else run
                self._known[run.dir] = stamp, now, kept, summarise(kept, touched)
            entry = self._known.get(run.dir)
            found.append(entry[3] if entry else Summary(name=run.name, dir=str(run.dir), touched=touched, read=False,
                                                        archived=shelf.is_archived(run)))  # fmt: skip
        return found, complete


def _signature(folder: Path) -> tuple[object, float]:
    """Equal when nothing happened in between that changes a run at rest; and the time of its newest sign of life."""
    stamps: list[tuple[int, int] | None] = []
    newest = 0.0
    for name in (*_TOUCHED, "conductor/machine.jsonl"):
        try:
            found = os.stat(folder / name)
        except OSError:
            stamps.append(None)
            continue
        if name != "conductor/machine.jsonl":
            stamps.append((found.st_mtime_ns, found.st_size))
        if name in ("config.toml", "conductor/events.jsonl", "conductor/machine.jsonl"):
            newest = max(newest, found.st_mtime)
    return tuple(stamps), newest
