"""One stage's history, read bit by bit in the reader's thread, with its curves as pyramids.

Who calls what: `bridge.Reader` polls the selected stage, the same stage of the runs laid over it, and the doctor;
`detail` is what the screens get.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Mapping
from typing import Any

from picollm.run import events as ev
from picollm.run.errors import UserError
from picollm.run.folder import Run
from picollm.run.history import StageHistory
from tui import state
from tui.attempts import Attempts
from tui.axis import Pace, Ways
from tui.pyramid import Curve, Pyramid

NOTES = 8  # kept for the curves, the newest ones
PORTION_S = 0.15
FIRST_PORTION_S = 0.6


class _History(StageHistory):
    """Keeps points in pyramids, and what turns steps into tokens and time."""

    def __init__(self, run: Run, name: str) -> None:
        super().__init__(run, name)
        self.towers: dict[str, Pyramid] = {}
        self.pace = Pace()
        self._steps: tuple[list[int], array[float]] = ([], array("d"))

    def _metrics(self, group: list[ev.Metrics]) -> bool:
        if not super()._metrics(group):
            return False
        known = group[0].values
        tok_s, step_s = (
            [event.values[key] or 0.0 for event in group] if key in known else None for key in ("tok_s", "step_s")
        )
        self.pace.extend([event.step for event in group], [event.time for event in group], tok_s, step_s)
        return True

    def _add(self, key: str, steps: list[int], values: list[float], times: list[float]) -> None:
        if key not in self.towers:
            self.towers[key] = Pyramid()
        if steps is not self._steps[0]:  # one list for all the metrics of a portion
            self._steps = steps, array("d", steps)
        self.towers[key].extend(self._steps[1], values)

    def _cut(self, step: int) -> None:
        self.pace.cut(step)
        for tower in self.towers.values():
            tower.cut(step)

    def _forget(self) -> None:
        self.towers.clear()
        self.pace = Pace()

    def _take(self, event: Any) -> None:
        if isinstance(event, ev.Started):
            self.pace.pause()
        super()._take(event)


class StageReader:
    """Follows one stage of one run; `more`: the end of what is there has not been reached yet."""

    def __init__(self, run: Run, name: str) -> None:
        self.run, self.name = run, name
        self.history = _History(run, name)
        self._attempts = Attempts(run, name)
        self.more = False
        self._flops: float | None = None
        self._portion_s = FIRST_PORTION_S

    def poll(self) -> bool:
        """Read what is new, for a while; True when there was anything."""
        end = time.monotonic() + self._portion_s
        self._portion_s = PORTION_S
        changed = self.more = False
        while self.history.poll():
            changed = True
            if time.monotonic() > end:
                self.more = True
                break
        return changed

    def curves(self) -> Mapping[str, Curve]:
        return {key: tower.curve() for key, tower in self.history.towers.items()}

    def ways(self) -> Ways:
        if self._flops is None and self.history.towers:
            self._flops = _flops_per_token(self.run)
        self.history.pace.flops = self._flops or 0.0
        return self.history.pace.ways()

    def detail(self, others: Mapping[str, StageReader] | None = None) -> state.Detail:
        """What the screens show; `others`: the same stage of other runs, by the names of the runs."""
        history = self.history
        return state.Detail(
            stage=self.name,
            attempts=self._attempts.lines(history),
            checks=tuple(history.checks),
            evals=tuple(history.evals[-60:]),
            samples=tuple(history.samples[-12:]),
            choices=tuple(history.choices),
            warnings=tuple(history.warnings[-20:]),
            notes=tuple(history.notes[-NOTES:]),
            checkpoints=tuple(history.checkpoints[-6:]),
            made=dict(history.finished.paths) if history.finished else {},
            summary=dict(history.finished.summary) if history.finished else {},
            curves=self.curves(),
            ways=self.ways(),
            others=tuple((name, other.ways(), other.curves()) for name, other in (others or {}).items()),
            reading=self.more,
        )


def _flops_per_token(run: Run) -> float:
    """Of the run's model; 0 while it is not planned."""
    from picollm.run import plan, scaling

    try:
        return scaling.flops_per_token(plan.shape(run.config()))
    except UserError:
        return 0.0
