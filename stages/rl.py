"""RL: GRPO on one task. Several answers per question; what did better than its siblings becomes likelier."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from picollm.evals.chat import evaluate
from picollm.infer.engine import Engine
from picollm.infer.sampling import Sampling
from picollm.run.errors import StopRequested, UserError
from picollm.run.stage import Outcome, StageContext, main
from picollm.tasks import Example, make
from picollm.text.chat import render_prompt
from picollm.train.batch import Batch
from picollm.train.loop import Every
from picollm.train.rollouts import ROW_MULTIPLE, rollout
from picollm.train.schedule import Schedule
from picollm.train.session import open_session


def work(ctx: StageContext) -> Outcome:
    # Rows are shorter here than in the other stages; on a CPU a graph of their own takes longer to make than it saves.
    session = open_session(ctx, compiled=ctx.config.machine.compile == "on")
    settings, ranks, seed = ctx.config.rl, session.ranks, ctx.config.run.seed
    task = make(settings.task, seed=seed)
    examples = task.train()
    if not examples:
        raise UserError(f"rl.task = {settings.task!r} has no training examples on this machine; choose another task")
    mine = range(ranks.rank * settings.questions // ranks.world, (ranks.rank + 1) * settings.questions // ranks.world)
    if not mine:
        raise UserError(f"rl.questions is {settings.questions}: fewer than the {ranks.world} ranks; raise it")
    engine = Engine(session.model, session.tokenizer)
    sampling = Sampling(max_tokens=settings.max_tokens, temperature=settings.temperature, top_k=settings.top_k)
    longest = max(len(render_prompt(example.prompt, session.tokenizer)) for example in examples) + settings.max_tokens
    row_length = min(ctx.config.model.seq_len, -(-longest // ROW_MULTIPLE) * ROW_MULTIPLE)
    device_rows = ctx.config.machine.device_rows or ctx.config.pretrain.rows
    at_once = max(1, device_rows * ctx.config.model.seq_len // row_length)
    parts = -(-(-(-settings.questions // ranks.world) * settings.samples) // at_once)
    stats: dict[str, float] = {}
    accuracy: dict[int, float] = {}

    def question(number: int) -> Example:
        """The n-th question of the run: every epoch in an order of its own."""
        epoch, place = divmod(number, len(examples))
        return examples[np.random.default_rng((seed, epoch)).permutation(len(examples))[place]]

    def batches(step: int) -> Iterator[Batch]:
        chosen = [question(step * settings.questions + q) for q in mine]
        made = rollout(
            engine,
            task,
            chosen,
            samples=settings.samples,
            seed=seed,
            step=step,
            first_question=mine[0],
            sampling=sampling,
            row_length=row_length,
        )
        if ranks.any(ctx.stop_requested()):
            raise StopRequested(step)
        stats.clear()
        stats.update(made.stats)
        if ranks.rank == 0:
            shown = step % len(chosen)
            rewards = made.rewards[shown]
            details = {"reward": float(rewards.max()), "mean": float(rewards.mean())}
            ctx.sample(chosen[shown].question, made.texts[shown][int(rewards.argmax())], step + 1, "rl", details)
        denom = float(ranks.sum(torch.tensor(made.denom, device=ranks.device)).item())
        yield from Batch.from_numpy(made.inputs, made.targets, made.weights, denom).split(at_once, parts)

    def read_heldout(step: int) -> None:
        if step in accuracy:
            return
        result = evaluate(task, engine, session.tokenizer, settings.eval_items, max_new_tokens=settings.max_tokens)
        accuracy[step] = result.accuracy
        ctx.eval("heldout", step, {"accuracy": result.accuracy, "low": result.low, "high": result.high}, n=result.n)

    return session.train(
        batches,
        Schedule(settings.steps, 0, 1.0, 0.0),
        lr=settings.lr,
        parent="sft",
        evals=[Every(settings.eval_every, read_heldout, at_start=True)],
        extra_metrics=lambda step: dict(stats),
        ahead=0,
    )


if __name__ == "__main__":
    main("rl", work)
