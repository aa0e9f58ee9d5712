"""What the screens show: a pure fold of statuses, settings and histories. No file is read and no clock is asked here.

`bridge` makes a `RunView` and a `Detail` in its thread; widgets only read them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from picollm.run import config as settings
from picollm.run import pipeline
from picollm.run.folder import ACTIVE, StageStatus
from picollm.run.history import spent
from tui.axis import Ways
from tui.figures import clock
from tui.pyramid import Curve

BROKEN = ("failed", "crashed", "stopped", "stalled")
CHAT_MODELS = ("rl", "sft", "mid")


@dataclass(frozen=True)
class Look:
    """How a state is shown: never by colour alone."""

    symbol: str
    word: str
    short: str
    tone: str


LOOKS: dict[str, Look] = {
    "waiting": Look("·", "waiting", "wait", "faint"),
    "queued": Look("◦", "queued", "queue", "plain"),
    "ready": Look("○", "ready", "ready", "plain"),
    "running": Look("▶", "running", "run", "accent"),
    "stalled": Look("!", "stalled", "stall", "warn"),
    "stopping": Look("◌", "stopping", "stopg", "warn"),
    "stopped": Look("■", "stopped", "stop", "warn"),
    "failed": Look("✗", "failed", "fail", "bad"),
    "crashed": Look("✗", "crashed", "crash", "bad"),
    "done": Look("✓", "done", "done", "good"),
    "stale": Look("≈", "stale", "stale", "warn"),
    "skipped": Look("–", "skipped", "skip", "faint"),
}


@dataclass(frozen=True)
class RunView:
    """One run as it is now; not `known`: nobody has looked yet; `gone`: it was there, and is not any more. `problem`
    is why part of it could not be read; the rest is the last that could. `queue`: the stages that were asked for, where
    somebody says so. `replay`: where a replay stands, in words. `differs`: of the settings that are not as in the
    profile, what the profile has."""

    name: str
    folder: str = ""
    known: bool = True
    exists: bool = False
    gone: bool = False
    profile: str = ""
    stages: tuple[StageStatus, ...] = ()
    conductor: bool = False
    queue: tuple[str, ...] | None = None
    notice: str = ""
    problem: str = ""
    prompts: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    planned: frozenset[str] = frozenset()
    differs: Mapping[str, Any] = field(default_factory=dict)
    replay: str = ""

    def stage(self, name: str) -> StageStatus:
        """The status of `name`; waiting when nothing is known."""
        return next((status for status in self.stages if status.name == name), blank(name))

    def look(self, name: str) -> Look:
        """How the stage is shown: one that waits its turn is queued."""
        state = self.stage(name).state
        return LOOKS["queued" if state in ("waiting", "ready") and name in (self.queue or ()) else state]

    @property
    def active(self) -> StageStatus | None:
        """What runs; of several, the one in front: what can be used already goes on behind it."""
        return min((s for s in self.stages if s.state in ACTIVE), key=lambda s: s.usable, default=None)

    @property
    def stale(self) -> tuple[StageStatus, ...]:
        return tuple(status for status in self.stages if status.state == "stale")


@dataclass(frozen=True)
class Detail:
    """Everything about one stage that its history tells. `others`: the same stage of the runs laid over its charts."""

    stage: str
    attempts: tuple[str, ...] = ()
    checks: tuple[Any, ...] = ()
    evals: tuple[Any, ...] = ()
    samples: tuple[Any, ...] = ()
    choices: tuple[Any, ...] = ()
    warnings: tuple[str, ...] = ()
    notes: tuple[Any, ...] = ()
    checkpoints: tuple[Any, ...] = ()
    made: Mapping[str, str] = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict)
    curves: Mapping[str, Curve] = field(default_factory=dict)
    ways: Ways = field(default_factory=Ways)
    others: tuple[tuple[str, Ways, Mapping[str, Curve]], ...] = ()
    reading: bool = False


def blank(name: str) -> StageStatus:
    return StageStatus(name=name, state="waiting")


def empty(name: str, folder: str = "", known: bool = True) -> RunView:
    """A run that does not exist yet, or that nobody has looked at."""
    return RunView(name=name, folder=folder, known=known, stages=tuple(blank(row.name) for row in pipeline.STAGES))


def promised(view: RunView, wishes: Any) -> RunView:
    """Of a run that does not exist yet: its profile, and what its stages would take. `wishes`: its `[run]` table."""
    seconds = {name: pipeline.unplanned_s(name, wishes.minutes) for name in pipeline.NAMES}
    stages = tuple(StageStatus(name=name, state="waiting", predicted_s=s, eta=s) for name, s in seconds.items())
    return replace(view, profile=wishes.profile, stages=stages)


def models(statuses: Iterable[StageStatus]) -> tuple[str, ...]:
    """Names of the models that can answer: those whose stage has finished, in the order they were made."""
    done = {status.name for status in statuses if status.state in ("done", "stale")}
    return tuple(name for name, stage in pipeline.MODEL_STAGES.items() if stage in done)


def best_chat_model(names: Iterable[str]) -> str | None:
    """rl, else sft, else mid."""
    known = set(names)
    return next((name for name in CHAT_MODELS if name in known), None)


@dataclass(frozen=True)
class Totals:
    done: int
    stages: int
    elapsed: float
    left: float | None


def totals(view: RunView) -> Totals:
    """Stages done, seconds spent and seconds to go; what is at work at the same time counts once."""
    done = sum(status.state in ("done", "skipped") for status in view.stages)
    from picollm.run import estimate  # the first frame does not wait for it

    left = estimate.left_seconds(settings.build(view.settings), view.stages, view.queue)
    return Totals(done, len(view.stages), spent(view.stages), left)


def share(status: StageStatus) -> float | None:
    """Progress in 0..1 where the stage counts steps."""
    return min(1.0, status.step / status.steps) if status.steps else None


def progress_word(status: StageStatus) -> str:
    """The state in a word, with the share done while it runs."""
    done = share(status)
    if status.state == "running" and done is not None:
        return f"run {done:.0%}".replace("%", " %")
    return LOOKS[status.state].word


def where_to_look(view: RunView) -> str:
    """The stage worth selecting first: what runs, else what broke, else what is next, else the last."""
    if view.active is not None:
        return view.active.name
    for wanted in (BROKEN, ("stale",), ("ready",), ("waiting",)):
        for status in view.stages:
            if status.state in wanted:
                return status.name
    return view.stages[-1].name if view.stages else pipeline.NAMES[0]


def headline(view: RunView) -> tuple[str, str]:
    """One sentence on where things stand, and its tone."""
    if not view.known:
        return "reading …", "faint"
    if view.gone:
        return "gone: renamed, archived or deleted elsewhere", "warn"
    if not view.exists:
        return "no such run yet", "faint"
    if (front := view.active) is not None:
        text = f"{pipeline.stage(front.name).title} {progress_word(front)}"
        if front.state == "running" and front.eta is not None:
            text += f", {clock(front.eta)} left"
        return text, LOOKS[front.state].tone
    for status in view.stages:
        if status.state in BROKEN:
            return f"{pipeline.stage(status.name).title} {LOOKS[status.state].word}", LOOKS[status.state].tone
    if view.stale:
        return f"{pipeline.stage(view.stale[0].name).title} stale", "warn"
    if view.stages and all(status.state in ("done", "skipped") for status in view.stages):
        return "finished", "good"
    if view.conductor:
        return "starting", "accent"
    if any(status.state == "done" for status in view.stages):
        return "partly done, nothing runs", "plain"
    return "not started", "faint"


def advice(view: RunView, name: str) -> str:
    """What a person can do next about the selected stage, naming the action whose key the screen then adds."""
    if not view.exists:
        return "" if view.gone else "launch"
    status = view.stage(name)
    if status.state in ("stopped", "failed", "crashed"):
        return "resume"
    if status.state == "stale":
        return "redo" if status.undecided else "launch"
    if status.state in ACTIVE:
        return "stop"
    if status.state == "ready" and view.active is None:
        return "launch"
    return ""


def missing_upstream(view: RunView, name: str) -> tuple[str, ...]:
    """What must run before `name` can, in pipeline order."""
    wanted: set[str] = set()
    waiting = [name]
    while waiting:
        for other in pipeline.upstream(waiting.pop()):
            if other not in wanted and view.stage(other).state not in ("done", "skipped"):
                wanted.add(other)
                waiting.append(other)
    return tuple(other for other in pipeline.NAMES if other in wanted)
