"""Tokenizer: learn the merges, then turn all of the text into token shards."""

from __future__ import annotations

import time
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec

from picollm.data import hub_shards, overlap
from picollm.data.documents import TOKENIZER_CHARACTERS, first_characters
from picollm.data.hub import HubFile, Store
from picollm.data.hub_text import HubText, downloads, open_text
from picollm.data.shards import ShardSet, TextSet, encode
from picollm.data.waiting import Upstream
from picollm.run.folder import picollm_home
from picollm.run.stage import Outcome, StageContext, main, watched
from picollm.tasks import make, names_of
from picollm.text.tokenizer import Tokenizer, train_tokenizer

MOST_ITEMS = 2000
"""Held-out items of a task that are compared with the training text."""


def work(ctx: StageContext) -> Outcome:
    text = open_text(ctx.output("dataset", "text"))
    return _of_hub(ctx, text) if isinstance(text, HubText) else _of_text(ctx, text)


def _of_text(ctx: StageContext, text: TextSet) -> Outcome:
    ctx.phase("train")
    begun = time.monotonic()
    texts = watched(ctx, text.train_texts(), text.manifest["train_documents"])
    tokenizer = train_tokenizer(first_characters(texts, TOKENIZER_CHARACTERS), ctx.config.tokenizer.vocab_size)
    trained_s = _learnt(ctx, tokenizer, begun)
    ctx.phase("encode")

    def look(done: int, documents: int) -> None:
        ctx.progress(done, documents)
        ctx.raise_if_stopped()

    shards = encode(text, tokenizer, picollm_home(), on_progress=look)
    return _outcome(ctx, tokenizer, shards, trained_s, shards.manifest)


def _of_hub(ctx: StageContext, text: HubText) -> Outcome:
    """As the files arrive: learn from the first, encode all, and let training begin with the first of them."""
    settings, home = ctx.config.data, picollm_home()
    store = Store(text.repo, text.revision, home, settings.mirrors, settings.keep_text)
    dataset = Upstream(ctx, "dataset", "train")

    def fetch(files: list[HubFile]) -> None:
        """What was dropped since it was downloaded, or never was because its shards for another tokenizer exist."""
        gone = [file for file in files if store.local(file) is None]
        everything = max(1, sum(file.bytes for file in gone))

        def look(got: int) -> None:
            ctx.progress(got, everything)
            ctx.raise_if_stopped()

        if gone and not dataset.working():
            ctx.phase("download")
            for file in downloads(store, gone, look, ctx.message):
                ctx.message(f"{file.name}: downloaded again")

    def get(file: HubFile) -> Path:
        fetch([file])
        while (path := store.local(file)) is None:
            dataset(file.name)
        dataset.over()
        return path

    def look(done: int, everything: int) -> None:
        ctx.progress(done, everything)
        ctx.raise_if_stopped()

    begun = time.monotonic()
    tokenizer = hub_shards.known_tokenizer(text, ctx.config.tokenizer.vocab_size, home)
    if tokenizer is None:
        ctx.phase("train")
        tokenizer = hub_shards.learn_tokenizer(text, ctx.config.tokenizer.vocab_size, home, get, look)
    else:
        ctx.message("this tokenizer was learnt before, from the same text")
    trained_s = _learnt(ctx, tokenizer, begun)

    shards = hub_shards.write_shard_set(text, tokenizer, home)
    todo = hub_shards.missing(text, tokenizer.hash, home)
    if not settings.keep_text:  # of a run that was killed between an encoding and this
        for made in set(text.files) - set(todo):
            store.evict(made)
    fetch(todo)
    ctx.phase("encode")
    dataset = Upstream(ctx, "dataset", "encode")
    first = {file.name for file in todo} & {file.name for file in (*text.val, *text.train[: settings.first_shards])}
    said = False

    def share(done: float, files: int) -> None:
        ctx.progress(round(100 * done), 100 * files)
        ctx.raise_if_stopped()

    folder = ctx.run.dir / "tokenizer"
    encoded = hub_shards.encode_files(text, tokenizer, folder, home, store, lambda file: dataset(file.name), share)
    for file in chain([None], encoded):
        dataset.over()
        if file is not None:
            ctx.message(f"{file.name}: encoded")
            first.discard(file.name)
            if not settings.keep_text and store.evict(file):
                ctx.message(f"{file.name}: text dropped")
        if not first and not said:
            ctx.ready(**_places(tokenizer, shards))
            said = True
    return _outcome(ctx, tokenizer, shards, trained_s, shards.counts())


def _learnt(ctx: StageContext, tokenizer: Tokenizer, begun: float) -> float:
    """Keep the tokenizer in the run; returns the seconds it took to learn."""
    seconds = time.monotonic() - begun
    tokenizer.save(ctx.run.dir / "tokenizer")
    ctx.message(f"{tokenizer.vocab_size} ids learnt in {seconds:.1f} s")
    ctx.raise_if_stopped()
    return seconds


def _places(tokenizer: Tokenizer, shards: ShardSet) -> dict[str, dict[str, str]]:
    return {
        "paths": {"tokenizer": "tokenizer", "shards": str(shards.folder)},
        "artifacts": {"tokenizer": tokenizer.hash, "shards": shards.hash},
    }


def _outcome(
    ctx: StageContext, tokenizer: Tokenizer, shards: ShardSet, trained_s: float, counts: dict[str, Any]
) -> Outcome:
    ctx.message(f"{counts['train_tokens']:,} training and {counts['val_tokens']:,} validation tokens")
    found, share = _overlap(ctx, tokenizer, shards)
    return Outcome(
        **_places(tokenizer, shards),
        summary={
            "vocab_size": tokenizer.vocab_size,
            "train_s": round(trained_s, 3),
            "train_tokens": counts["train_tokens"],
            "val_tokens": counts["val_tokens"],
            "provenance": shards.manifest["provenance"],
            "overlap": found,
            "overlap_sampled": share,
        },
    )


def _overlap(ctx: StageContext, tokenizer: Tokenizer, shards: ShardSet) -> tuple[dict[str, Any], float]:
    """What of the held-out items of the run's tasks the training text has already, and the share of it looked at."""
    ctx.phase("overlap")
    config = ctx.config
    items = {}
    for name in names_of(config):
        own = {"assistant": config.identity.name, "maker": config.identity.maker} if name == "identity" else {}
        heldout = make(name, seed=config.run.seed, **own).heldout()[:MOST_ITEMS]
        if heldout:
            items[name] = [f"{example.question}\n{example.answer}" for example in heldout]
    texts, share = overlap.sample(shards.train, tokenizer, look=ctx.raise_if_stopped)
    found = {name: msgspec.to_builtins(cell) for name, cell in overlap.measure(items, texts).items()}
    for name, cell in found.items():
        ctx.eval(f"overlap/{name}", 0, {key: float(cell[key]) for key in ("overlapping", "near")}, n=cell["items"])
    near = ", ".join(f"{name} {cell['near']} of {cell['items']}" for name, cell in found.items() if cell["near"])
    ctx.message(
        f"held-out items that the text nearly has: {near or 'none'} ({100 * share:.0f} % of the text looked at)"
    )
    return found, round(share, 4)


if __name__ == "__main__":
    main("tokenizer", work)
