"""Base eval: bits per byte on the pinned validation text, and continuations of fixed prompts."""

from __future__ import annotations

from picollm.data.loader import ValLoader
from picollm.data.shards import ShardSet
from picollm.evals.bpb import text_loss
from picollm.evals.samples import base_samples, prompts_for
from picollm.infer.load import load_model
from picollm.run.errors import StopRequested
from picollm.run.stage import Outcome, StageContext, main
from picollm.text.tokenizer import Tokenizer
from picollm.train.session import start_ranks


def work(ctx: StageContext) -> Outcome:
    ctx.phase("load")
    ranks = start_ranks(ctx)
    tokenizer = Tokenizer.load(ctx.output("tokenizer", "tokenizer"))
    engine = load_model(ctx.output("pretrain", "checkpoint"), ctx.output("tokenizer", "tokenizer"), device=ranks.device)
    settings, model = ctx.config.base_eval, ctx.config.model
    ctx.phase("bits per byte")
    shards = ShardSet.open(ctx.output("tokenizer", "shards"))
    at_once = (ctx.config.machine.device_rows or ctx.config.pretrain.rows) * ranks.world
    val = ValLoader(
        shards,
        model.seq_len,
        at_once,
        rank=ranks.rank,
        world=ranks.world,
        max_tokens=settings.val_tokens,
    )

    def look(batches: int) -> None:
        ctx.progress(batches, len(val))
        if ranks.any(ctx.stop_requested()):
            raise StopRequested()

    loss = text_loss(engine.source, val, tokenizer.token_bytes(), on_batch=look)
    ctx.eval("val", 0, {"bpb": loss.bpb, "loss": loss.loss}, n=loss.tokens)
    ctx.message(f"{loss.bpb:.4f} bits per byte over {loss.bytes:,} bytes of validation text")
    ctx.phase("samples")
    samples = base_samples(engine, tokenizer, prompts_for(ctx.config.data.source), max_tokens=settings.sample_tokens)
    for sample in samples:
        ctx.sample(
            sample.prompt, sample.text, 0, "base", {"finish_reason": sample.finish_reason, "tok_s": sample.tok_s}
        )
    ranks.close()
    return Outcome(
        artifacts={"bpb": f"{loss.bpb:.6f}"},
        summary={"bpb": loss.bpb, "loss": loss.loss, "val_bytes": loss.bytes, "val_tokens": loss.tokens},
    )


if __name__ == "__main__":
    main("base_eval", work)
