from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from picollm.run import config, event_file, memory, plan, scaling
from picollm.run import events as ev
from picollm.run.errors import UserError
from picollm.run.folder import Run
from picollm.run.planned import Plan
from picollm.run.stage import StageContext
from picollm.text.tokenizer import train_tokenizer
from picollm.train import session
from picollm.train.batch import Batch
from picollm.train.device import Ranks
from picollm.train.schedule import Schedule
from picollm.train.step import Compute, ForwardBackward

SETS = ["model.depth=2", "model.dim=64", "model.seq_len=32", "tokenizer.vocab_size=300", "sft.rows=3"]


@pytest.fixture
def ctx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StageContext:
    monkeypatch.setenv("PICOLLM_RUNS", str(tmp_path))
    run = Run.create("r", config.load(sets=SETS, environ={}))
    train_tokenizer(["some text"], 300).save(run.dir / "tokenizer")
    run.stage_dir("tokenizer").mkdir(parents=True)
    event_file.append(run.events_file("tokenizer", 1), ev.Finished(seconds=1.0, paths={"tokenizer": "tokenizer"}))
    return StageContext(run, "sft", 1)


def ranks(monkeypatch: pytest.MonkeyPatch, world: int) -> None:
    found = Ranks(torch.device("cpu"), 0, world)
    monkeypatch.setattr(session, "start_ranks", lambda ctx: found)


def test_more_ranks_than_rows_are_refused(ctx: StageContext, monkeypatch: pytest.MonkeyPatch) -> None:
    ranks(monkeypatch, 4)
    with pytest.raises(UserError, match=r"sft\.rows is 3: fewer than the 4 ranks; raise it or lower launch\.nproc"):
        session.open_session(ctx)
    ranks(monkeypatch, 3)
    assert session.open_session(ctx).model.shape.depth == 2


def test_the_content_of_files_is_part_of_what_a_checkpoint_was_made_from(
    ctx: StageContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranks(monkeypatch, 1)
    opened = session.open_session(ctx)
    seen: list[dict[str, Any]] = []

    def train_stage(ctx: StageContext, **how: Any) -> Any:
        seen.append(how["meta"])
        raise UserError("enough")

    monkeypatch.setattr(session, "train_stage", train_stage)
    for content in (None, {}, {"sft.custom": "a"}, {"sft.custom": "b"}):
        with pytest.raises(UserError, match="enough"):
            opened.train(lambda step: [], Schedule(1), content=content)
    made_from = [meta["fingerprint"] for meta in seen]
    assert made_from[0] == made_from[1] == ctx.fingerprint
    assert len(set(made_from)) == 3


def test_learning_rates_follow_the_settings(ctx: StageContext, monkeypatch: pytest.MonkeyPatch) -> None:
    ranks(monkeypatch, 1)
    opened = session.open_session(ctx)
    whole, half = opened.optimizer_settings(1.0), opened.optimizer_settings(0.5)
    assert whole.matrix_lr == ctx.config.pretrain.matrix_lr
    assert half.matrix_lr == whole.matrix_lr / 2 and half.lm_head.lr == whole.lm_head.lr / 2
    assert replace(half.wte, lr=whole.wte.lr) == whole.wte


def test_learning_rates_and_decay_scale_with_batch_and_horizon_when_asked(
    ctx: StageContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranks(monkeypatch, 1)
    opened = session.open_session(ctx)
    plain = opened.optimizer_settings(1.0)
    ctx.config.pretrain.scale_lr, ctx.config.pretrain.rows = True, 2**10
    scaled, shape = opened.optimizer_settings(1.0), opened.model.shape
    factor = scaling.batch_lr_scale(2**10 * shape.seq_len)
    assert scaled.matrix_lr == pytest.approx(factor * plain.matrix_lr)
    assert scaled.wte.lr == pytest.approx(factor * plain.wte.lr) and scaled.smear.lr == plain.smear.lr
    base = ctx.config.pretrain.weight_decay
    assert scaled.matrix_weight_decay == pytest.approx(base * factor / scaling.relative_horizon(shape))


def test_what_preflight_found_fills_in_for_auto(ctx: StageContext) -> None:
    assert session.compute_for(ctx) == Compute("fp32", "explicit")
    (ctx.run.dir / "plan.json").write_bytes(
        msgspec.json.encode(
            Plan(choices=dict.fromkeys(("compile", "fp8", "checkpointing"), "on") | {"precision": "bf16"})
        )
    )
    ctx.config.machine.attention, ctx.config.machine.fp8 = "sdpa", "off"
    assert session.compute_for(ctx) == Compute("bf16", "sdpa", compile=True, fp8=False, checkpointing=True)


@pytest.mark.parametrize(("world", "device_rows"), [(1, 0), (1, 3), (1, 1), (3, 0), (3, 2), (5, 1), (7, 4)])
def test_ranks_and_rows_at_a_time_change_neither_loss_nor_gradient(
    ctx: StageContext, monkeypatch: pytest.MonkeyPatch, world: int, device_rows: int
) -> None:
    """All rows of one step in one batch, against the same rows shared out over ranks and micro-batches."""
    rows, T = 8, 32
    ranks(monkeypatch, 1)
    opened = session.open_session(ctx)
    ids = np.random.default_rng(0).integers(0, opened.model.shape.vocab_size, (rows, T + 1))
    whole = Batch.from_numpy(ids[:, :-1], ids[:, 1:], denom=rows * T)
    run = ForwardBackward(opened.model, Compute())
    expected = run(whole)
    gradient = opened.model.lm_head.weight.grad.clone()
    opened.model.zero_grad()

    ctx.config.machine.device_rows = device_rows
    total, tokens, made, shapes = torch.zeros(()), 0, set(), set()
    for rank in range(world):
        mine = slice(rank * rows // world, (rank + 1) * rows // world)
        share = Batch.from_numpy(ids[mine, :-1], ids[mine, 1:], denom=rows * T)
        parts = list(replace(opened, ranks=Ranks(torch.device("cpu"), rank, world)).split(share, rows))
        total += sum(run(part) for part in parts)
        tokens += sum(part.tokens for part in parts)
        made.add(len(parts))
        shapes |= {part.inputs.shape for part in parts}
    assert tokens == rows * T and len(made) == len(shapes) == 1
    assert not device_rows or next(iter(shapes))[0] <= device_rows
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(opened.model.lm_head.weight.grad, gradient, rtol=1e-4, atol=1e-6)


def test_a_validation_batch_is_no_larger_than_what_the_devices_hold(
    ctx: StageContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranks(monkeypatch, 3)
    opened = session.open_session(ctx)
    ctx.config.machine.device_rows = 2
    assert (opened.eval_rows(100), opened.eval_rows(4)) == (6, 4)


def test_fewer_ranks_than_planned_compute_fewer_rows_at_a_time(
    ctx: StageContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Plan(values={"machine.device_rows": 64}, notes={"world": 3, "train_flops_s": 3e9})
    (ctx.run.dir / "plan.json").write_bytes(msgspec.json.encode(made))
    ranks(monkeypatch, 1)
    shape = plan.shape(ctx.config)
    room = memory.step_bytes(shape, 10, memory.How(attention="explicit"))["total"] / memory.USABLE["cpu"]
    for free, planned_for, expected in ((room, 3, 10), (10 * room, 3, 64), (room, 1, 64)):
        monkeypatch.setattr(session, "free_memory", lambda ranks, free=free: free)
        ctx.config.machine.device_rows = 64
        made.notes["world"] = planned_for
        (ctx.run.dir / "plan.json").write_bytes(msgspec.json.encode(made))
        opened = session.open_session(ctx)
        assert ctx.config.machine.device_rows == pytest.approx(expected, abs=1)
        per_token = scaling.flops_per_token(shape)
        assert session.planned_tok_s(ctx, opened.model) == pytest.approx(
            3e9 / planned_for / plan.STEP_OVERHEAD / per_token, rel=0.05
        )
