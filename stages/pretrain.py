"""Pretrain: predict the next token of raw text, with a validation reading and samples now and then."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import torch

from picollm.data.loader import StreamLoader, ValLoader
from picollm.data.shards import ShardSet
from picollm.data.waiting import Upstream
from picollm.evals.bpb import text_loss
from picollm.evals.samples import BaseSample, CheckpointSamples, prompts_for
from picollm.run.plan import EVAL_BATCHES
from picollm.run.stage import Outcome, StageContext, main
from picollm.train.batch import Batch
from picollm.train.loop import Every
from picollm.train.schedule import Schedule
from picollm.train.session import open_session


def work(ctx: StageContext) -> Outcome:
    session = open_session(ctx)
    settings, length = ctx.config.pretrain, ctx.config.model.seq_len
    shards = ShardSet.open(ctx.output("tokenizer", "shards"))
    place: dict[str, Any] = {"rank": session.ranks.rank, "world": session.ranks.world}
    patience = Upstream(ctx, "tokenizer", "train")
    loader = StreamLoader(shards, length, settings.rows, ctx.config.run.seed, **place, waiting=patience)
    reading = EVAL_BATCHES * settings.rows * length  # enough to see a trend; base_eval reads everything
    val = ValLoader(shards, length, session.eval_rows(settings.rows), max_tokens=reading, **place)
    token_bytes = torch.from_numpy(session.tokenizer.token_bytes())

    def batches(step: int) -> Iterator[Batch]:
        inputs, targets = loader.batch(step)
        patience.over()
        return session.split(Batch.from_numpy(inputs, targets, denom=settings.rows * length), settings.rows)

    def read_validation(step: int) -> float:
        loss = text_loss(session.model, val, token_bytes)
        ctx.eval("val", step, {"bpb": loss.bpb, "loss": loss.loss}, n=loss.tokens)
        return loss.bpb

    def show(step: int, sample: BaseSample) -> None:
        ctx.sample(sample.prompt, sample.text, step, "base", {"finish_reason": sample.finish_reason})

    kept = ctx.run.dir / "samples" / "pretrain"
    if ctx.fresh and ctx.rank == 0:
        shutil.rmtree(kept, ignore_errors=True)
    prompts = prompts_for(ctx.config.data.source)
    samples = CheckpointSamples(session.model, session.tokenizer, prompts, kept, show, ctx.warning)

    return session.train(
        batches,
        Schedule(settings.steps, settings.warmup_steps, settings.warmdown, settings.final_lr),
        evals=[Every(0, read_validation, seconds=settings.eval_every)],
        extra_metrics=lambda step: {"epoch": loader.epoch(step)},
        at_checkpoint=samples if ctx.rank == 0 else lambda step: None,
        summary={"epochs": loader.epoch(settings.steps), "dropped_tokens": loader.dropped_tokens},
    )


if __name__ == "__main__":
    main("pretrain", work)
