"""What training says of itself while it goes on, through the stage's own set-up."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from statistics import median

import pytest
import torch

from picollm.run.errors import StopRequested
from picollm.run.neighbours import Neighbours
from picollm.train import checkpoint
from picollm.train.batch import Batch
from picollm.train.device import Ranks
from picollm.train.meter import RECENT
from picollm.train.optim import OptimizerSettings
from picollm.train.schedule import Schedule
from picollm.train.trainer import TrainSettings, train_stage
from tests.train.conftest import VOCAB, FakeContext, counting_batches, small_model

META = {"fingerprint": "f", "tokenizer": "t"}


def train(folder: Path, name: str, steps: int, batches=counting_batches, parent: Path | None = None, lr: float = 1.0,
          stop_at: int | None = None, **settings) -> tuple[FakeContext, Path]:  # fmt: skip
    ctx = FakeContext(stop_at)
    ctx.name = name
    chosen = TrainSettings(Schedule(steps, warmup=3), OptimizerSettings().scaled(lr), save_every=0.0, **settings)
    done = train_stage(
        ctx, model=small_model(), batches=batches, settings=chosen, checkpoint_dir=folder / name, meta=META,
        ranks=Ranks(torch.device("cpu")), init_from=parent,
    )  # fmt: skip
    return ctx, done.checkpoint


def warnings(ctx: FakeContext) -> list[str]:
    return [text for (text,) in ctx.of("warning")]


def backwards(step: int):
    """Rows that count downwards: nothing that the base model has seen."""
    for batch in counting_batches(step):
        yield replace(batch, inputs=VOCAB - 1 - batch.inputs, targets=VOCAB - 1 - batch.targets)


def test_a_mixture_that_is_the_old_text_is_told_and_a_new_one_is_not(tmp_path: Path) -> None:
    base, parent = train(tmp_path, "pretrain", 60)
    assert warnings(base) == []
    same, _ = train(tmp_path / "same", "midtrain", 40, parent=parent, lr=0.0)
    [text] = warnings(same)
    assert "midtrain.mixture" in text and f"pretraining ended ({median(base.losses()[-RECENT:]):.2f})" in text
    new, made = train(tmp_path / "new", "midtrain", 40, batches=backwards, parent=parent, lr=0.2)
    assert warnings(new) == []
    (step, text), *_ = new.of("note")
    assert step in (1, 2) and "loss spiked to" in text
    meta = checkpoint.read_meta(made)
    assert meta["figures"]["opening"][0] == [1, new.losses()[0]]


def test_a_skipped_step_is_no_step_of_the_curve(tmp_path: Path) -> None:
    def broken(step: int):
        for batch in counting_batches(step):
            weights = torch.full(batch.targets.shape, float("nan") if step in (10, 11) else 1.0)
            yield Batch(batch.inputs, batch.targets, weights, batch.denom)

    ctx, _ = train(tmp_path, "pretrain", 30, batches=broken)
    assert [text.split(":")[0] for text in warnings(ctx)] == ["step 11 skipped", "step 12 skipped"]
    assert len(ctx.losses()) == 28


def test_slower_than_planned_names_the_neighbours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("picollm.train.watch.SLOW_SECONDS", 0.0)  # however fast the steps are
    monkeypatch.setattr(Neighbours, "busiest", lambda self: "also busy here: stranger (pid 7, 99 % of a core)")
    ctx, _ = train(tmp_path / "a", "pretrain", 60, planned_tok_s=1e9)
    [text] = warnings(ctx)
    assert "where the plan has 1,000,000,000: also busy here: stranger" in text
    ctx, _ = train(tmp_path / "b", "pretrain", 60, planned_tok_s=1.0)
    assert warnings(ctx) == []


def test_the_loss_it_ended_at_is_the_same_after_a_stop(tmp_path: Path) -> None:
    _, whole = train(tmp_path / "whole", "pretrain", 20)
    with pytest.raises(StopRequested):
        train(tmp_path / "parts", "pretrain", 20, stop_at=18)
    _, resumed = train(tmp_path / "parts", "pretrain", 20)
    kept = [checkpoint.read_meta(path)["figures"] for path in (whole, resumed)]
    assert kept[0]["usual_loss"] == kept[1]["usual_loss"] and kept[0]["recent"] == kept[1]["recent"]
