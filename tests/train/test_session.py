from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from picollm.run import config
from picollm.run import events as ev
from picollm.run.errors import UserError
from picollm.run.folder import Run
from picollm.run.stage import StageContext
from picollm.text.tokenizer import train_tokenizer
from picollm.train import session
from picollm.train.device import Ranks
from picollm.train.schedule import Schedule

SETS = ["model.depth=2", "model.dim=64", "model.seq_len=32", "tokenizer.vocab_size=300", "sft.rows=3"]


@pytest.fixture
def ctx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StageContext:
    monkeypatch.setenv("PICOLLM_RUNS", str(tmp_path))
    run = Run.create("r", config.load(sets=SETS, environ={}))
    train_tokenizer(["some text"], 300).save(run.dir / "tokenizer")
    run.stage_dir("tokenizer").mkdir(parents=True)
    ev.append(run.events_file("tokenizer", 1), ev.Finished(seconds=1.0, paths={"tokenizer": "tokenizer"}))
    return StageContext(run, "sft", 1)


def ranks(monkeypatch: pytest.MonkeyPatch, world: int) -> None:
    found = Ranks(torch.device("cpu"), 0, world)
    monkeypatch.setattr(session, "start_ranks", lambda ctx: found)


def test_more_ranks_than_rows_are_refused(ctx: StageContext, monkeypatch: pytest.MonkeyPatch) -> None:
    ranks(monkeypatch, 4)
    with pytest.raises(UserError, match=r"sft\.rows is 3: fewer than the 4 ranks; raise it or lower run\.nproc"):
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


def test_what_preflight_found_fills_in_for_auto(ctx: StageContext) -> None:
    assert session.compute_for(ctx).precision == "fp32"
    found = SimpleNamespace(choices={"precision": "bf16", "attention": "sdpa", "compile": "on"})
    machine = SimpleNamespace(precision="auto", attention="explicit", compile="auto")
    fake = SimpleNamespace(run=SimpleNamespace(plan=lambda: found), config=SimpleNamespace(machine=machine))
    compute = session.compute_for(fake)  # type: ignore[arg-type]
    assert (compute.precision, compute.attention, compute.compile) == ("bf16", "explicit", True)
