"""Chat eval: accuracy on every held-out task for base, mid, sft and rl, with n and a 95 % interval.

What is measured is kept in `eval/chat_eval.partial.json` on the way; a resumed attempt says it again and goes on.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from picollm.evals.chat import evaluate
from picollm.infer.engine import Engine
from picollm.infer.load import load_model
from picollm.infer.sampling import Sampling
from picollm.run import measures, pipeline
from picollm.run.errors import StopRequested
from picollm.run.folder import write_atomic
from picollm.run.stage import Outcome, StageContext, main
from picollm.tasks import Task, make
from picollm.text.chat import render_prompt
from picollm.text.tokenizer import Tokenizer
from picollm.train.session import start_ranks


def tasks(ctx: StageContext) -> dict[str, Task]:
    """What SFT and RL practised and what `chat_eval.tasks` adds, as far as it has held-out items."""
    config = ctx.config
    names = dict.fromkeys([*config.midtrain.mixture, *config.sft.mixture, config.rl.task, *config.chat_eval.tasks])
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
    unfinished = file.with_suffix(".partial.json")
    table, samples = ranks.share(_kept(ctx, unfinished) if ctx.rank == 0 else None)
    questions = ranks.share(ctx.run.prompts())
    todo, settings = tasks(ctx), ctx.config.chat_eval
    most = {name: settings.tasks.get(name) or settings.items for name in todo}
    items = {name: min(most[name], len(task.heldout())) for name, task in todo.items()}
    total = sum(items.values()) * len(pipeline.MODEL_STAGES)
    done = sum(cell["n"] for cells in table.values() for cell in cells.values())

    def keep() -> None:
        if ctx.rank == 0:
            found = {"fingerprint": ctx.fingerprint, "models": table, "samples": samples}
            write_atomic(unfinished, json.dumps(found))

    def look(mine: int, of_mine: int, asked: int) -> None:
        ctx.progress(done + asked * mine // max(1, of_mine), total)
        if ranks.any(ctx.stop_requested()):
            raise StopRequested()

    for model, stage in pipeline.MODEL_STAGES.items():
        cells = table.setdefault(model, {})
        for name, cell in cells.items():
            _tell(ctx, model, name, cell)
        answered = [sample["prompt"] for sample in samples.get(model, [])] == questions
        if answered:
            _show(ctx, model, samples.get(model, []))
        left = {name: task for name, task in todo.items() if name not in cells}
        if answered and not left:
            continue
        ctx.phase(model)
        engine = load_model(ctx.output(stage, "checkpoint"), ctx.output("tokenizer", "tokenizer"), device=ranks.device)
        for name, task in left.items():
            result = evaluate(
                task,
                engine,
                tokenizer,
                most[name],
                max_new_tokens=settings.max_tokens or None,
                on_progress=partial(look, asked=items[name]),
            )
            cells[name] = result.as_dict()
            _tell(ctx, model, name, cells[name])
            ctx.message(f"{model} {name}: {100 * result.accuracy:.1f} % of {result.n}")
            done += result.n
            keep()
            if ranks.any(ctx.stop_requested()):
                raise StopRequested()
        if ctx.rank == 0 and not answered:
            samples[model] = _answers(ctx, model, engine, tokenizer, questions)
            _show(ctx, model, samples[model])
            keep()
    if ctx.rank == 0:
        write_atomic(file, json.dumps({"models": table}, indent=1))
        unfinished.unlink(missing_ok=True)
    ranks.close()
    keys = ("n", "correct", "accuracy", "low", "high", "baseline", "kind")
    summary = {
        model: {name: {key: cell[key] for key in keys if key in cell} for name, cell in cells.items()}
        for model, cells in table.items()
    }
    return Outcome(paths={"results": "eval/chat_eval.json"}, summary={"models": summary})


def _kept(ctx: StageContext, file: Path) -> tuple[dict[str, dict[str, Any]], dict[str, list[dict[str, Any]]]]:
    """Cells and samples per model that an earlier attempt at the same thing made."""
    if ctx.fresh or not file.exists():
        return {}, {}
    try:
        kept = json.loads(file.read_bytes())
        if kept["fingerprint"] == ctx.fingerprint:
            return kept["models"], kept["samples"]
    except (ValueError, KeyError, TypeError) as error:
        ctx.warning(f"{file} is damaged ({error!r}); the evaluation starts over")
    return {}, {}


def _tell(ctx: StageContext, model: str, name: str, cell: dict[str, Any]) -> None:
    ctx.eval(f"{model}/{name}", 0, {"accuracy": cell["accuracy"]}, n=cell["n"])


def _show(ctx: StageContext, model: str, samples: list[dict[str, Any]]) -> None:
    for sample in samples:
        ctx.sample(sample["prompt"], sample["text"], 0, model, sample["details"])


def _answers(
    ctx: StageContext, model: str, engine: Engine, tokenizer: Tokenizer, questions: list[str]
) -> list[dict[str, Any]]:
    """The comparison prompts, greedily: the base model continues the raw text, the others answer."""
    sampling = Sampling(max_tokens=ctx.config.chat.max_tokens, temperature=0.0)
    if model == "base":
        prompts = [[tokenizer.bos_id, *tokenizer.encode(question)] for question in questions]
    else:
        prompts = [render_prompt([{"role": "user", "content": q}], tokenizer, engine.context // 2) for q in questions]
    found = []
    for question, answer in zip(questions, engine.generate(prompts, sampling), strict=True):
        measured = msgspec.to_builtins(measures.measure(answer.text, answer.finish_reason))
        details = measured | {"finish_reason": answer.finish_reason}
        found.append({"prompt": question, "text": answer.text, "details": details})
    return found


if __name__ == "__main__":
    main("chat_eval", work)
