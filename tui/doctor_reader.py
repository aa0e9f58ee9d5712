"""What the doctor found, from its stage and from checks made again; looked at by the reader's thread."""

from __future__ import annotations

from picollm.run import event_file, lease, recheck
from picollm.run import events as ev
from picollm.run.folder import Run
from tui.stage_reader import StageReader


class DoctorReader:
    def __init__(self, run: Run) -> None:
        self._stage = StageReader(run, "doctor")
        self._run = run
        self._again: event_file.EventReader | None = None
        self._events: list[ev.AnyEvent] = []
        self._sent: recheck.Found | None = None

    def poll(self) -> recheck.Found | None:
        """What there is now; None when it is as it was."""
        changed = self._stage.poll()
        place = recheck.folder(self._run.dir)
        if self._again is None or self._again.path.parent != place:
            self._again, self._events = event_file.EventReader(place / "events.jsonl"), []
            changed = True
        new = self._again.poll()
        self._events += new
        going = bool(self._events) and not isinstance(self._events[-1], ev.TERMINAL)
        if not (changed or new or going):
            return None
        found = recheck.newest(self._stage.history.checks, self._events, going and lease.is_held(place / "lock"))
        if found == self._sent:
            return None
        self._sent = found
        return found
