"""The conductor: starts every asked-for stage as soon as what it needs is there.

One per run, by lock. It holds no state that matters: what is done is read from the run folder, what is wanted arrives
as request files in `conductor/requests/`, and what runs is seen from the stages' locks. So when it is killed the stages
go on, and the next conductor adopts them.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import msgspec

from picollm.run import event_file, launch, lease, pipeline
from picollm.run import events as ev
from picollm.run.errors import UserError
from picollm.run.folder import ACTIVE, Run, StageStatus, write_atomic
from picollm.run.machine import MachineRecorder
from picollm.run.structs import complete

POLL_S = 0.1
CALM_POLL_S = 0.4
"""While a stage runs, which needs the cores more than we do."""
PATIENCE_S = 5.0
"""So long a conductor that comes waits for one that may be leaving; longer while nobody has read what is asked."""


@complete
class Request(msgspec.Struct, kw_only=True):
    """What the app or the command line asks for.

    `stages`: make these done, in order. `redo`: run these even if done or stale. `fresh`: and ignore their
    checkpoints. `stop`: drop everything and ask the running stage to stop; `kill`: do not ask.
    """

    stages: list[str] = []
    redo: list[str] = []
    fresh: list[str] = []
    stop: bool = False
    kill: bool = False


def ask(run: Run, request: Request) -> None:
    """Leave a request, and make sure that a conductor is there to read it."""
    for name in (*request.stages, *request.redo, *request.fresh):
        pipeline.stage(name)
    text = msgspec.json.encode(request).decode()
    write_atomic(run.dir / "conductor" / "requests" / f"{time.time_ns():020d}-{uuid.uuid4().hex[:6]}.json", text)
    if not request.stop:
        argv = [sys.executable, "-m", "stages.conductor", "--run", str(run.dir)]
        launch.spawn_detached(argv, run.dir / "conductor" / "console.log")


def stop(run: Run, kill: bool = False) -> list[str]:
    """Stop whatever runs, with or without a conductor; returns the stages that were asked. A second call kills."""
    asked_before = {name for name in pipeline.NAMES if run.stop_file(name).exists()}
    if lease.is_held(run.conductor_lock):
        ask(run, Request(stop=True))
    elif _withdraw_requests(run):
        # Whoever follows must hear of it, and a conductor that came meanwhile may have read what we withdrew.
        event_file.append(run.conductor_events, ev.Conductor(what="stopped", pid=os.getpid()))
        if lease.is_held(run.conductor_lock):
            ask(run, Request(stop=True))
    asked = []
    for name in pipeline.NAMES:
        if not lease.is_held(run.lock_file(name)):
            continue
        asked.append(name)
        if kill or name in asked_before:
            if not launch.kill_stage(run, name):
                run.request_stop(name)  # its launcher waits for other machines: there is nothing yet to kill
        else:
            run.request_stop(name)
    return asked


def _withdraw_requests(run: Run) -> bool:
    """Without a conductor nobody has read them, and the next one must not start what was called off. Whether there
    were any."""
    found = list((run.dir / "conductor" / "requests").glob("*.json"))
    for path in found:
        path.unlink(missing_ok=True)
    return bool(found)


def plan_request(run: Run, stages: list[str], redo: bool = False, fresh: bool = False) -> Request:
    """A request for `stages`, refused when it would silently rerun or trust something stale.

    `redo`: also those that are done, which start over; one that was stopped resumes, unless what it is made from starts
    over. `fresh`: all start over. What waits for something that is being made again is made again with it; files lost
    outside the run folder are made again, and what was made from them is kept when they turn out the same. Raises
    `UserError` naming each stale stage and its reason, or what must be made first.
    """
    statuses = {status.name: status for status in run.statuses()}
    for name in stages:
        pipeline.stage(name)
        busy = [other for other in (name, *pipeline.downstream(name)) if statuses[other].state in ACTIVE]
        if redo and busy:
            what = "" if busy[0] == name else f", and is made from '{name}'"
            raise UserError(f"{run.name}: '{busy[0]}' is running{what}; stop it first (picollm stop --run {run.name})")
    asked = set(stages)
    lost = {other for name in asked for other in (name, *pipeline.before(name)) if statuses[other].lost == "own"}
    stages = [name for name in pipeline.NAMES if name in asked | lost]
    wanted = {other for name in stages for other in (name, *pipeline.upstream(name))}
    stale = [
        statuses[name]
        for name in pipeline.NAMES
        if name in wanted and statuses[name].undecided and not (redo and name in asked)
    ]
    if stale:
        reasons = "; ".join(f"{status.name} ({status.reason})" for status in stale)
        raise UserError(
            f"{run.name}: stale: {reasons}. Put the setting back, or redo from there: "
            f"picollm run --run {run.name} --from {stale[0].name}"
        )
    missing = [
        name
        for name in pipeline.NAMES
        if name in wanted - set(stages) and statuses[name].state != "done" and statuses[name].lost != "upstream"
    ]
    if missing and not all(statuses[name].state in ACTIVE for name in missing):
        raise UserError(
            f"{run.name}: {', '.join(missing)} must be made first: picollm run --run {run.name} --from {missing[0]}"
        )
    over: list[str] = []
    for name in stages:
        anew = redo and name in asked and statuses[name].state in ("done", "stale")
        if (fresh and name in asked) or anew or statuses[name].pending or set(over) & set(pipeline.stage(name).needs):
            over.append(name)
    again = [name for name in stages if name in lost or statuses[name].pending or (redo and name in asked)]
    return Request(stages=stages, redo=again, fresh=over)


class Conductor:
    """One run's conductor; `conduct()` returns when nothing that was asked for can go on."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.goals: list[str] = []
        self.told: list[str] = []
        self.redo: set[str] = set()
        self.fresh: set[str] = set()
        self.running: dict[str, int] = {}
        self.failed = False
        self.stopping = False
        self.again: set[str] = set()
        """Was being stopped, or had ended and not yet left, when it was asked for once more."""
        self.dumped: set[tuple[str, int]] = set()
        self.mended: set[str] = set()
        self.children: dict[str, subprocess.Popen[bytes]] = {}

    def conduct(self) -> int:
        """Returns 0 when every goal is done, 1 when one failed, 3 when stopped, 4 when another conductor is at work."""
        lock = lease.Lock(self.run.conductor_lock)
        while not lock.exclusive(patience=PATIENCE_S):
            if not self._requests():  # if there are, whoever holds it may have read its last: it is leaving
                return 4
        if not self._requests() and not any(lease.is_held(self.run.lock_file(name)) for name in pipeline.NAMES):
            lock.release()  # the one before us did what we were started for, and had the last word
            return 0
        over = threading.Event()
        recorder = MachineRecorder(self.run.machine_file, self.run.dir)
        thread = threading.Thread(target=recorder.record, args=(over,), daemon=True)
        thread.start()
        self._say("started")
        try:
            return self._loop()
        except UserError as error:
            self._say("failed", str(error))
            return 2
        finally:
            over.set()
            thread.join(timeout=3)
            lock.release()

    def _loop(self) -> int:
        while True:
            self._read_requests()
            statuses = {status.name: status for status in self.run.statuses()}
            self._watch(statuses)
            if self.stopping:
                self._stop_running(statuses)
            active = [status for status in statuses.values() if status.state in ACTIVE or status.name in self.running]
            for name in list(self.goals):
                if name not in self.redo and statuses[name].state == "done" and name not in self.running:
                    self.goals.remove(name)
            self._tell()
            # One at a time; but a stage whose work can be used already keeps nobody from going on.
            following = self._next(statuses) if all(status.usable for status in active) else None
            if following is not None:
                self._launch(following)
            elif not active and self.goals:
                if self._mend(statuses):
                    continue
                waiting = ", ".join(pipeline.title(goal) for goal in self.goals)
                missing = [statuses[o] for o in pipeline.upstream(self.goals[0]) if statuses[o].state != "done"]
                reasons = ", ".join(
                    f"{pipeline.title(s.name)} ({s.state}{': ' + s.reason if s.reason else ''})" for s in missing
                )
                self._say("failed", f"{waiting}: waiting for {reasons}, which nobody asked for")
                return 1
            elif not active:
                if self._requests():
                    continue
                if self.stopping:
                    return 3
                self._say("failed" if self.failed else "finished")
                return 1 if self.failed else 0
            self._wait(CALM_POLL_S if active else POLL_S)

    def _wait(self, seconds: float) -> None:
        """Until it is time to look again, a request comes or a launcher ends: seeing that costs nearly nothing."""
        end = time.monotonic() + seconds
        alive = [child for child in self.children.values() if child.poll() is None]
        while time.monotonic() < end and not self._requests():
            if any(child.poll() is not None for child in alive):
                return
            time.sleep(0.04)

    def _next(self, statuses: dict[str, StageStatus]) -> str | None:
        for name in pipeline.NAMES:
            if name in self.goals and name not in self.running:
                row, first = pipeline.stage(name), [statuses[other] for other in pipeline.upstream(name)]
                if all(s.feeds(row) and (s.name not in self.goals or s.name in self.running) for s in first):
                    return name
        return None

    def _mend(self, statuses: dict[str, StageStatus]) -> bool:
        """Make what a goal needs and somebody deleted outside the run folder once more, at most once each."""
        needed = {other for goal in self.goals for other in pipeline.before(goal)}
        lost = [name for name in pipeline.NAMES if name in needed and statuses[name].lost == "own"]
        lost = [name for name in lost if name not in self.mended and name not in self.goals]
        if not lost:
            return False
        self.mended |= set(lost)
        self.goals = [name for name in pipeline.NAMES if name in self.goals or name in lost]
        self._say("mending", "; ".join(f"{pipeline.title(name)}: {statuses[name].reason}" for name in lost))
        return True

    def _launch(self, name: str) -> None:
        before = max(self.run.attempts(name), default=0)
        child = launch.start_launcher(self.run, name, fresh=name in self.fresh, attempt=before + 1)
        self.children[name] = child
        self.running[name] = before
        self.redo.discard(name)
        self.fresh.discard(name)
        self._say("launched", name)
        end = time.monotonic() + 10
        while time.monotonic() < end and child.poll() is None:
            if max(self.run.attempts(name), default=0) > before and lease.is_held(self.run.lock_file(name)):
                return
            time.sleep(0.02)

    def _watch(self, statuses: dict[str, StageStatus]) -> None:
        """Adopt what runs, notice what ended, take the stack of what stalled."""
        for name, status in statuses.items():
            if status.state in ACTIVE and name not in self.running:
                self.running[name] = status.attempt - 1
                self.redo.discard(name)  # refused while it runs: whoever conducted before us started this one for it
                self.fresh.discard(name)
                if name not in self.goals:
                    self.goals.append(name)
                elif status.state == "stopping":
                    self.again.add(name)
                self._say("adopted", name)
            if status.state == "stalled" and (name, status.attempt) not in self.dumped:
                self.dumped.add((name, status.attempt))
                launch.dump_stack(self.run, name)
                self._say("stalled", f"{pipeline.title(name)}: {status.reason}; its stack is in its console log")
            if name in self.running and status.state not in ACTIVE:
                child = self.children.get(name)
                if (child is not None and child.poll() is None) or lease.is_held(self.run.lock_file(name)):
                    continue
                self.children.pop(name, None)
                # What was read before it was gone may be old by now.
                self._ended(name, self.run.status(name), self.running.pop(name))

    def _ended(self, name: str, status: StageStatus, before: int) -> None:
        if status.attempt <= before:
            status.state, status.reason = "failed", f"did not start: {self._last_console_line()}"
        if status.state == "done":
            return
        if name not in self.goals:
            return
        if name in self.again:
            self.again.discard(name)
            return
        lost = [goal for goal in self.goals if goal == name or goal in _later(name)]
        self.goals = [goal for goal in self.goals if goal not in lost]
        self.failed = True
        self._say(status.state, f"{pipeline.title(name)}: {status.reason}")

    def _stop_running(self, statuses: dict[str, StageStatus]) -> None:
        """Whoever asked us to stop may not have seen a stage that we were just starting."""
        for name, status in statuses.items():
            if status.state in ("running", "stalled"):
                self.run.request_stop(name)

    def _last_console_line(self) -> str:
        """The launcher's last word, which is all there is when it could not make an attempt."""
        try:
            lines = (
                (self.run.dir / "conductor" / "console.log").read_bytes()[-4096:].decode(errors="replace").split("\n")
            )
        except OSError as error:
            return f"its console log cannot be read: {error.strerror}"
        return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")

    def _requests(self) -> list[Path]:
        return sorted((self.run.dir / "conductor" / "requests").glob("*.json"))

    def _read_requests(self) -> None:
        """Take in what was asked, oldest first: the last word counts. Whoever asks knows what had ended by then."""
        requests = self._requests()
        over: set[str] = set()
        if requests:
            statuses = {status.name: status for status in self.run.statuses()}
            self._watch(statuses)
            begun = [statuses[name] for name, before in self.running.items() if statuses[name].attempt > before]
            over = {status.name for status in begun if status.state not in ACTIVE}
        for path in requests:
            try:
                request = msgspec.json.decode(path.read_bytes(), type=Request)
            except (OSError, msgspec.DecodeError) as error:
                self._say("ignored", f"{path.name}: {error}")
                request = Request()
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            if request.stop:
                self.goals, self.redo, self.fresh = [], set(), set()
                self.stopping = True
                self.again.clear()
                self._say("stopped")
            elif request.stages:
                self.failed = self.stopping = False
                self.again = over | {name for name in self.running if self.run.stop_file(name).exists()}
                self.goals = [n for n in pipeline.NAMES if n in self.goals or n in request.stages]
                # What runs was started between the asking and now: it is what was asked for.
                self.redo |= set(request.redo) - set(self.running)
                self.fresh |= set(request.fresh) - set(self.running)

    def _tell(self) -> None:
        """Who looks at the run sees what is still to come."""
        if self.goals != self.told:
            self.told = list(self.goals)
            with contextlib.suppress(OSError):
                event_file.append(self.run.conductor_events, ev.Queue(stages=self.told))

    def _say(self, what: str, text: str = "") -> None:
        with contextlib.suppress(OSError):
            event_file.append(self.run.conductor_events, ev.Conductor(what=what, text=text, pid=os.getpid()))


def _later(name: str) -> tuple[str, ...]:
    return pipeline.from_stage(name)[1:]


def main(folder: Path) -> int:
    """What `python -m stages.conductor` runs: ignore the terminal, conduct, return the exit code."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    run = Run(folder.absolute())
    if not run.exists():
        print(f"error: {run.dir} is not a run folder (no config.toml)", file=sys.stderr)
        return 2
    return Conductor(run).conduct()
