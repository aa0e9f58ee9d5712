"""The two exceptions that cross every wall.

`UserError` is a mistake of the person's: one line, exit code 2, no traceback.
`StopRequested` leaves a stage after everything worth keeping was saved.
"""

from __future__ import annotations


class UserError(Exception):
    """Something the person can put right; the message says what, where and what to do, on one line."""


class StopRequested(Exception):
    """A stop was asked for and the work so far is saved; `step` is where a resume continues."""

    def __init__(self, step: int = 0) -> None:
        super().__init__(f"stopped at step {step}")
        self.step = step
