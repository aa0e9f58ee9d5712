"""Base eval: bits per byte on the pinned validation text, continuations of fixed prompts, and CORE if asked for.

What is measured of CORE is kept in `eval/core.partial.json` task by task; a resumed attempt says it again and goes on.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from picollm.data.loader import ValLoader
from picollm.data.shards import ShardSet
from picollm.evals.bpb import text_loss
from picollm.evals.core import TOKENS_AT_ONCE, core, evaluate_task
from picollm.evals.core_bundle import Bundle, bundle_of
from picollm.evals.samples import base_samples, prompts_for
from picollm.infer.engine import Engine
from picollm.infer.load import load_model
from picollm.run.errors import StopRequested
from picollm.run.folder import write_atomic
from picollm.run.planned import fingerprint
from picollm.run.stage import Outcome, StageContext, main
from picollm.text.tokenizer import Tokenizer
from picollm.train.device import Ranks
from picollm.train.session import start_ranks


def work(ctx: StageContext) -> Outcome:
    # Before the ranks join: getting it may take long. Rank 0 has it and gives the others their rows.
    bundle = ctx.rank0_first(lambda: bundle_of(ctx) if ctx.rank == 0 else None)
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
    found = measure_core(ctx, ranks, engine, tokenizer, bundle)
    ranks.close()
    return Outcome(
        paths={"core": "eval/core.json"} if found else {},
        artifacts={"bpb": f"{loss.bpb:.6f}"} | ({"core": f"{found['core']:.6f}"} if found else {}),
        summary={"bpb": loss.bpb, "loss": loss.loss, "val_bytes": loss.bytes, "val_tokens": loss.tokens}
        | {"val_text": pinned(shards)}
        | {key if key == "core" else f"core_{key}": value for key, value in found.items()},
    )


def pinned(shards: ShardSet) -> str:
    """What was read, whatever the tokenizer: a Hub file by name, or the hash of the text that it is part of."""
    files = shards.manifest.get("val")
    return ", ".join(part["file"] for part in files) if files else shards.manifest["text"]


def measure_core(
    ctx: StageContext, ranks: Ranks, engine: Engine, tokenizer: Tokenizer, bundle: Bundle | None
) -> dict[str, Any]:
    """What `core` gives, and what it was measured with; {} without a bundle. `bundle`: rank 0's, None on the others."""
    file = ctx.run.dir / "eval" / "core.json"
    unfinished = file.with_suffix(".partial.json")
    if ctx.rank == 0 and bundle is None:
        file.unlink(missing_ok=True)  # of other settings
    opened = ranks.share(
        (bundle.tasks, bundle.about, _kept(ctx, unfinished, _made_from(ctx, bundle.about))) if bundle else None
    )
    if opened is None:
        return {}
    tasks, about, kept = opened
    settings, machine = ctx.config.base_eval, ctx.config.machine
    most = TOKENS_AT_ONCE[ranks.device.type]
    at_once = min(most, machine.device_rows * engine.context or most)
    cells: dict[str, dict[str, Any]] = {}

    def look(done: int, of: int) -> None:
        ctx.progress(done, of)
        if ranks.any(ctx.stop_requested()):
            raise StopRequested()

    for number, task in enumerate(tasks, 1):
        ctx.phase(f"CORE {number} of {len(tasks)}: {task.label}")
        rows, sha256 = ranks.share(bundle.rows(task) if bundle else None)
        cell = kept.get(task.label)
        if cell is None or cell["sha256"] != sha256:
            how: dict[str, Any] = {"items": settings.core_items, "tokens_at_once": at_once, "on_progress": look}
            cell = evaluate_task(task, rows, engine, tokenizer, ranks, **how) | {"sha256": sha256}
        cells[task.label] = cell
        shown = ("accuracy", "low", "high", "baseline", "centered")
        ctx.eval(f"core/{task.label}", 0, {key: cell[key] for key in shown}, n=cell["n"])
        ctx.message(f"CORE {task.label}: {100 * cell['accuracy']:.1f} % of {cell['n']}, centred {cell['centered']:.3f}")
        if ctx.rank == 0:
            write_atomic(unfinished, json.dumps({"fingerprint": _made_from(ctx, about), "cells": cells}))
        if ranks.any(ctx.stop_requested()):
            raise StopRequested()
    total = core(list(cells.values()))
    ctx.eval("core", 0, {key: total[key] for key in ("core", "low", "high")}, n=total["n"])
    kind = "" if total["complete"] and not settings.core_items else " (not the whole metric)"
    ctx.message(f"CORE {total['core']:.4f}, {total['low']:.4f} to {total['high']:.4f}{kind}")
    if ctx.rank == 0:
        write_atomic(
            file, json.dumps({**total, "items": settings.core_items, "bundle": about, "cells": cells}, indent=1)
        )
        unfinished.unlink(missing_ok=True)
    baselines = about["baselines"]
    return total | {"items": settings.core_items, "baselines": f"{baselines['file']} sha256 {baselines['sha256'][:12]}"}


def _made_from(ctx: StageContext, about: dict[str, Any]) -> list[str]:
    """Of what is kept task by task: the items of each count on their own, not the bundle as a whole."""
    inputs = {key: value for key, value in ctx.inputs.items() if key != "base_eval.core content"}
    return [fingerprint(msgspec.to_builtins(inputs)), about["tasks"]["sha256"], about["baselines"]["sha256"]]


def _kept(ctx: StageContext, file: Path, made_from: list[str]) -> dict[str, dict[str, Any]]:
    """Cells that an earlier attempt at the same thing made."""
    if ctx.fresh or not file.exists():
        return {}
    try:
        kept = json.loads(file.read_bytes())
        if kept["fingerprint"] == made_from:
            return kept["cells"]
    except (ValueError, KeyError, TypeError) as error:
        ctx.warning(f"{file} is damaged ({error!r}); CORE starts over")
    return {}


if __name__ == "__main__":
    main("base_eval", work)
