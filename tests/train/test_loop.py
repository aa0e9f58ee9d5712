from __future__ import annotations

import gc

import pytest
import torch

from picollm.run.errors import StopRequested
from picollm.train.batch import Batch
from picollm.train.device import Ranks
from picollm.train.loop import Every, NotFinite, loop
from picollm.train.optim import OptimizerSettings, build_optimizer
from picollm.train.schedule import Schedule
from picollm.train.step import Compute, ForwardBackward
from tests.train.conftest import ROWS, T, counting_batches, counting_rows, small_model


class Bench:
    """A model in a loop, with everything it reported."""

    def __init__(self) -> None:
        self.model = small_model()
        self.optimizer = build_optimizer(self.model, OptimizerSettings())
        self.reports = []
        self.run = ForwardBackward(self.model, Compute())

    def go(self, steps=10, *, first=0, batches=counting_batches, forward_backward=None, **kwargs):
        return loop(
            forward_backward or self.run, self.optimizer, batches, Schedule(steps, warmup=0),
            Ranks(torch.device("cpu")), first=first, last=steps, report=self.reports.append, **kwargs,
        )  # fmt: skip

    def weights(self):
        return {n: p.detach().clone() for n, p in self.model.named_parameters()}


def test_it_runs_and_reports_every_step():
    bench = Bench()
    assert bench.go(6) == 6
    assert [r.step for r in bench.reports] == [1, 2, 3, 4, 5, 6]
    assert bench.reports[-1].loss < bench.reports[0].loss
    assert all(r.tokens == ROWS * T and r.seconds > 0 and r.grad_norm > 0 for r in bench.reports)
    assert all(p.grad is None for p in bench.model.parameters())


def test_micro_batches_make_the_same_step():
    whole, parts = Bench(), Bench()
    whole.go(3)
    parts.go(3, batches=lambda step: [p for b in counting_batches(step) for p in b.split(1)])
    assert [r.loss for r in parts.reports] == pytest.approx([r.loss for r in whole.reports], rel=1e-3)
    assert parts.reports[0].tokens == whole.reports[0].tokens


def test_periodic_work():
    at, at_end, timed = [], [], []
    Bench().go(7, every=[Every(3, at.append, at_end=False), Every(0, at_end.append), Every(5, timed.append)])
    assert at == [3, 6]
    assert at_end == [7]
    assert timed == [5, 7]


def test_periodic_work_by_the_clock():
    often, never = [], []
    Bench().go(4, every=[Every(0, often.append, seconds=1e-9), Every(0, never.append, seconds=1e6, at_end=False)])
    assert often == [1, 2, 3, 4]
    assert never == []


@pytest.mark.parametrize(("first", "owed"), [(0, ["start"]), (3, ["third"]), (4, []), (6, ["third", "last", "start"])])
def test_who_goes_on_begins_with_the_readings_that_were_due(first, owed):
    made = []

    def note(name):
        return lambda step: made.append((name, step))

    readings = [Every(3, note("third")), Every(0, note("last")), Every(0, note("start"), at_start=True)]
    saving = Every(3, note("saved"), at_end=False)
    Bench().go(6, first=first, batches=lambda step: [], stop=lambda: True, every=[*readings, saving])
    assert made == [(name, first) for name in owed]


def test_a_stop_ends_the_loop_after_its_step():
    bench = Bench()
    done = []
    assert bench.go(10, stop=lambda: len(bench.reports) == 3, every=[Every(1, done.append)]) == 4
    assert done == [1, 2, 3]


def test_a_stop_in_the_last_step_is_a_finish():
    bench, done = Bench(), []
    assert bench.go(2, stop=lambda: len(bench.reports) == 1, every=[Every(0, done.append)]) == 2
    assert done == [2]


def test_a_stop_while_making_a_batch_discards_it():
    def batches(step):
        if step == 2:
            raise StopRequested(0)
        return counting_batches(step)

    assert Bench().go(5, batches=batches) == 2


def poisoned(bad_steps, run):
    calls = iter(range(1000))

    def forward_backward(batch):
        loss = run(batch)
        return loss * float("nan") if next(calls) in bad_steps else loss

    return forward_backward


def test_a_step_that_is_not_finite_changes_nothing_and_is_counted():
    bench = Bench()
    seen = []
    bench.go(4, forward_backward=poisoned({1, 2}, bench.run), every=[Every(1, lambda _: seen.append(bench.weights()))])
    assert [r.skipped for r in bench.reports] == [0, 1, 2, 2]
    assert all(torch.equal(seen[0][n], seen[2][n]) for n in seen[0])
    assert not torch.equal(seen[2]["wte.weight"], seen[3]["wte.weight"])


def test_a_gradient_that_is_not_finite_counts_too():
    bench = Bench()

    def forward_backward(batch):
        loss = bench.run(batch)
        bench.model.wte.weight.grad[0, 0] = float("inf")
        return loss

    before = bench.weights()
    bench.go(2, forward_backward=forward_backward)
    assert [r.skipped for r in bench.reports] == [1, 2]
    assert all(torch.equal(before[n], p) for n, p in bench.weights().items())


def test_too_many_in_a_row_is_an_error():
    bench = Bench()
    with pytest.raises(NotFinite, match="3 steps in a row, up to step 5"):
        bench.go(10, forward_backward=poisoned({0, 2, 3, 4}, bench.run), patience=3)
    assert gc.isenabled()


def test_a_batch_where_nothing_counts_is_harmless():
    bench = Bench()
    zero = lambda step: [Batch(*counting_rows(step), torch.zeros(ROWS, T), 0.0)]  # noqa: E731
    bench.go(2, batches=zero)
    assert [r.loss for r in bench.reports] == [0.0, 0.0]
    assert all(torch.isfinite(p).all() for p in bench.model.parameters())


def test_no_batch_at_all_is_harmless():
    bench = Bench()
    assert bench.go(2, batches=lambda step: []) == 2
    assert all(torch.isfinite(p).all() for p in bench.model.parameters())
