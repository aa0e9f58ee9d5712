"""The reader: one thread that looks at the run folder four times a second and posts what changed.

Nothing else in the app reads the run's files on a schedule, and no screen reads one at all. The thread keeps what it
needs to look cheaply (sizes and times of files, cached settings, incremental readers), and posts immutable values.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textual.message import Message

from picollm.run import config as settings
from picollm.run import event_file, lease, pipeline
from picollm.run import events as ev
from picollm.run.errors import UserError
from picollm.run.folder import Run, folder_of
from picollm.run.planned import Plan
from picollm.run.status import asked_for
from tui import state
from tui.stage_reader import StageReader

if TYPE_CHECKING:
    from picollm.run.overview import Overview, Summary
    from picollm.run.recheck import Found
    from tui.doctor_reader import DoctorReader
    from tui.replay import Player

POLL_S = 0.25
FOLD_S = 1.0
READINGS = 3600
READINGS_PORTION = 1 << 20
REPORT_LIMIT = 2 << 20
RUNS_S, RUNS_BUDGET_S = 2.0, 0.1


class RunChanged(Message):
    """The run as a whole."""

    def __init__(self, view: state.RunView) -> None:
        super().__init__()
        self.view = view


class StageChanged(Message):
    """The selected stage's history."""

    def __init__(self, detail: state.Detail) -> None:
        super().__init__()
        self.detail = detail


class DoctorChanged(Message):
    def __init__(self, checks: Found) -> None:
        super().__init__()
        self.checks = checks


class MachineChanged(Message):
    def __init__(self, readings: tuple[ev.Machine, ...]) -> None:
        super().__init__()
        self.readings = readings


class ReportChanged(Message):
    def __init__(self, text: str, manifest: str) -> None:
        super().__init__()
        self.text, self.manifest = text, manifest


class RunsChanged(Message):
    """All runs at a glance."""

    def __init__(self, summaries: tuple[Summary, ...]) -> None:
        super().__init__()
        self.summaries = summaries


class WatchedRun(Run):
    """A run whose settings and plan are parsed again only when their files change."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._wishes: tuple[object, settings.Config] | None = None
        self._plan: tuple[object, Plan | None] | None = None

    def wishes(self) -> settings.Config:
        stamp = _stamp(self.dir / "config.toml")
        if self._wishes is None or self._wishes[0] != stamp:
            self._wishes = (stamp, super().wishes())
        return self._wishes[1]

    def plan(self) -> Plan | None:
        stamp = _stamp(self.dir / "plan.json")
        if self._plan is None or self._plan[0] != stamp:
            self._plan = (stamp, super().plan())
        return self._plan[1]


class Reader(threading.Thread):
    """Follows one run by name until `close()`; `post` must be safe to call from a thread."""

    def __init__(
        self, name: str, post: Callable[[Message], Any], poll_s: float = POLL_S, player: Player | None = None
    ) -> None:
        super().__init__(name=f"reader-{name}", daemon=True)
        folder = folder_of(name)
        self.run_folder = WatchedRun(folder)
        self._poll_s = poll_s
        self.player = player if player is not None and player.run.dir == folder else None
        self._selected: str | None = None
        self._wake, self._closing = threading.Event(), threading.Event()
        self._post = lambda message: None if self._closing.is_set() else post(message)  # another one may read by then
        self._stamp: object = None
        self._folded_at = 0.0
        self._view = state.empty(folder.name, str(folder))
        self._sent: state.RunView | None = None
        self._stages: dict[str, StageReader] = {}
        self._shown = ""
        self._doctor: DoctorReader | None = None
        self._over: tuple[str, ...] = ()
        self._others: dict[str, StageReader] = {}
        self._machine = event_file.EventReader(self.run_folder.machine_file)
        self.machine_wanted = self.doctor_wanted = False
        """Set by the panes that show them: they are read from then on."""
        self._readings: list[ev.Machine] = []
        self._report_stamp: object = None
        self.overview: Overview | None = None  # looked at while somebody looks at the list of runs
        self._summaries: tuple[Summary, ...] | None = None
        self._runs_at = 0.0

    def select(self, stage: str) -> None:
        """Follow this stage's history from now on."""
        self._selected = stage
        self._wake.set()

    def lay_over(self, runs: tuple[str, ...]) -> None:
        """Follow the selected stage of these runs too."""
        self._over = runs
        self._wake.set()

    def poke(self) -> None:
        """Look again at once, for instance after something was asked for."""
        self._stamp, self._runs_at = None, 0.0
        self._wake.set()

    def close(self) -> None:
        self._closing.set()
        self._wake.set()

    def run(self) -> None:
        while not self._closing.is_set():
            busy = self.look()
            self._wake.wait(0.02 if busy else self._poll_s)
            self._wake.clear()

    def look(self) -> bool:
        """One round; True when more is waiting to be read. A file that cannot be read is said, never fatal."""
        problems: list[str] = []
        busy = False
        for step in (self._look_at_run, self._look_at_stage, self._look_at_doctor, self._look_at_machine,
                     self._look_at_report, self._look_at_runs):  # fmt: skip
            try:
                busy = bool(step()) or busy
            except UserError as error:
                problems.append(str(error))
            except Exception as error:  # whatever is in the folder, the thread that all screens live on goes on
                problems.append(f"{step.__name__.removeprefix('_')}: {type(error).__name__}: {error}")
        self._send(" · ".join(dict.fromkeys(problems)))
        return busy

    # the run --------------------------------------------------------------------------------------------------------

    def _look_at_run(self) -> None:
        run = self.run_folder
        now = time.monotonic()
        stamp = self._signature()
        live = self._view.conductor or self._view.active is not None
        if stamp == self._stamp and now - self._folded_at < (FOLD_S if live else 5.0):
            return
        self._stamp, self._folded_at = stamp, now
        if not run.exists():
            if not run.dir.exists() or not self._view.exists:
                gone = self._view.exists or self._view.gone
                self._view = replace(state.empty(run.name, str(run.dir)), gone=gone)
                return
            raise UserError(f"{run.dir / 'config.toml'} is gone; put it back, or make the run anew")
        statuses = run.statuses(self.player.now() if self.player else None)
        wishes = run.wishes()
        values = settings.flat(run.config())
        planned = frozenset(key for key, value in settings.flat(wishes).items() if values[key] != value)
        self._view = state.RunView(
            name=run.name,
            folder=str(run.dir),
            exists=True,
            profile=wishes.run.profile,
            stages=tuple(_rounded(status) for status in statuses),
            conductor=lease.is_held(run.conductor_lock),
            queue=asked_for(run),
            notice=self._conductor_says(),
            prompts=tuple(run.prompts()),
            models=state.models(statuses),
            settings=values,
            planned=planned,
            differs=_differing(settings.flat(wishes)),
            replay=self.player.words() if self.player else "",
        )

    def _send(self, problem: str) -> None:
        view = self._view
        if problem:
            view = replace(view, problem=problem)
        if view != self._sent:
            self._sent = view
            self._post(RunChanged(view))

    def _signature(self) -> object:
        """Sizes and times of everything the state depends on, and which locks are held: a few dozen stat calls."""
        run = self.run_folder
        found: list[object] = [_stamp(run.dir / name) for name in ("config.toml", "plan.json", "prompts.txt")]
        found.append(_stamp(run.conductor_events))
        found.append(lease.is_held(run.conductor_lock))
        for name in pipeline.NAMES:
            folder = run.stage_dir(name)
            stamp = _stamp(folder)
            if stamp is None:
                continue
            attempts = run.attempts(name)
            found.append((name, stamp, _stamp(run.events_file(name, attempts[-1])) if attempts else None,
                          lease.is_held(run.lock_file(name))))  # fmt: skip
        return tuple(found)

    def _conductor_says(self) -> str:
        """The conductor's last word when it is a complaint."""
        for event in reversed(event_file.tail_events(self.run_folder.conductor_events, 8 << 10)):
            if isinstance(event, ev.Conductor):
                return event.text if event.what in ("failed", "ignored", "crashed", "stalled") else ""
        return ""

    # one stage ------------------------------------------------------------------------------------------------------

    def _look_at_stage(self) -> bool:
        name = self._selected
        if name is None:
            return False
        fresh = self._shown != name
        if fresh:
            self._shown, self._others = name, {}
        if name not in self._stages:  # kept when another one is looked at: what was read is not read again
            self._stages[name] = StageReader(self.run_folder, name)
        stage = self._stages[name]
        changed = stage.more  # that it is not so any more is news
        changed = stage.poll() or changed
        changed = self._look_at_others(name) or changed
        if changed or fresh:
            self._post(StageChanged(stage.detail(self._others)))
        return stage.more or any(other.more for other in self._others.values())

    def _look_at_others(self, name: str) -> bool:
        """The same stage of the runs that are laid over this one."""
        wanted = self._over
        gone = [run for run in self._others if run not in wanted]
        for run in gone:
            del self._others[run]
        for run in wanted:
            if run not in self._others:
                self._others[run] = StageReader(WatchedRun(folder_of(run)), name)
        return any([other.poll() for other in self._others.values()]) or bool(gone)

    def _look_at_doctor(self) -> bool:
        if not self.doctor_wanted:
            return False
        if self._doctor is None:
            from tui.doctor_reader import DoctorReader

            self._doctor = DoctorReader(self.run_folder)
        found = self._doctor.poll()
        if found is not None:
            self._post(DoctorChanged(found))
        return found is not None

    # the machine and the report -------------------------------------------------------------------------------------

    def _look_at_machine(self) -> bool:
        if not self.machine_wanted:
            return False
        last = self._readings[-1].time if self._readings else 0.0
        events = self._machine.poll(READINGS_PORTION)  # from its beginning again when the record was thinned
        new = [event for event in events if isinstance(event, ev.Machine) and event.time > last]
        if new:
            kept = self._readings + new
            if len(kept) > READINGS:
                kept = kept[: READINGS // 2 : 2] + kept[READINGS // 2 :]
            self._readings = kept
            self._post(MachineChanged(tuple(kept)))
        return bool(events)

    def _look_at_runs(self) -> bool:
        now = time.monotonic()
        if self.overview is None or now - self._runs_at < RUNS_S:
            return False
        found, complete = self.overview.look(RUNS_BUDGET_S)
        if complete:
            self._runs_at = now
        if tuple(found) != self._summaries:
            self._summaries = tuple(found)
            self._post(RunsChanged(self._summaries))
        return not complete

    def watch_runs(self, overview: Overview | None) -> None:
        """Look at all runs from now on, with this memory of them; None: no longer."""
        self.overview, self._runs_at, self._summaries = overview, 0.0, None
        self._wake.set()

    def _look_at_report(self) -> bool:
        folder = self.run_folder.dir
        report, manifest = folder / "report" / "report.md", folder / "run_manifest.json"
        stamp = (_stamp(report), _stamp(manifest))
        if stamp != self._report_stamp:
            self._report_stamp = stamp
            self._post(ReportChanged(_text(report), _text(manifest)))
        return False


def _differing(wishes: dict[str, Any]) -> dict[str, Any]:
    """Settings that are not as in the run's profile, with what that has; none where nobody here knows the profile."""
    usual = settings.profile_values(wishes["run.profile"])
    return {key: usual[key] for key, value in wishes.items() if usual and usual[key] != value}


def _rounded(status: Any) -> Any:
    """Whole seconds, so that an unchanged second is an equal view."""
    status.seconds = float(int(status.seconds))
    status.eta = None if status.eta is None else float(int(status.eta))
    return status


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _text(path: Path) -> str:
    """The first two megabytes; empty when there is no such file."""
    try:
        with open(path, "rb") as file:
            return file.read(REPORT_LIMIT).decode("utf-8", errors="replace")
    except FileNotFoundError:
        return ""
