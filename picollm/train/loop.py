"""THE loop. It knows batches, gradients, ranks and when to stop; it does not know what is being learnt."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from picollm.run.errors import StopRequested
from picollm.train.batch import Batch
from picollm.train.device import Ranks
from picollm.train.optim import Optimizer
from picollm.train.schedule import Schedule
from picollm.train.sharded import ShardedOptimizer
from picollm.train.spans import span, spanned


@dataclass
class Every:
    """Periodic work: `fn(step)` after every `n` steps or every `seconds` of rank 0's clock, and after the last step.

    With `at_start` also before the first step of all: where training began from. With `when` also whenever rank 0 finds
    it true, or, if there are `seconds`, only once both hold.

    What is done `at_end` is a reading: it changes nothing, and who goes on from a step after which it was due begins
    with it, since it may not have come to its end.

    `step` counts finished steps. All ranks run `fn` at the same step, so it may use collectives.
    """

    n: int
    fn: Callable[[int], object]
    seconds: float = 0.0
    at_end: bool = True
    at_start: bool = False
    when: Callable[[], bool] | None = None
    _next: float = field(default=math.inf, repr=False)

    def owed(self, first: int, last: int) -> bool:
        """Whether an attempt that begins after step `first` begins with it."""
        if first == 0 < last:
            return self.at_start
        return self.at_end and (first == last or (self.n > 0 and first % self.n == 0))

    def wind(self) -> None:
        self._next = time.monotonic() + self.seconds

    def due(self) -> bool:
        """Whether rank 0 wants it now."""
        if self.seconds > 0 and time.monotonic() < self._next:
            return False
        return self.seconds > 0 if self.when is None else self.when()


@dataclass(frozen=True, slots=True)
class Report:
    """One finished step. `loss` is in nats per counted token, `seconds` includes waiting for the batch."""

    step: int
    loss: float
    grad_norm: float
    lr: float
    tokens: int
    seconds: float
    skipped: int


class NotFinite(Exception):
    """Too many steps in a row had a loss or gradient that was not finite; `batches` are this rank's of the last one."""

    def __init__(self, step: int, in_a_row: int, batches: Sequence[Batch] = ()) -> None:
        super().__init__(f"the loss or its gradient was not finite for {in_a_row} steps in a row, up to step {step}")
        self.step, self.batches = step, batches


def loop(
    forward_backward: Callable[[Batch], Tensor],
    optimizer: Optimizer | ShardedOptimizer,
    batches: Callable[[int], Iterable[Batch]],
    schedule: Schedule,
    ranks: Ranks,
    *,
    first: int,
    last: int,
    every: Sequence[Every] = (),
    report: Callable[[Report], None] = lambda _: None,
    stop: Callable[[], bool] = lambda: False,
    updated: Callable[[], None] = lambda: None,
    patience: int = 10,
) -> int:
    """Make the updates of steps `first`..`last`−1; returns the number of finished steps, fewer than `last` if stopped.

    `batches(step)` gives this rank's micro-batches and depends on nothing but the step, so that a resumed run sees what
    an undisturbed one would have. A step whose loss or gradient is not finite changes nothing and is counted;
    `patience` of them in a row raise NotFinite. A StopRequested out of `batches`, on any rank, ends the loop on all of
    them before that step; one out of `every`, which all ranks must raise together, leaves the loop. `updated` is called
    after every change of the weights.
    """
    skipped = in_a_row = 0
    for item in every:
        if item.owed(first, last):
            item.fn(first)
        item.wind()
    with frozen_gc():
        for step in range(first, last):
            begun = time.perf_counter()
            loss, tokens, parts, abandoned = torch.zeros((), device=ranks.device), 0, [], False
            try:
                for batch, is_last in marked_last(spanned("data", partial(batches, step))):
                    if is_last and step > first:  # not in the first step, where a failed compile may be repeated
                        optimizer.arm()
                    with span("data"):
                        parts.append(batch.to(ranks.device))
                    loss += forward_backward(parts[-1]).detach()
                    tokens += batch.tokens
            except StopRequested:
                if ranks.world == 1:
                    return step
                abandoned = True  # the other ranks may be under way in this step: they are told in the exchange
            with span("gradients"):
                norm = optimizer.collect()

            # One exchange and one wait a step: everything the ranks must agree on, together.
            mine = [abandoned, stop(), *(ranks.rank == 0 and item.due() for item in every), tokens]
            numbers = torch.tensor(mine, dtype=norm.dtype, device=ranks.device)
            with span("sync"):
                agreed = ranks.sum(torch.cat([torch.stack([loss.to(norm.dtype), norm]), numbers])).tolist()
            loss_value, norm_squared, abandoning, stopping, *due, all_tokens = agreed
            grad_norm = math.sqrt(norm_squared)
            if abandoning:
                optimizer.zero_grad()
                return step

            good = math.isfinite(loss_value) and math.isfinite(grad_norm)
            if good:
                optimizer.step(schedule.lr(step), schedule.muon_momentum(step), schedule.weight_decay(step))
                updated()
                in_a_row = 0
            else:
                skipped, in_a_row = skipped + 1, in_a_row + 1
            optimizer.zero_grad()

            done, seconds = step + 1, time.perf_counter() - begun
            report(Report(done, loss_value, grad_norm, schedule.lr(step), int(all_tokens), seconds, skipped))
            if in_a_row >= patience:
                raise NotFinite(done, in_a_row, parts)
            if stopping and done < last:
                return done
            if done % 1000 == 0:
                gc.collect()  # only what was made since the freeze
            for item, is_due in zip(every, due, strict=True):
                if is_due or (item.n > 0 and done % item.n == 0) or (item.at_end and done == last):
                    item.fn(done)
                    item.wind()
    return last


Item = TypeVar("Item")


def marked_last(items: Iterable[Item]) -> Iterator[tuple[Item, bool]]:
    """Each item with whether it is the last one."""
    rest = iter(items)
    for item in rest:
        for following in rest:
            yield item, False
            item = following
        yield item, True


@contextmanager
def frozen_gc() -> Iterator[None]:
    """No garbage collection inside: a pass over torch's millions of objects stalls every rank, and finds nothing."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()
