from __future__ import annotations

import threading

import pytest
import torch

from picollm.run.errors import StopRequested, UserError
from picollm.train.prefetch import ahead
from tests.train.conftest import ROWS, T, counting_batches

CPU = torch.device("cpu")


def test_the_same_batches_in_the_same_order_from_another_thread():
    makers = set()

    def batches(step):
        makers.add(threading.current_thread())
        return counting_batches(step)

    with ahead(batches, 3, 9, 2, CPU) as made:
        for step in range(3, 9):
            ((mine,), (theirs,)) = made(step), counting_batches(step)
            assert torch.equal(mine.inputs, theirs.inputs) and torch.equal(mine.targets, theirs.targets)
            assert mine.denom == theirs.denom == ROWS * T
            assert torch.equal(mine.weights, torch.ones(ROWS, T))
    assert len(makers) == 1 and threading.main_thread() not in makers


def test_never_further_ahead_than_told():
    begun, enough = [], threading.Semaphore(0)

    def batches(step):
        begun.append(step)
        enough.release()
        return counting_batches(step)

    with ahead(batches, 0, 100, 2, CPU) as made:
        made(0)
        for _ in range(4):  # step 0, two in the queue, and one in the maker's hands
            assert enough.acquire(timeout=60)
        assert not enough.acquire(timeout=0.3)
    assert begun == [0, 1, 2, 3]


@pytest.mark.parametrize("error", [StopRequested(2), UserError("no such shard")])
def test_an_exception_comes_out_at_its_step_and_nothing_is_made_after_it(error):
    begun = []

    def batches(step):
        begun.append(step)
        if step == 2:
            raise error
        return counting_batches(step)

    with ahead(batches, 0, 9, 4, CPU) as made:
        assert len(made(0)) == len(made(1)) == 1
        with pytest.raises(type(error), match=str(error)):
            made(2)
    assert begun == [0, 1, 2]


def test_leaving_early_ends_the_thread():
    with ahead(counting_batches, 0, 10**9, 2, CPU) as made:
        made(0)
    for thread in [thread for thread in threading.enumerate() if thread.name == "batches"]:
        thread.join(60)  # it was told to leave; on a busy machine it may not have heard yet
        assert not thread.is_alive()


def test_out_of_order_is_a_mistake():
    with ahead(counting_batches, 0, 9, 2, CPU) as made, pytest.raises(AssertionError, match="step 0 are next"):
        made(1)


def test_depth_nought_is_no_thread():
    with ahead(counting_batches, 0, 9, 0, CPU) as made:
        assert made is counting_batches
