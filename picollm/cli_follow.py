"""Asking for stages and following them to their end: what `picollm run` and `resume` do after the settings are read.

The follower only reads the run folder. Whatever ends it, the training goes on, except that Ctrl-C and SIGTERM ask the
stage to save and stop first.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType

from picollm.run import conductor, event_file, lease, serving
from picollm.run import events as ev
from picollm.run.errors import UserError
from picollm.run.folder import ACTIVE, Run, StageStatus

POLL_S = 0.2
PROGRESS_EVERY_S = 5.0
NUDGE_AFTER_S = 10.0  # a request that nobody read for so long needs another conductor
GIVE_UP_AFTER_S = 30.0
MOST_CONDUCTORS = 3
LAST_WORDS = ("finished", "failed", "stopped")
DONE, OURS, USERS, STOPPED, HUNG_UP, UNREAD = 0, 1, 2, 3, 129, 141


def duration(seconds: float | None) -> str:
    """`8.2 s`, `3m 20s`, `2h 05m`; `-` when unknown."""
    if seconds is None:
        return "-"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m {rest:02d}s" if minutes < 60 else f"{minutes // 60}h {minutes % 60:02d}m"


class Follower:
    """Follows one request; `follow()` blocks and returns the exit code of the command line.

    0 all asked-for stages are done, 1 failed by our fault, 2 by the person's, 3 stopped; 129 the terminal hung up and
    141 nobody reads us any more, while training goes on.
    """

    def __init__(self, run: Run, request: conductor.Request) -> None:
        self.run = run
        self.request = request
        self.before = {name: max(run.attempts(name), default=0) for name in request.stages}
        active = [name for name in request.stages if run.status(name).state in ACTIVE]
        self.floor = {name: number - (name in active) for name, number in self.before.items()}
        """What ends above this number ended while we followed: what runs when we come counts."""
        self.shown: dict[str, tuple[int, str]] = {}
        self.readers: dict[tuple[str, int], event_file.EventReader] = {}
        self.metrics: dict[str, dict[str, float | None]] = {}
        self.last_word: ev.Conductor | None = None
        self.stops = 0
        self.stopping = False
        self.called_off = False
        self.hung_up = False
        self._conductor_events = event_file.EventReader(run.conductor_events, size_of(run.conductor_events))
        self._next_progress = time.monotonic() + PROGRESS_EVERY_S

    def follow(self) -> int:
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        signal.signal(signal.SIGINT, self._on_stop)
        signal.signal(signal.SIGTERM, self._on_stop)
        signal.signal(signal.SIGHUP, self._on_hangup)
        try:
            conductor.ask(self.run, self.request)
            return self._follow()
        except BrokenPipeError:
            # Whoever read our output has gone, as `head` does; nothing must be written at exit either.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            return UNREAD
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def _on_stop(self, number: int, frame: FrameType | None) -> None:
        self.stops += 1

    def _on_hangup(self, number: int, frame: FrameType | None) -> None:
        self.hung_up = True

    def _follow(self) -> int:
        asked = time.monotonic()
        conductors = 1
        while not self.hung_up:
            self._stop_if_asked()
            # Order matters: a request is unlinked by a conductor that holds its lock.
            pending = any((self.run.dir / "conductor" / "requests").glob("*.json"))
            alive = lease.is_held(self.run.conductor_lock)
            statuses = {status.name: status for status in self.run.statuses()}
            self._show(statuses)
            heard = self._listen()
            if alive:
                asked = time.monotonic()
                others = any(s.state in ACTIVE for name, s in statuses.items() if name not in self.request.stages)
                if others and not pending and self._all_done(statuses):
                    return self._verdict(statuses)  # the conductor goes on with what somebody else asked for
            elif not pending:
                ended = self.called_off or (self.last_word is not None and self.last_word.what in LAST_WORDS)
                active = [status.name for status in statuses.values() if status.state in ACTIVE]
                if (self.stopping or self.called_off) and active:
                    pass
                elif (ended and not active) or self.stopping or self._all_done(statuses):
                    return self._verdict(statuses)
                elif ended:
                    return self._conductor_gave_up()
                elif heard:
                    pass  # by somebody who came after we had looked for one
                elif conductors < MOST_CONDUCTORS:
                    conductors += 1
                    self._say("the conductor is gone; another one takes over")
                    self._ask_again()
                    asked = time.monotonic()
                else:
                    return self._conductor_gave_up()
            elif time.monotonic() - asked > GIVE_UP_AFTER_S:
                return self._conductor_gave_up()
            elif time.monotonic() - asked > NUDGE_AFTER_S * conductors:
                conductors += 1
                conductor.ask(self.run, conductor.Request())
            time.sleep(POLL_S)
        return HUNG_UP

    def _all_done(self, statuses: dict[str, StageStatus]) -> bool:
        redone = all(statuses[name].attempt > self.floor[name] for name in self.request.redo)
        return redone and all(statuses[name].state == "done" for name in self.request.stages)

    def _ask_again(self) -> None:
        left = [name for name in self.request.redo if max(self.run.attempts(name), default=0) <= self.floor[name]]
        fresh = [name for name in self.request.fresh if max(self.run.attempts(name), default=0) <= self.floor[name]]
        conductor.ask(self.run, conductor.Request(stages=self.request.stages, redo=left, fresh=fresh))

    def _stop_if_asked(self) -> None:
        if self.stops and not self.stopping:
            self.stopping = True
            names = conductor.stop(self.run)
            self._say(f"stopping: {', '.join(names) or 'nothing runs'}; it saves first (once more: kill it)")
        elif self.stops > 1:
            self.stops = 1
            self._say(f"killing: {', '.join(conductor.stop(self.run, kill=True)) or 'nothing runs'}")

    def _show(self, statuses: dict[str, StageStatus]) -> None:
        due = time.monotonic() >= self._next_progress
        for status in statuses.values():
            new = status.attempt, status.state
            old = self.shown.get(status.name)
            self.shown[status.name] = new
            if status.state in ACTIVE or (old is not None and new != old):
                self._read(status)
            if old is None and status.state not in ACTIVE:
                continue
            if new != old:
                self._say(self._change(status))
            elif due and status.state in ACTIVE:
                self._say(self._progress(status))
        if due:
            self._next_progress = time.monotonic() + PROGRESS_EVERY_S

    def _change(self, status: StageStatus) -> str:
        again = f" (attempt {status.attempt})" if status.attempt > 1 and status.state == "running" else ""
        text = f"{status.name:14} {status.state}{again}"
        if status.state == "done":
            text += f" in {duration(status.seconds)}"
            if status.predicted_s:
                text += f" (predicted {duration(status.predicted_s)})"
        return f"{text}: {status.reason}" if status.reason else text

    def _progress(self, status: StageStatus) -> str:
        parts = [f"{status.name:14} {status.phase or status.state}"]
        if status.steps:
            parts.append(f"step {status.step}/{status.steps}")
        metrics = self.metrics.get(status.name, {})
        if (loss := metrics.get("loss")) is not None:
            parts.append(f"loss {loss:.4f}")
        if (tok_s := metrics.get("tok_s")) is not None:
            parts.append(f"{tok_s:,.0f} tok/s")
        parts.append(duration(status.seconds))
        if status.eta is not None:
            parts.append(f"left {duration(status.eta)}")
        return "  ".join(parts)

    def _read(self, status: StageStatus) -> None:
        """What the stage said since we last looked; what it said before we came is history."""
        key = status.name, status.attempt
        if status.attempt == 0:
            return
        if key not in self.readers:
            file = self.run.events_file(*key)
            seen = status.attempt <= self.before.get(status.name, 0)
            self.readers[key] = event_file.EventReader(file, size_of(file) if seen else 0)
        while events := self.readers[key].poll():
            for event in events:
                if isinstance(event, ev.Metrics):
                    self.metrics.setdefault(status.name, {}).update(event.values)
                elif isinstance(event, ev.Warning):
                    self._say(f"{status.name:14} warning: {event.text}")
                elif isinstance(event, ev.Note):
                    self._say(f"{status.name:14} step {event.step}: {event.text}")
                elif isinstance(event, ev.Ready):
                    self._say(f"{status.name:14} can be used already; it goes on")
                elif isinstance(event, ev.Phase):
                    self._say(f"{status.name:14} {event.name} …")

    def _listen(self) -> bool:
        """Whether a conductor has said anything since we last listened."""
        words = [event for event in self._conductor_events.poll() if isinstance(event, ev.Conductor)]
        for word in words:
            self.last_word = word
            if word.what in ("stopped", "launched"):
                self.called_off = word.what == "stopped"
        return bool(words)

    def _verdict(self, statuses: dict[str, StageStatus]) -> int:
        unfinished = [statuses[name] for name in self.request.stages if statuses[name].state != "done"]
        if not unfinished:
            self._say(f"done: {len(self.request.stages)} of {len(self.request.stages)} stages")
            return DONE
        if self.stopping:
            self._say(f"stopped; go on with: picollm resume --run {self.run.name}")
            return STOPPED
        for status in unfinished:
            if status.state == "stopped" and status.attempt > self.floor[status.name]:
                self._complain(f"{status.name}: {status.reason}; go on with: picollm resume --run {self.run.name}")
                return STOPPED
            if status.state in ("failed", "crashed") and status.attempt > self.floor[status.name]:
                self._complain(f"{status.name} {status.state}: {status.reason}")
                return failure_code(self.run, status)
        if self.called_off:
            self._complain(f"stopped; go on with: picollm resume --run {self.run.name}")
            return STOPPED
        return self._conductor_gave_up()

    def _conductor_gave_up(self) -> int:
        if self.last_word is not None and self.last_word.what not in ("started", "launched", "adopted", "mending"):
            self._complain(self.last_word.text or self.last_word.what)
        else:
            console = self.run.dir / "conductor" / "console.log"
            self._complain(f"the conductor does not stay alive: {serving.last_line(console)}; see {console}")
        return OURS

    def _say(self, text: str) -> None:
        print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)

    def _complain(self, text: str) -> None:
        print(f"error: {text}", file=sys.stderr, flush=True)


def failure_code(run: Run, status: StageStatus) -> int:
    """Whose fault it was that a stage failed, as an exit code: the person's, as its last words say, or ours."""
    tail = event_file.tail_events(run.events_file(status.name, status.attempt))
    failed = next((event for event in reversed(tail) if isinstance(event, ev.Failed)), None)
    return USERS if failed is not None and failed.code == 2 else OURS


def size_of(file: Path) -> int:
    """Its bytes so far; 0 while there is none."""
    try:
        return file.stat().st_size
    except OSError:
        return 0


def run_stages(run: Run, stages: list[str], redo: bool = False, fresh: bool = False) -> int:
    """Ask for `stages` and follow them. Raises `UserError` when they must not be run as things are."""
    request = conductor.plan_request(run, stages, redo=redo, fresh=fresh)
    return Follower(run, request).follow()


def require(run: Run, stages: list[str]) -> None:
    """Make `stages` done before going on. Raises `UserError` when they end otherwise."""
    if (code := run_stages(run, stages)) != DONE:
        raise UserError(f"{run.name}: {', '.join(stages)} did not finish (exit code {code})")
