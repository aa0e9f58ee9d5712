"""When RL stops learning, or unlearns: said while it happens, once, with what to do about it.

Like `watch`, fed one step's figures at a time (`rollouts.figures`) and comparing a run with its own past: the same
curves give the same words. A resumed attempt takes its own first steps for the past.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from statistics import fmean

from picollm.train.watch import Notice

FIRST = 10
"""Steps whose mean is what later ones are compared with."""
WINDOW = 20
"""Steps of recent past that are looked at."""
NO_SIGNAL = 0.02
"""Share of questions with unequal answers below which a step teaches nothing."""
SOLVED = 0.9
"""Mean reward from which equal answers mean that there is nothing left to learn."""
ENTROPY_LEFT = 0.1
"""The sampling has collapsed when this share of the first steps' entropy is left, and reward has not risen with it."""
ENTROPY_GROWN = 2.5
"""The sampling dissolves when the entropy is this many times that of the first steps, and half a nat above it."""
REWARD_LEFT = 0.5
"""The reward has collapsed when this share of its best window is left."""
ENDED_LEFT = 0.5
"""Answers run to the limit when this share of the first steps' ends is left."""


@dataclass
class Collapse:
    """`step(...)` returns what there is to say after a step, mostly nothing."""

    _history: list[dict[str, float]] = field(default_factory=list)
    _best: float = 0.0
    _said: set[str] = field(default_factory=set)

    def step(self, step: int, figures: Mapping[str, float]) -> list[Notice]:
        """After step `step` with these figures: reward, useful, entropy, ended are looked at."""
        self._history.append({key: figures[key] for key in ("reward", "useful", "entropy", "ended")})
        if len(self._history) < FIRST + WINDOW:
            return []
        first = {key: fmean(past[key] for past in self._history[:FIRST]) for key in figures if key in self._history[0]}
        last = {key: fmean(past[key] for past in self._history[-WINDOW:]) for key in first}
        self._best = max(self._best, last["reward"], first["reward"])
        return [*self._no_signal(step, last), *self._entropy(step, first, last), *self._reward(step, last),
                *self._endless(step, first, last)]  # fmt: skip

    def _once(self, key: str, text: str, warning: bool = True) -> Iterator[Notice]:
        if key not in self._said:
            self._said.add(key)
            yield Notice(text, warning)

    def _no_signal(self, step: int, last: Mapping[str, float]) -> Iterator[Notice]:
        if last["useful"] > NO_SIGNAL:
            return
        if last["reward"] >= SOLVED:
            text = f"nearly every answer is right by step {step} ({last['reward']:.0%}), so little is left to learn: "
            yield from self._once("signal", text + "stop here, or set a harder rl.task", warning=False)
        else:
            yield from self._once(
                "signal",
                f"for {WINDOW} steps up to {step} the answers to a question had equal rewards (mean "
                f"{last['reward']:.2f}), and equal rewards teach nothing: raise rl.samples or rl.temperature, or set "
                "an rl.task that SFT sometimes gets right",
            )

    def _entropy(self, step: int, first: Mapping[str, float], last: Mapping[str, float]) -> Iterator[Notice]:
        if last["entropy"] < ENTROPY_LEFT * first["entropy"] and last["reward"] < SOLVED:
            yield from self._once(
                "entropy",
                f"entropy fell from {first['entropy']:.3f} to {last['entropy']:.3f} nats by step {step} with the "
                f"reward at {last['reward']:.2f}: the model has stopped trying other answers; start over with --fresh "
                'and a lower rl.lr, or with rl.schedule = "cosine"',
            )

        if last["entropy"] > max(ENTROPY_GROWN * first["entropy"], first["entropy"] + 0.5):
            yield from self._once(
                "dissolving",
                f"entropy rose from {first['entropy']:.2f} to {last['entropy']:.2f} nats by step {step}: pushing wrong "
                "answers away makes everything else likelier; start over with --fresh and a lower rl.lr",
            )

    def _reward(self, step: int, last: Mapping[str, float]) -> Iterator[Notice]:
        if last["reward"] < REWARD_LEFT * self._best and self._best > 0.05:
            yield from self._once(
                "reward",
                f"the reward fell from {self._best:.2f} to {last['reward']:.2f} (mean of {WINDOW} steps up to {step}): "
                "stop, lower rl.lr, and start this stage over with --fresh",
            )

    def _endless(self, step: int, first: Mapping[str, float], last: Mapping[str, float]) -> Iterator[Notice]:
        if last["ended"] < ENDED_LEFT * first["ended"] and first["ended"] > 0.5:
            yield from self._once(
                "ended",
                f"{last['ended']:.0%} of the answers end by themselves by step {step}, {first['ended']:.0%} did at "
                "first: look at the samples, then raise rl.max_tokens or lower rl.lr",
            )
