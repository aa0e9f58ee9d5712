"""The attempts of a stage in one line each: when, how long, on how many ranks, and how each ended."""

from __future__ import annotations

import time

from picollm.run import events as ev
from picollm.run.folder import Run, StageStatus
from picollm.run.history import StageHistory
from tui.figures import clock


class Attempts:
    """Remembers how earlier attempts ended; how the newest one stands is the stage's state."""

    def __init__(self, run: Run, name: str) -> None:
        self._run, self._name = run, name
        self._ended: dict[int, str] = {}

    def lines(self, history: StageHistory) -> tuple[str, ...]:
        """Oldest first. In the reader's thread: it may look into the files of earlier attempts, each once."""
        found = []
        for index, started in enumerate(history.started):
            begin, end = history.spans[index]
            ranks = f"  {started.world} ranks" if started.world > 1 else ""
            begun = time.strftime("%d %b %H:%M", time.localtime(begin))
            last = index == len(history.started) - 1
            ended = ("done" if history.finished else "") if last else self._how_it_ended(started.attempt)
            spent = "" if last and not history.finished else f"  {clock(end - begin):>7}"
            found.append(f"{started.attempt}: {begun}{ranks}{spent}  {ended}".rstrip())
        return tuple(found)

    def _how_it_ended(self, attempt: int) -> str:
        if attempt not in self._ended:
            tail = self._run.ends(self._name, attempt)[1]
            self._ended[attempt] = _outcome(next((e for e in reversed(tail) if isinstance(e, ev.TERMINAL)), None))
        return self._ended[attempt]


def ended(line: str, status: StageStatus) -> str:
    """The newest attempt's line, with how long it took and how it ended where the stage's state says that."""
    if status.state not in ("failed", "crashed", "stopped") or not line.startswith(f"{status.attempt}: "):
        return line
    words = {"failed": f"failed: {_short(status.reason)}", "stopped": status.reason}.get(status.state, status.state)
    return f"{line}  {clock(status.seconds):>7}  {words}"


def _short(error: str) -> str:
    return error.partition("\n")[0][:100]


def _outcome(event: object) -> str:
    if isinstance(event, ev.Finished):
        return "done"
    if isinstance(event, ev.Stopped):
        return f"stopped at step {event.step:,}" if event.step else "stopped"
    if isinstance(event, ev.Failed):
        return f"failed: {_short(event.error)}"
    return "crashed"
