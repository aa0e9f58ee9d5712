"""Chat eval: accuracy on every held-out task for base, mid, sft and rl, with n and a 95 % interval, and ChatCORE.

What is measured is kept in `eval/chat_eval.partial.json` on the way; a resumed attempt says it again and goes on. Wrong
answers are kept in `eval/failures/<model>/<task>.jsonl` (`picollm report --failures`).
"""

from __future__ import annotations

import hashlib
import json
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from picollm.evals.chat import KEPT_FAILURES, Result, chat_core, evaluate
from picollm.infer.engine import Engine
from picollm.infer.load import load_model
from picollm.infer.sampling import Sampling
from picollm.run import failures, measures, pipeline
from picollm.run.errors import StopRequested, UserError
from picollm.run.folder import write_atomic
from picollm.run.stage import Outcome, StageContext, main
from picollm.tasks import Example, Task, make, names_of
from picollm.text.chat import render_prompt
from picollm.text.tokenizer import Tokenizer
from picollm.train.device import Ranks
from picollm.train.session import start_ranks

CHATCORE = "ChatCORE"


def tasks(ctx: StageContext) -> dict[str, Task]:
    """What SFT and RL practised and what `chat_eval.tasks` adds."""
    config = ctx.config
    rows = str(ctx.output("identity", "rows"))
    made = {}
    for name in names_of(config):
        more = {"path": rows} if name.partition(":")[0] == "identity" else {}
        made[name] = make(name, seed=config.run.seed, **more)
    return made


def gathered(ctx: StageContext) -> tuple[dict[str, Task], list[str]]:
    """The tasks, what they are made from being here, and the rows that could not be used, in words."""
    made, problems = tasks(ctx), list[str]()
    for task in made.values():
        if not task.unavailable():
            task.fetch(ctx.config.data.mirrors, ctx.message)
            problems += task.problems()
    return made, problems


def questions_of(ctx: StageContext, ranks: Ranks, made: dict[str, Task]) -> tuple[dict[str, list[Example]], dict]:
    """The held-out items to ask by task, and why tasks are left out whose answers cannot be judged on every rank."""
    settings, asked, skipped = ctx.config.chat_eval, {}, {}
    for name, task in made.items():
        reason = task.unavailable()
        if ranks.any(bool(reason)):
            skipped[name] = ranks.share(reason) or "another rank's machine cannot judge its answers"
            say = ctx.warning if task.judged else ctx.message
            say(f"{name} is left out of the evaluation: {skipped[name]}")
        elif items := list(task.heldout()[: settings.tasks.get(name) or settings.items]):
            asked[name] = items
    if not asked:
        raise UserError("none of the run's tasks has held-out items to ask; name some in chat_eval.tasks")
    return asked, skipped


def work(ctx: StageContext) -> Outcome:
    todo, problems = ctx.rank0_first(lambda: gathered(ctx))
    for problem in problems:
        ctx.warning(problem)
    ranks = start_ranks(ctx)
    tokenizer = Tokenizer.load(ctx.output("tokenizer", "tokenizer"))
    settings = ctx.config.chat_eval
    file = ctx.run.dir / "eval" / "chat_eval.json"
    unfinished = file.with_suffix(".partial.json")
    table, samples = ranks.share(_kept(ctx, unfinished) if ctx.rank == 0 else None)
    questions = ranks.share(ctx.run.prompts())
    items, skipped = questions_of(ctx, ranks, todo)
    total = sum(map(len, items.values())) * len(pipeline.MODEL_STAGES)
    done = sum(cell["n"] for cells in table.values() for cell in cells.values())

    def keep() -> None:
        if ctx.rank == 0:
            found = {"fingerprint": ctx.fingerprint, "models": table, "samples": samples}
            write_atomic(unfinished, json.dumps(found))

    def look(mine: int, of_mine: int, asked: int) -> None:
        ctx.progress(done + asked * mine // max(1, of_mine), total)
        if ranks.any(ctx.stop_requested()):
            raise StopRequested()

    if ctx.rank == 0 and not table:
        failures.start_over(ctx.run)
    for model, stage in pipeline.MODEL_STAGES.items():
        cells = table[model] = {name: cell for name, cell in table.get(model, {}).items() if name in items}
        for name, cell in cells.items():
            _tell(ctx, model, name, cell)
        answered = [sample["prompt"] for sample in samples.get(model, [])] == questions
        if answered:
            _show(ctx, model, samples.get(model, []))
        left = {name: todo[name] for name in items if name not in cells}
        if left or not answered:
            ctx.phase(model)
            where = ctx.output(stage, "checkpoint"), ctx.output("tokenizer", "tokenizer")
            engine = load_model(*where, device=ranks.device)
        for name, task in left.items():
            result = evaluate(
                task,
                engine,
                tokenizer,
                examples=items[name],
                max_new_tokens=settings.max_tokens or None,
                keep_failures=failures.MOST_KEPT,
                on_progress=partial(look, asked=len(items[name])),
            )
            cells[name] = _cell(ctx, model, name, result)
            _tell(ctx, model, name, cells[name])
            ctx.message(f"{model} {name}: {100 * result.accuracy:.1f} % of {result.n}")
            done += result.n
            keep()
            if ranks.any(ctx.stop_requested()):
                raise StopRequested()
        core = chat_core(cells)
        ctx.eval(f"{model}/{CHATCORE}", 0, {key: core[key] for key in ("chatcore", "low", "high")}, n=core["n"])
        ctx.message(f"{model} ChatCORE: {core['chatcore']:.4f} over {core['tasks']} tasks")
        if ctx.rank == 0 and not answered:
            samples[model] = _answers(ctx, model, engine, tokenizer, questions)
            _show(ctx, model, samples[model])
            keep()
    cores = {model: chat_core(cells) for model, cells in table.items()}
    if ctx.rank == 0:
        found = {"models": table, "chatcore": cores, "skipped": skipped, "settings": msgspec.to_builtins(settings)}
        write_atomic(file, json.dumps(found, indent=1))
        failures.finish(ctx.run)
        unfinished.unlink(missing_ok=True)
    ranks.close()
    keys = ("n", "correct", "accuracy", "low", "high", "baseline", "kind", "sampling", "seconds")
    summary = {
        model: {name: {key: cell[key] for key in keys if key in cell} for name, cell in cells.items()}
        for model, cells in table.items()
    }
    return Outcome(
        paths={"results": "eval/chat_eval.json"},
        artifacts={"results": digest(table, samples, skipped)},
        summary={"models": summary, "chatcore": cores, "skipped": skipped},
    )


def digest(table: dict[str, dict[str, Any]], samples: dict[str, Any], skipped: dict[str, str]) -> str:
    """sha256 of all that was found but the times it took: by it the report knows whether it is of these results."""
    cells = {
        model: {name: {key: value for key, value in cell.items() if key != "seconds"} for name, cell in tasks.items()}
        for model, tasks in table.items()
    }
    return hashlib.sha256(json.dumps([cells, samples, skipped], sort_keys=True).encode()).hexdigest()


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


def _cell(ctx: StageContext, model: str, name: str, result: Result) -> dict[str, Any]:
    """The result as it is kept: the wrong answers in a file of their own, the first of them here."""
    cell = result.as_dict()
    if ctx.rank == 0:
        failures.write(ctx.run, model, name, cell["failures"], failures.UNFINISHED)
    return cell | {"failures": cell["failures"][:KEPT_FAILURES]}


def _tell(ctx: StageContext, model: str, name: str, cell: dict[str, Any]) -> None:
    ctx.eval(f"{model}/{name}", 0, {key: cell[key] for key in ("accuracy", "low", "high")}, n=cell["n"])


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
