"""Learning rate, momentum and weight decay as pure functions of the step: nothing to save, nothing to resume."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Schedule:
    """The trapezoid of the recipe: linear warm-up, constant, then down to `final`.

    Attributes:
        steps: steps of the whole stage.
        warmup: steps from lr/warmup up to the full learning rate.
        warmdown: share of the steps over which it falls, 0 to 1.
        final: learning rate after the last step, as a share of the full one.
        shape: how it falls.
        momentum: Muon's momentum at the start, after `momentum_steps`, and at the end of the warmdown.
        weight_decay_to: share of Muon's weight decay left at the end of a half cosine over all steps.
    """

    steps: int
    warmup: int = 40
    warmdown: float = 0.65
    final: float = 0.05
    shape: Literal["linear", "cosine"] = "linear"
    momentum: tuple[float, float, float] = (0.85, 0.97, 0.90)
    momentum_steps: int = 400
    weight_decay_to: float = 0.0

    @property
    def warmdown_steps(self) -> int:
        return round(self.warmdown * self.steps)

    def falling(self, step: int) -> float:
        """How far the warmdown has come at this step, 0 to 1."""
        if self.warmdown_steps == 0:
            return 0.0
        return min(1.0, max(0.0, 1 - (self.steps - step) / self.warmdown_steps))

    def lr(self, step: int) -> float:
        """The multiplier of every learning rate for the update made at `step` (counted from 0)."""
        rising = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        fallen = self.falling(step)
        if self.shape == "cosine":
            fallen = 0.5 - 0.5 * math.cos(math.pi * fallen)
        return rising * (1 - fallen * (1 - self.final))

    def muon_momentum(self, step: int) -> float:
        """0.85 → 0.97 over the first `momentum_steps` (at most a third of the stage), → 0.90 in the warmdown."""
        low, high, end = self.momentum
        rise = max(1, min(self.momentum_steps, self.steps // 3))
        held = low + (high - low) * min(1.0, step / rise)
        return held + (end - held) * self.falling(step)

    def weight_decay(self, step: int) -> float:
        """The multiplier of Muon's weight decay: a half cosine from 1 to `weight_decay_to`."""
        wave = 0.5 + 0.5 * math.cos(math.pi * min(1.0, step / max(1, self.steps)))
        return self.weight_decay_to + (1 - self.weight_decay_to) * wave
