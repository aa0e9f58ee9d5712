"""RL: GRPO on one task. Several answers per question; what did better than its siblings becomes likelier."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from picollm.evals.chat import evaluate
from picollm.evals.pass_at import sample_pass_at
from picollm.infer.engine import Engine
from picollm.infer.sampling import Sampling
from picollm.run.errors import StopRequested, UserError
from picollm.run.history import StageHistory
from picollm.run.planned import fingerprint
from picollm.run.stage import Outcome, StageContext, main
from picollm.tasks import Example, make
from picollm.text.chat import render_prompt
from picollm.train.batch import Batch
from picollm.train.collapse import Collapse
from picollm.train.loop import Every
from picollm.train.rollouts import ROW_MULTIPLE, Rollouts, added, figures, rollout
from picollm.train.schedule import Schedule
from picollm.train.session import open_session

UNCOMPILED_MULTIPLE = 16  # where no graph is kept, rows need not come in few lengths


def work(ctx: StageContext) -> Outcome:
    settings, seed = ctx.config.rl, ctx.config.run.seed
    task = make(settings.task, seed=seed)
    if reason := task.unavailable():
        raise UserError(f"rl.task = {settings.task!r} cannot be judged on this machine: {reason}")
    source = ctx.rank0_first(lambda: task.fetch(ctx.config.data.mirrors, ctx.message))
    # Rows are shorter here than in the other stages; on a CPU a graph of their own takes longer to make than it saves.
    session = open_session(ctx, compiled=ctx.config.machine.compile == "on")
    ranks = session.ranks
    examples = task.train()
    if not examples:
        raise UserError(f"rl.task = {settings.task!r} has no training examples on this machine; choose another task")
    mine = range(ranks.rank * settings.questions // ranks.world, (ranks.rank + 1) * settings.questions // ranks.world)
    if settings.questions < ranks.world:
        raise UserError(f"rl.questions is {settings.questions}: fewer than the {ranks.world} ranks; raise it")
    engine = Engine(session.model, session.tokenizer)
    sampling = Sampling(max_tokens=settings.max_tokens, temperature=settings.temperature, top_k=settings.top_k)
    longest = max(len(render_prompt(example.prompt, session.tokenizer)) for example in examples) + settings.max_tokens
    row_length = min(ctx.config.model.seq_len, -(-longest // ROW_MULTIPLE) * ROW_MULTIPLE)
    device_rows = ctx.config.machine.device_rows or ctx.config.pretrain.rows
    multiple = row_length if session.compute.compile else UNCOMPILED_MULTIPLE
    stats: dict[str, float] = {}
    readings: dict[int, dict[str, float]] = {}
    collapse = Collapse()

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
        shares = ranks.gather((made.sums, contrast(chosen, made)))
        everywhere = added(sums for sums, _ in shares)
        if ranks.any(ctx.stop_requested()):
            raise StopRequested(step)
        stats.clear()
        stats.update(figures(everywhere))
        for shown in next((told for _, told in shares if len(told) > 1), shares[0][1]):
            ctx.sample(shown.question, shown.text, step + 1, "rl", shown.details)
        for notice in collapse.step(step + 1, stats):
            (ctx.warning if notice.warning else ctx.message)(notice.text)
        inputs, targets, weights = made.teaching(multiple)
        at_once = max(1, device_rows * ctx.config.model.seq_len // inputs.shape[1])
        at_once = at_once if session.compute.compile else min(at_once, len(inputs))
        yield from Batch.from_numpy(inputs, targets, weights, everywhere["sampled"]).split(at_once)

    def read_heldout(step: int) -> None:
        look = session.looking(step)
        result = evaluate(
            task,
            engine,
            session.tokenizer,
            settings.eval_items,
            max_new_tokens=settings.max_tokens,
            on_progress=look,
        )
        readings[step] = {"accuracy": result.accuracy, "low": result.low, "high": result.high}
        ctx.eval("heldout", step, readings[step], n=result.n)
        if settings.pass_items:
            found = sample_pass_at(
                task,
                engine,
                session.tokenizer,
                settings.pass_items,
                ranks,
                sampling=sampling,
                seed=seed,
                on_progress=look,
            )
            values: dict[str, float] = {}
            for k, (rate, low, high) in found.rates.items():
                values |= {f"pass_at_{k}": rate, f"low_{k}": low, f"high_{k}": high}
            ctx.eval("sampled", step, values, n=found.n)

    outcome = session.train(
        batches,
        Schedule(settings.steps, 0, 1.0, 0.0, shape=settings.schedule),
        lr=settings.lr,
        parent="sft",
        evals=[Every(settings.eval_every, read_heldout, at_start=True)],
        extra_metrics=lambda step: dict(stats),
        ahead=0,
        content={"rl.task": fingerprint(source["sha256"])} if source.get("sha256") else {},
    )
    return Outcome(paths=outcome.paths, artifacts=outcome.artifacts, summary=outcome.summary | gained(ctx, readings))


@dataclass(frozen=True)
class Shown:
    """One answer, as a sample event has it."""

    question: str
    text: str
    details: dict[str, Any]


def contrast(chosen: list[Example], made: Rollouts) -> list[Shown]:
    """The best and the worst answer to the first question whose answers differ in reward; without one, only a best."""
    which = int((made.rewards.max(axis=1) > made.rewards.min(axis=1)).argmax())
    rewards, mean = made.rewards[which], float(made.rewards[which].mean())
    places = {"best": int(rewards.argmax()), "worst": int(rewards.argmin())}
    if rewards.max() == rewards.min():
        del places["worst"]
    return [
        Shown(
            chosen[which].question,
            made.texts[which][place],
            {"which": name, "reward": float(rewards[place]), "mean": mean},
        )
        for name, place in places.items()
    ]


def gained(ctx: StageContext, readings: dict[int, dict[str, float]]) -> dict[str, float]:
    """Held-out accuracy before and after; what this attempt did not read, an earlier one has noted in its events."""
    evals = StageHistory(ctx.run, "rl").read_all().evals
    known = {event.step: event.values for event in evals if event.name == "heldout"} | readings
    if min(known) == max(known):
        return {}
    first, last = known[min(known)], known[max(known)]
    found = {"accuracy_before": first["accuracy"], "accuracy_before_low": first["low"],
             "accuracy_before_high": first["high"], "accuracy": last["accuracy"]}  # fmt: skip
    before, low, high, after = (float(value or 0.0) for value in found.values())
    verdict = "above" if after > high else "below" if after < low else "within"
    ctx.message(
        f"held-out accuracy {before:.1%} before RL, {after:.1%} after: {verdict} the 95 % interval of SFT, "
        f"{low:.1%} to {high:.1%}"
    )
    return dict(zip(found, (before, low, high, after), strict=True))


if __name__ == "__main__":
    main("rl", work)
