"""What a new kind of data does to the loss: it jumps above where the stage before ended, and comes down again.

A pure function of the run's own figures, so the stage, the report and the app find the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

SHARE = 1.05
"""The loss jumped when one of the first `FIRST` steps is above this multiple of where the stage before ended."""
FIRST, CALM = 2, 3
"""It has recovered at the first step at which the mean of the last `CALM` is below that again."""


class Spike(msgspec.Struct, frozen=True, kw_only=True):
    """`before`: loss at the end of the stage before, nats per token; `top`: the highest since, at `step`;
    `recovered_step`: None while it has not come down."""

    before: float
    top: float
    step: int
    recovered_step: int | None = None

    @property
    def height(self) -> float:
        """How far it jumped, in nats per token."""
        return self.top - self.before

    def as_summary(self) -> dict[str, float | int | None]:
        return {**msgspec.to_builtins(self), "height": self.height}


def opening_spike(before: float, steps: Sequence[int], losses: Sequence[float]) -> Spike | None:
    """The jump at the beginning of a stage whose losses these are, from its first step on; None when there is none."""
    if not losses or max(losses[:FIRST]) <= SHARE * before:
        return None
    recovered = next((i for i in range(CALM, len(losses) + 1) if sum(losses[i - CALM : i]) / CALM < before), None)
    until = losses[:recovered]
    top = max(range(len(until)), key=lambda i: until[i])
    return Spike(
        before=before,
        top=losses[top],
        step=steps[top],
        recovered_step=None if recovered is None else steps[recovered - 1],
    )
