"""What goes wrong in training and shows in its figures, said while it happens, once, with what to do about it.

`Watch` is fed one step at a time and knows no tensors, files or processes: the same curve gives the same words. All
comparisons are against the run's own recent past (medians, and spread as the median absolute deviation, which a few
wild steps do not move), so nothing has to be set for another size of model.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from statistics import median

from picollm.run.spike import FIRST, Spike, opening_spike

WINDOW = 64
"""Steps of recent past that a step is compared with; half of them must be there first."""
NEAR_GUESSING = 0.93
"""A loss above this share of ln(vocabulary) has learnt less than which tokens are frequent."""
FEWEST_TOKENS, FEWEST_STEPS = 50, 80
"""Tokens per entry of the vocabulary, and steps at the full learning rate, before guessing is worth a word."""
SPIKE_SPREADS, SPIKE_SHARE, SPIKE_STEPS = 8.0, 0.25, 2
"""A spike: this many steps in a row above the median by so many spreads and by this share of it."""
SPIKE_PATIENCE, MOST_SPIKES = 100, 5
RISE_BLOCK, RISE_SHARE = 50, 0.07
"""The loss rises when the medians of two blocks of steps in a row are this share above the best block's."""
EXPLODED, EXPLODED_STEPS = 10.0, 3
MIXTURE_STEPS, FALLEN, MOST_OPENING = 30, 0.93, 1000
"""Midtraining begins above where pretraining ended (`spike.SHARE`), or has fallen to `FALLEN` by step 30. A jump that
has not come down after the last of these many steps is not followed any further."""
SLOW, SLOW_STEPS, SLOW_SECONDS = 0.7, 20, 10.0
"""Slow: the median of so many steps is below this share of the plan; told when it stays so for these seconds."""


@dataclass(frozen=True, slots=True)
class Notice:
    """One line for the person. A warning asks for something to be done; what is not one is only worth knowing.

    `step`: where on the curve it belongs; 0: nowhere.
    """

    text: str
    warning: bool = True
    step: int = 0


@dataclass
class _Spike:
    begun: int
    usual: float
    back: float
    top: float
    calm: int = 0
    given_up: bool = False


@dataclass
class Watch:
    """`step(...)` returns what there is to say after a step, mostly nothing.

    Attributes:
        stage: its name. The loss of "rl" is no likelihood, so only its gradients are watched.
        vocab_size: a loss of ln(vocab_size) nats is guessing.
        warmup: steps until the full learning rate.
        planned_tok_s: tokens per second that the plan counts on; 0 when unknown.
        parent_loss: loss in nats at which the stage before ended; None when unknown.
        opening: (step, loss) from the first step of midtraining until its jump is over; None: not seen.
        who: asked when training is slow, first to begin looking ("" then), and SLOW_SECONDS later for an answer.
    """

    stage: str
    vocab_size: int
    warmup: int = 0
    planned_tok_s: float = 0.0
    parent_loss: float | None = None
    opening: list[tuple[int, float]] | None = None
    who: Callable[[], str] = lambda: ""
    _said: set[str] = field(default_factory=set)
    _losses: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    _norms: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    _speeds: deque[float] = field(default_factory=lambda: deque(maxlen=SLOW_STEPS))
    _block: list[float] = field(default_factory=list)
    _blocks: list[float] = field(default_factory=list)
    _tokens: int = 0
    _high: int = 0
    _high_norms: int = 0
    _slow_for: float = -1.0
    _spike: _Spike | None = None
    _settled: bool = False
    _spikes: int = 0

    def step(
        self, step: int, *, tokens: int, loss: float, grad_norm: float, seconds: float, timed: bool = True
    ) -> list[Notice]:
        """After one step: `tokens` and `seconds` are that step's, `loss` in nats per counted token.

        `timed`: the seconds mean something (no compiling among them). A skipped step is not shown to the watch.
        """
        self._tokens += tokens
        found: list[Notice] = []
        if self.stage != "rl":
            found += self._mixture(step, loss)
            found += self._guessing(step, loss)
            found += self._spiking(step, loss)
            found += self._rising(step, loss)
        found += self._exploding(step, grad_norm)
        if timed:
            found += self._dragging(step, tokens, seconds)
        return found

    def _once(self, key: str, text: str) -> Iterator[Notice]:
        if key not in self._said:
            self._said.add(key)
            yield Notice(text)

    def spike(self) -> Spike | None:
        """The jump at the beginning of midtraining; None where there was none, or nobody saw the beginning."""
        if self.opening is None or self.parent_loss is None:
            return None
        return opening_spike(self.parent_loss, [step for step, _ in self.opening], [loss for _, loss in self.opening])

    def _mixture(self, step: int, loss: float) -> Iterator[Notice]:
        if self.stage != "midtrain" or self.parent_loss is None:
            return
        if step == 1:
            self.opening, self._settled = [], False
        self._settled = self._settled or self._followed()
        if self.opening is None or self._settled:
            return
        self.opening.append((step, loss))
        spike, seen = self.spike(), len(self.opening)
        first = max(value for _, value in self.opening[:FIRST])
        if spike is not None:
            if seen == FIRST:
                yield Notice(
                    f"loss spiked to {spike.top:.2f} where pretraining ended at {spike.before:.2f}: the new format, as "
                    "it should be",
                    warning=False,
                    step=spike.step,
                )
            if spike.recovered_step == step:
                yield Notice(f"loss is below pretraining's last since step {step}", warning=False, step=step)
        elif seen == MIXTURE_STEPS and median(value for _, value in self.opening[-10:]) > FALLEN * first:
            yield from self._once(
                "mixture",
                f"midtraining began at a loss of {first:.2f}, where pretraining ended ({self.parent_loss:.2f}), "
                "and has not fallen since: its rows look like the text before; check midtrain.mixture and the rows "
                "this stage said it mixed",
            )

    def _followed(self) -> bool:
        """Whether the beginning was followed to its end, by this attempt or by one before it."""
        spike, seen = self.spike(), len(self.opening or ())
        return seen >= MIXTURE_STEPS if spike is None else spike.recovered_step is not None or seen >= MOST_OPENING

    def _guessing(self, step: int, loss: float) -> Iterator[Notice]:
        guess = math.log(self.vocab_size)
        recent = [*self._losses, loss][-SLOW_STEPS:]
        late = step >= self.warmup + FEWEST_STEPS and self._tokens >= FEWEST_TOKENS * self.vocab_size
        if late and len(recent) == SLOW_STEPS and median(recent) > NEAR_GUESSING * guess:
            yield from self._once(
                "guessing",
                f"loss is {median(recent):.2f} at step {step}, near ln(vocabulary) = {guess:.2f}, which is guessing: "
                "look at the text (data.source) and at the round trips of tokenizer_eval, then at the learning rate",
            )

    def _spiking(self, step: int, loss: float) -> Iterator[Notice]:
        if self._spike is not None:
            yield from self._recovering(self._spike, step, loss)
            return
        if len(self._losses) < WINDOW // 2:
            self._losses.append(loss)
            return
        usual, spread = _middle(self._losses)
        margin = max(SPIKE_SPREADS * spread, SPIKE_SHARE * abs(usual))
        if loss <= usual + margin:
            self._high = 0
            self._losses.append(loss)
            return
        self._high += 1
        if self._high == SPIKE_STEPS:
            self._high = 0
            back = usual + max(3 * spread, 0.05 * abs(usual))
            self._spike = _Spike(step - SPIKE_STEPS + 1, usual, back, loss)
            self._spikes += 1
            if self._spikes <= MOST_SPIKES:
                yield Notice(
                    f"loss spike at step {self._spike.begun}: {usual:.2f} to {loss:.2f}", False, self._spike.begun
                )

    def _recovering(self, spike: _Spike, step: int, loss: float) -> Iterator[Notice]:
        spike.top = max(spike.top, loss)
        spike.calm = spike.calm + 1 if loss <= spike.back else 0
        if spike.calm == 3:
            self._spike = None
            if self._spikes <= MOST_SPIKES or spike.given_up:
                yield Notice(
                    f"loss spike of step {spike.begun} (up to {spike.top:.2f}) is over since step {step - 2}",
                    warning=False,
                    step=step - 2,
                )
        elif step - spike.begun >= SPIKE_PATIENCE and not spike.given_up:
            spike.given_up = True
            yield from self._once(
                "spike",
                f"loss jumped at step {spike.begun} from {spike.usual:.2f} to {spike.top:.2f} and is still {loss:.2f} "
                f"at step {step}: {self._lower_lr()}",
            )

    def _rising(self, step: int, loss: float) -> Iterator[Notice]:
        if step <= self.warmup:
            return
        self._block.append(loss)
        if len(self._block) < RISE_BLOCK:
            return
        usual, spread = _middle(self._block)
        self._block = []
        self._blocks.append(usual)
        best, last = min(self._blocks), self._blocks[-2:]
        noise = 4 * 1.25 * spread / math.sqrt(RISE_BLOCK)  # a median's standard error is 1.25 times a mean's
        if len(self._blocks) >= 3 and min(last) > best + max(RISE_SHARE * abs(best), noise):
            yield from self._once(
                "rising",
                f"loss is rising: {best:.2f} at its best, {last[-1]:.2f} over the last {RISE_BLOCK} steps up to "
                f"{step}: {self._lower_lr()}",
            )

    def _exploding(self, step: int, norm: float) -> Iterator[Notice]:
        usual = median(self._norms) if len(self._norms) >= WINDOW // 2 else math.inf
        if usual > 0 and norm > EXPLODED * usual:
            self._high_norms += 1
            if self._high_norms >= EXPLODED_STEPS:
                yield from self._once(
                    "norm",
                    f"gradient norm {norm:.3g} at step {step}, {norm / usual:.0f} times the usual {usual:.3g}: "
                    f"{self._lower_lr()}",
                )
            return
        self._high_norms = 0
        self._norms.append(norm)

    def _dragging(self, step: int, tokens: int, seconds: float) -> Iterator[Notice]:
        if not self.planned_tok_s or seconds <= 0 or "slow" in self._said:
            return
        self._speeds.append(tokens / seconds)
        tok_s = median(self._speeds)
        if len(self._speeds) < SLOW_STEPS or tok_s >= SLOW * self.planned_tok_s:
            self._slow_for = -1.0
            return
        if self._slow_for < 0:
            self._slow_for = 0.0
            self.who()
            return
        self._slow_for += seconds
        if self._slow_for >= SLOW_SECONDS:
            others = self.who() or "nobody else is busy here; look at heat, power limits and machine.threads"
            yield from self._once(
                "slow", f"{tok_s:,.0f} tok/s at step {step} where the plan has {self.planned_tok_s:,.0f}: {others}"
            )

    def _lower_lr(self) -> str:
        knob = "pretrain.matrix_lr and pretrain.embedding_lr" if self.stage == "pretrain" else f"{self.stage}.lr"
        return f"stop, lower {knob}, and start this stage over with --fresh"


def _middle(values: deque[float] | list[float]) -> tuple[float, float]:
    """Median, and the spread as a standard deviation: 1.4826 × the median absolute deviation."""
    usual = median(values)
    return usual, 1.4826 * median(abs(value - usual) for value in values)
