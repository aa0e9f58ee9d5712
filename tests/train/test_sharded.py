"""One process and several come to the same weights, and what one number of ranks saved another goes on from."""

from __future__ import annotations

import functools

import pytest
import torch

from picollm.run.errors import StopRequested
from picollm.train.batch import Batch
from picollm.train.device import Ranks
from picollm.train.loop import loop
from picollm.train.optim import OptimizerSettings, build_optimizer
from picollm.train.schedule import Schedule
from picollm.train.sharded import ShardedOptimizer, backward_order
from picollm.train.step import Compute, ForwardBackward
from tests.train.conftest import T, counting_rows, small_model
from tests.train.ranked import on_ranks

ROWS = 7
STEPS = 6
SETTINGS = OptimizerSettings().scaled(0.1)


def rows_of(step: int, ranks: Ranks) -> list[Batch]:
    """This rank's rows of the step, one micro-batch a row; with more ranks than rows some have none."""
    inputs, targets = counting_rows(step, ROWS)
    mine = range(ranks.rank * ROWS // ranks.world, (ranks.rank + 1) * ROWS // ranks.world)
    return [Batch(inputs[r : r + 1], targets[r : r + 1], None, float(ROWS * T)) for r in mine]


def optimizer_for(model, ranks):
    if ranks.world == 1:
        return build_optimizer(model, SETTINGS)
    return ShardedOptimizer(model.param_groups(), SETTINGS, ranks)


def train(ranks: Ranks, first: int = 0, weights=None, state=None, batches=rows_of, **how):
    model, losses = small_model(), []
    optimizer = optimizer_for(model, ranks)
    if weights is not None:
        model.load_state_dict(weights)
        optimizer.load_state_dict(state)
    done = loop(
        ForwardBackward(model, Compute(attention="explicit")), optimizer, lambda step: batches(step, ranks),
        Schedule(STEPS, warmup=2), ranks, first=first, last=STEPS,
        report=lambda r: losses.append((r.loss, r.grad_norm)), **how,
    )  # fmt: skip
    weights = {name: t.clone() for name, t in model.state_dict().items()}
    return done, losses, weights, {name: t.clone() for name, t in optimizer.state()}


@pytest.fixture(scope="module")
def alone():
    torch.use_deterministic_algorithms(True)
    return train(Ranks(torch.device("cpu")))


def close(a, b) -> None:
    """Muon turns the smallest difference in a weak direction into a visible one, so whole tensors are compared."""
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        assert (b[name] - tensor).norm() <= 1e-2 * tensor.norm() + 1e-3, name


def equal(a, b) -> None:
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        assert torch.equal(tensor, b[name]), name


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """What `train` came to on each of so many ranks, made once."""
    return functools.cache(lambda world: on_ranks(world, train, tmp_path_factory.mktemp("ranks")))


@pytest.mark.parametrize("world", [2, 3, 4, pytest.param(8, marks=pytest.mark.slow)])
def test_any_number_of_ranks_trains_like_one(world, alone, together):
    results = together(world)
    for done, losses, weights, state in results:
        assert done == STEPS
        for mine, theirs in zip(losses, alone[1], strict=True):
            assert mine == pytest.approx(theirs, rel=2e-3)
        close(alone[2], weights)
        equal(results[0][2], weights)
        assert state.keys() == alone[3].keys()
        assert all(t.shape == alone[3][name].shape for name, t in state.items())


def test_the_same_ranks_make_the_same_bits(together, tmp_path):
    once, again = together(3)[0], on_ranks(3, train, tmp_path)[0]
    assert once[1] == again[1]
    equal(once[2], again[2])
    equal(once[3], again[3])


@pytest.mark.parametrize(("saved", "resumed"), [(2, 1), (2, 3), (1, 2), (3, 2)])
def test_another_number_of_ranks_goes_on(saved, resumed, alone, tmp_path):
    def first_half(ranks):
        return train(ranks, stop=lambda: True, batches=rows_of)

    done, _, weights, state = on_ranks(saved, first_half, tmp_path)[0]
    assert done == 1

    def restored(ranks):
        """What the optimizer holds right after loading, and where the rest of the way leads."""
        optimizer = optimizer_for(small_model(), ranks)
        optimizer.load_state_dict(state)
        return dict(optimizer.state()), train(ranks, done, weights, state)

    held, (_, losses, final, _) = on_ranks(resumed, restored, tmp_path)[-1]
    equal(state, held)
    assert [loss for loss, _ in losses] == pytest.approx([loss for loss, _ in alone[1][1:]], rel=2e-3)
    close(alone[2], final)


def test_gradients_leave_while_the_backward_pass_is_under_way(tmp_path):
    def work(ranks):
        model = small_model()
        optimizer = optimizer_for(model, ranks)
        run = ForwardBackward(model, Compute(attention="explicit"))
        sent = []
        model.wte.weight.register_post_accumulate_grad_hook(lambda _: sent.append(optimizer._sent))
        batch = rows_of(0, ranks)[0]
        run(batch)
        unarmed = optimizer._sent
        optimizer.arm()
        run(batch)
        whole = optimizer._sent
        optimizer.collect()
        return unarmed, sent[-1], whole, len(optimizer.buckets), all(p.grad is None for p in model.parameters())

    for unarmed, before_the_last, whole, buckets, gone in on_ranks(2, work, tmp_path):
        assert unarmed == 0
        # When the embedding's gradient arrives, the last of all, those of lm_head and the blocks are on their way.
        assert buckets // 2 <= before_the_last
        assert whole == buckets and gone


def test_a_rank_without_a_batch_holds_nobody_up(tmp_path):
    def everything_on_one(ranks):
        others = Ranks(ranks.device)
        return train(ranks, batches=lambda step, _: rows_of(step, others) if ranks.rank == 1 else [])

    results = on_ranks(2, everything_on_one, tmp_path)
    one = train(Ranks(torch.device("cpu")))
    close(one[2], results[0][2])
    equal(results[0][2], results[1][2])


def test_a_stop_that_one_rank_alone_meets_ends_all_before_the_step(tmp_path):
    def stopped(ranks):
        def batches(step, ranks):
            if step == 3 and ranks.rank == 1:
                raise StopRequested(step)
            return rows_of(step, ranks)

        return train(ranks, batches=batches)

    results = on_ranks(3, stopped, tmp_path)
    assert [(done, len(losses)) for done, losses, _, _ in results] == [(3, 3)] * 3
    equal(results[0][2], results[1][2])


def test_a_step_that_one_rank_alone_finds_not_finite_changes_nothing_anywhere(tmp_path):
    def poisoned(ranks):
        def batches(step, ranks):
            for batch in rows_of(step, ranks):
                bad = step == STEPS - 1 and ranks.rank == 0
                weights = torch.full(batch.targets.shape, float("nan") if bad else 1.0)
                yield Batch(batch.inputs, batch.targets, weights, batch.denom)

        before = train(ranks, stop=lambda: False, batches=lambda step, r: rows_of(step, r))
        return before, train(ranks, batches=batches)

    for whole, skipped in on_ranks(2, poisoned, tmp_path):
        assert all(torch.isfinite(t).all() for t in skipped[2].values())
        assert any(not torch.equal(whole[2][name], t) for name, t in skipped[2].items())
        assert whole[1][:-1] == skipped[1][:-1]


def test_state_lives_with_its_owner_only(alone, tmp_path):
    def held(ranks):
        model = small_model()
        optimizer = optimizer_for(model, ranks)
        for step in range(1):
            for batch in rows_of(step, ranks):
                ForwardBackward(model, Compute(attention="explicit"))(batch)
            optimizer.collect()
            optimizer.step()
        stacks = sum(s.momentum.numel() for s in optimizer.stacks)
        return stacks + sum(t.numel() for s in optimizer.adam.state.values() for t in s.values())

    whole = sum(t.numel() for name, t in alone[3].items() if not name.endswith(".second"))
    assert max(on_ranks(2, held, tmp_path)) <= whole / 2 * 1.01


def test_wrong_state_is_refused(tmp_path):
    def refused(ranks):
        optimizer = optimizer_for(small_model(), ranks)
        state = dict(optimizer.state())
        said = []
        for broken in (
            {**state, "stranger.momentum": torch.zeros(1)},
            {name: t for name, t in state.items() if name != "blocks.0.attn.q.weight.momentum"},
            {**state, "wte.weight.exp_avg": torch.zeros(1)},
        ):
            try:
                optimizer.load_state_dict(broken)
                said.append("nothing")
            except KeyError as error:
                said.append(str(error))
        return said

    for stranger, missing, part in on_ranks(2, refused, tmp_path):
        assert "stranger" in stranger and "attn.q" in missing and "incomplete" in part


def test_the_order_counted_from_the_loss():
    names = [
        "wte.weight",
        "blocks.0.attn.q.weight",
        "value_embeds.3.weight",
        "blocks.3.mlp.fc.weight",
        "lm_head.weight",
    ]
    assert sorted(names, key=backward_order) == [
        "lm_head.weight", "value_embeds.3.weight", "blocks.3.mlp.fc.weight", "blocks.0.attn.q.weight", "wte.weight",
    ]  # fmt: skip
