"""Tokenizer: learn the merges, then turn all of the text into token shards."""

from __future__ import annotations

import time

from picollm.data.shards import TextSet, encode
from picollm.run.folder import picollm_home
from picollm.run.stage import Outcome, StageContext, main, watched
from picollm.text.tokenizer import train_tokenizer


def work(ctx: StageContext) -> Outcome:
    text = TextSet.open(ctx.output("dataset", "text"))
    ctx.phase("train")
    begun = time.monotonic()
    texts = watched(ctx, text.train_texts(), text.manifest["train_documents"])
    tokenizer = train_tokenizer(texts, ctx.config.tokenizer.vocab_size)
    trained_s = time.monotonic() - begun
    folder = ctx.run.dir / "tokenizer"
    tokenizer.save(folder)
    ctx.message(f"{tokenizer.vocab_size} ids learnt in {trained_s:.1f} s")
    ctx.raise_if_stopped()
    ctx.phase("encode")

    def look(done: int, documents: int) -> None:
        ctx.progress(done, documents)
        ctx.raise_if_stopped()

    shards = encode(text, tokenizer, picollm_home(), on_progress=look)
    ctx.message(f"{shards.manifest['train_tokens']:,} training and {shards.manifest['val_tokens']:,} validation tokens")
    return Outcome(
        paths={"tokenizer": "tokenizer", "shards": str(shards.folder)},
        artifacts={"tokenizer": tokenizer.hash, "shards": shards.hash},
        summary={
            "vocab_size": tokenizer.vocab_size,
            "train_s": round(trained_s, 3),
            "train_tokens": shards.manifest["train_tokens"],
            "val_tokens": shards.manifest["val_tokens"],
        },
    )


if __name__ == "__main__":
    main("tokenizer", work)
