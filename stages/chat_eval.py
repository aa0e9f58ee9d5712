"""Chat eval: accuracy on every held-out task for base, mid, sft and rl, with n and a 95 % interval."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from picollm.evals.chat import evaluate
from picollm.infer.engine import Engine
from picollm.infer.load import load_model
from picollm.infer.sampling import Sampling
from picollm.run import measures, pipeline
from picollm.run.folder import write_atomic
from picollm.run.stage import Outcome, StageContext, main
from picollm.tasks import Task, make
from picollm.text.chat import render_prompt
from picollm.text.tokenizer import Tokenizer
from picollm.train.session import start_ranks


def tasks(ctx: StageContext) -> dict[str, Task]:
    """What SFT and RL practised, as far as it has held-out items."""
    names = dict.fromkeys([*ctx.config.midtrain.mixture, *ctx.config.sft.mixture, ctx.config.rl.task])
    rows = str(ctx.output("identity", "rows"))
    made = {}
    for name in names:
        more = {"path": rows} if name.partition(":")[0] == "identity" else {}
        made[name] = make(name, seed=ctx.config.run.seed, **more)
    return {name: task for name, task in made.items() if task.heldout()}


def work(ctx: StageContext) -> Outcome:
    ranks = start_ranks(ctx)
    tokenizer = Tokenizer.load(ctx.output("tokenizer", "tokenizer"))
    file = ctx.run.dir / "eval" / "chat_eval.json"
    partial = file.with_suffix(".partial.json")
    table: dict[str, dict[str, Any]] = {}
    if partial.exists() and not ctx.fresh:
        kept = json.loads(partial.read_text())
        table = kept["models"] if kept["fingerprint"] == ctx.fingerprint else {}
    todo = tasks(ctx)
    total = len(todo) * len(pipeline.MODEL_STAGES)
    done = sum(len(cells) for cells in table.values())
    for model, stage in pipeline.MODEL_STAGES.items():
        cells = table.setdefault(model, {})
        if len(cells) == len(todo):
            continue
        ctx.phase(model)
        engine = load_model(ctx.output(stage, "checkpoint"), ctx.output("tokenizer", "tokenizer"), device=ranks.device)
        for name, task in todo.items():
            if name in cells:
                continue
            settings = ctx.config.chat_eval
            result = evaluate(task, engine, tokenizer, settings.items, max_new_tokens=settings.max_tokens or None)
            cells[name] = result.as_dict()
            ctx.eval(f"{model}/{name}", 0, {"accuracy": result.accuracy}, n=result.n)
            ctx.message(f"{model} {name}: {100 * result.accuracy:.1f} % of {result.n}")
            done += 1
            ctx.progress(done, total)
            if ctx.rank == 0:
                write_atomic(partial, json.dumps({"fingerprint": ctx.fingerprint, "models": table}))
            if ranks.any(ctx.stop_requested()):
                ctx.raise_if_stopped()
        if ctx.rank == 0:
            _answer_prompts(ctx, model, engine, tokenizer)
    if ctx.rank == 0:
        write_atomic(file, json.dumps({"models": table}, indent=1))
        partial.unlink(missing_ok=True)
    ranks.close()
    keep = ("n", "correct", "accuracy", "low", "high", "baseline", "kind")
    summary = {
        model: {name: {key: cell[key] for key in keep if key in cell} for name, cell in cells.items()}
        for model, cells in table.items()
    }
    return Outcome(paths={"results": "eval/chat_eval.json"}, summary={"models": summary})


def _answer_prompts(ctx: StageContext, model: str, engine: Engine, tokenizer: Tokenizer) -> None:
    """The comparison prompts, greedily: the base model continues the raw text, the others answer."""
    questions = ctx.run.prompts()
    sampling = Sampling(max_tokens=ctx.config.chat.max_tokens, temperature=0.0)
    if model == "base":
        prompts = [[tokenizer.bos_id, *tokenizer.encode(question)] for question in questions]
    else:
        prompts = [render_prompt([{"role": "user", "content": q}], tokenizer, engine.context // 2) for q in questions]
    for question, answer in zip(questions, engine.generate(prompts, sampling), strict=True):
        measured = msgspec.to_builtins(measures.measure(answer.text, answer.finish_reason))
        ctx.sample(question, answer.text, 0, model, measured | {"finish_reason": answer.finish_reason})


if __name__ == "__main__":
    main("chat_eval", work)
