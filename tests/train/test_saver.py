"""Saving while training goes on: what is saved, who waits for it, and who hears of a failure."""

from __future__ import annotations

import threading

import pytest
import torch

from picollm.run.errors import UserError
from picollm.train import checkpoint
from picollm.train.device import Ranks
from picollm.train.loop import Every, loop
from picollm.train.optim import OptimizerSettings, build_optimizer
from picollm.train.saver import Saver
from picollm.train.schedule import Schedule
from picollm.train.sharded import ShardedOptimizer
from picollm.train.step import Compute, ForwardBackward
from tests.train.conftest import FakeContext, counting_batches, small_model
from tests.train.ranked import on_ranks

CPU = Ranks(torch.device("cpu"))


@pytest.fixture
def gate(monkeypatch):
    """Holds every write back until it is opened."""
    opened, honest = threading.Event(), checkpoint.write

    def slow(*args, **kwargs):
        assert opened.wait(60)
        return honest(*args, **kwargs)

    monkeypatch.setattr(checkpoint, "write", slow)
    yield opened
    opened.set()


def saver_in(folder, ctx=None, model=None, ranks=CPU, keep=checkpoint.Keep(2), first=0):  # noqa: B008
    model = model or small_model()
    if ranks.world == 1:
        optimizer = build_optimizer(model, OptimizerSettings())
    else:
        optimizer = ShardedOptimizer(model.param_groups(), OptimizerSettings(), ranks)
    return Saver(ctx or FakeContext(), model, optimizer, folder, {"tokenizer": "t"}, keep, ranks, first, dict)


def steps(saver, count, every):
    return loop(
        ForwardBackward(saver.model, Compute(attention="explicit")), saver.optimizer, counting_batches,
        Schedule(count, warmup=0), saver.ranks, first=0, last=count, every=every,
    )  # fmt: skip


def test_training_goes_on_while_a_save_is_written_and_does_not_change_it(tmp_path, gate):
    model = small_model()
    saver = saver_in(tmp_path, model=model)
    saver.begin(0)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    assert not saver.idle() and not saver.landed()
    assert steps(saver, 3, []) == 3  # would hang if it waited for the gate
    assert not torch.equal(model.wte.weight, before["wte.weight"])
    gate.set()
    saver.settle()
    again, _ = checkpoint.load_model(tmp_path / "step-000000")
    assert all(torch.equal(t, again.state_dict()[name]) for name, t in before.items())


def test_one_save_at_a_time_and_each_is_told_once(tmp_path, gate):
    ctx = FakeContext()
    saver = saver_in(tmp_path, ctx)
    saver.begin(1)
    second = threading.Thread(target=saver.begin, args=(2,))
    second.start()
    second.join(0.3)
    assert second.is_alive() and not ctx.of("checkpoint")
    gate.set()
    second.join(60)
    assert saver.save(2).path == tmp_path / "step-000002"
    saver.settle()
    assert [args[0] for args in ctx.of("checkpoint")] == [1, 2]


def test_a_failed_save_is_heard_of_at_a_later_step(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    saver, seen = saver_in(tmp_path), []

    def note(step):
        seen.append(step)
        if saver._writing is not None:
            saver._writing.exception(timeout=60)  # so that the failure is there before the next step

    settle = Every(0, saver.settle, at_end=False, when=saver.landed)
    with pytest.raises(UserError, match=r"No space left.*free some space, then resume"):
        steps(saver, 50, [settle, Every(2, saver.begin, at_end=False), Every(1, note)])
    assert seen == [1, 2]


def test_a_failed_save_ends_every_rank(tmp_path):
    def work(ranks):
        saver = saver_in(tmp_path / "file" / "below", ranks=ranks)
        try:
            saver.save(1)
        except UserError as error:
            return str(error)

    (tmp_path / "file").write_text("not a folder")
    said = on_ranks(2, work, tmp_path / "ranks")
    assert said[0] == said[1] and "cannot save a checkpoint" in said[0]


def test_two_ranks_save_what_one_can_load(tmp_path):
    def work(ranks):
        saver = saver_in(tmp_path / "run", ranks=ranks)
        for p in saver.model.parameters():
            p.grad = torch.ones_like(p)
        saver.optimizer.collect()
        saver.optimizer.step()
        return saver.save(7).step

    assert on_ranks(2, work, tmp_path / "ranks") == [7, 7]
    model = small_model(9)
    optimizer = build_optimizer(model, OptimizerSettings())
    checkpoint.load(tmp_path / "run" / "step-000007", model, optimizer)
    assert optimizer.state_dict()["wte.weight.exp_avg"].abs().max() > 0
    assert checkpoint.read_meta(tmp_path / "run" / "step-000007")["shape"]["depth"] == 2


def test_the_best_by_its_reading_and_milestones_outlive_the_rest(tmp_path):
    saver = saver_in(tmp_path, keep=checkpoint.Keep(last=1, best=True, milestone=4))
    for step, bpb in enumerate([3.0, 1.5, 2.0, 2.0, 2.5, float("nan"), None, 2.5], start=1):
        saver.read(bpb)
        saver.save(step)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step-{step:06d}" for step in (2, 4, 8)]
    assert checkpoint.read_meta(tmp_path / "step-000008")["score"] == 2.5


def test_a_checkpoint_without_a_reading_is_never_the_best(tmp_path):
    keep = checkpoint.Keep(last=1, best=True)
    for step in (1, 2):
        checkpoint.save(tmp_path, step, small_model(), None, {}, keep=keep)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000002"]


def test_nought_keeps_every_one(tmp_path):
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, step, small_model(), None, {}, keep=checkpoint.Keep(0))
    assert len(list(tmp_path.iterdir())) == 3
