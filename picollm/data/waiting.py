"""Waiting, visibly, for what a stage before this one is still making."""

from __future__ import annotations

import time

from picollm.run.errors import UserError
from picollm.run.folder import ACTIVE
from picollm.run.stage import StageContext

LOOK_S = 0.2
SIGN_S = 20.0  # between two signs of life, so that a long wait is not taken for a stall
PHASE = "wait for data"


class Upstream:
    """Called with the name of something that is not there yet, again and again until it is; see `over`.

    Each call takes a moment. The stage says once what it waits for, and for whom; it leaves when a stop is asked for.
    `doing` is the phase it was in. Raises StopRequested, or UserError when `stage` ended without making it: rank 0
    alone judges that, since others may be on machines that do not see whether the stage lives.
    """

    def __init__(self, ctx: StageContext, stage: str, doing: str) -> None:
        self._ctx, self._stage, self._doing = ctx, stage, doing
        self._begun: float | None = None
        self._next_sign = 0.0
        self._ended = ""

    def __call__(self, what: str) -> None:
        now = time.monotonic()
        if self._begun is None:
            self._begun = now
            self._ctx.message(f"waiting for {what} from the {self._stage} stage")
        if now >= self._next_sign:
            self._next_sign = now + SIGN_S
            self._ctx.phase(PHASE)
        self._ctx.raise_if_stopped()
        if self._ctx.rank == 0 and self._ended == what:  # ended before the last look, which did not find it either
            status = self._ctx.run.status(self._stage)
            why = f": {status.reason}" if status.reason else ""
            again = "resume it"
            if status.state == "done":  # it was deleted since; resuming would not make it again
                again = f"picollm run --run {self._ctx.run.name} --only {self._stage} makes it again, then resume"
            raise UserError(f"{what} is missing and the {self._stage} stage has ended ({status.state}{why}); {again}")
        self._ended = "" if self.working() else what
        time.sleep(LOOK_S)

    def working(self) -> bool:
        """Whether the stage is still at it."""
        return self._ctx.run.status(self._stage).state in ACTIVE

    def over(self) -> None:
        """What was waited for is there: back to what the stage was doing. Nothing happens when nobody waited."""
        if self._begun is not None:
            self._ctx.message(f"waited {time.monotonic() - self._begun:.1f} s for data")
            self._ctx.phase(self._doing)
            self._begun, self._next_sign, self._ended = None, 0.0, ""
