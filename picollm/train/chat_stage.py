"""Midtraining and SFT: the same stage on a mixture of conversations, with other weights in the loss."""

from __future__ import annotations

from picollm.data.chat_loader import ChatLoader
from picollm.run.stage import Outcome, StageContext
from picollm.tasks.identity import verify
from picollm.tasks.mixing import mix
from picollm.train.batch import Batch
from picollm.train.schedule import Schedule
from picollm.train.session import open_session


def train_on_conversations(ctx: StageContext, parent: str, *, all_tokens: bool) -> Outcome:
    """Train from `parent`'s checkpoint on the stage's mixture; `all_tokens`: user turns count in the loss too.

    The identity rows are verified against their checksum first. Raises `UserError` when they differ.
    """
    settings = getattr(ctx.config, ctx.name)
    identity = ctx.output("identity", "rows")
    verify(identity)
    session = open_session(ctx)
    ctx.phase("mix")
    length = ctx.config.model.seq_len
    mixed = mix(
        settings.mixture,
        session.tokenizer,
        length + 1,
        ctx.config.run.seed,
        custom=settings.custom,
        identity=str(identity),
    )
    loader = ChatLoader(
        mixed.conversations,
        length,
        settings.rows,
        ctx.config.run.seed,
        session.tokenizer.bos_id,
        rank=session.ranks.rank,
        world=session.ranks.world,
        all_tokens=all_tokens,
    )
    if mixed.dropped:
        ctx.warning(f"{mixed.dropped} conversations are longer than {length} tokens and were left out")
    shares = ", ".join(f"{name} {rows:,}" for name, rows in mixed.rows.items())
    ctx.message(f"{len(mixed.conversations):,} conversations in {loader.rows_per_epoch:,} rows: {shares}")

    def batches(step: int) -> list[Batch]:
        inputs, targets, weights, denom = loader.batch(step)
        return [Batch.from_numpy(inputs, targets, weights, denom)]

    return session.train(
        batches,
        Schedule(settings.steps, 0, settings.warmdown, settings.final_lr),
        lr=settings.lr,
        parent=parent,
        extra_metrics=lambda step: {"epoch": loader.epoch(step)},
        summary={
            "conversations": mixed.rows,
            "conversation_tokens": mixed.tokens,
            "dropped": mixed.dropped,
            "epochs": loader.epoch(settings.steps),
        },
    )
