"""What the four training stages share: from a stage's context to a model, its settings and, at the end, an outcome."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from picollm.infer.engine import Engine
from picollm.model.gpt import GPT
from picollm.run import memory, pipeline, plan
from picollm.run.errors import StopRequested, UserError
from picollm.run.planned import fingerprint
from picollm.run.scaling import ModelShape, flops_per_token, num_params
from picollm.run.stage import Outcome, StageContext
from picollm.text.tokenizer import Tokenizer
from picollm.train.batch import Batch
from picollm.train.checkpoint import Keep
from picollm.train.device import Ranks, start
from picollm.train.dry_run import free_memory
from picollm.train.loop import Every
from picollm.train.optim import OptimizerSettings
from picollm.train.schedule import Schedule
from picollm.train.step import Compute
from picollm.train.trainer import READING, SIGN_S, TrainSettings, train_stage

BATCHES_AHEAD = 2


@dataclass(frozen=True)
class Session:
    """One training stage's process: where it runs, what it trains."""

    ctx: StageContext
    ranks: Ranks
    compute: Compute
    tokenizer: Tokenizer
    model: GPT

    def optimizer_settings(self, scale: float) -> OptimizerSettings:
        """Pretraining's learning rates (`plan.learning_rates`) times `scale`."""
        rates = plan.learning_rates(self.ctx.config, self.model.shape)
        base = OptimizerSettings(matrix_lr=rates.pop("matrices"), matrix_weight_decay=rates.pop("weight decay"))
        groups = {name: replace(getattr(base, name), lr=lr) for name, lr in rates.items()}
        return replace(base, **groups).scaled(scale)

    def split(self, batch: Batch, rows: int) -> Iterator[Batch]:
        """This rank's share of a step of `rows` rows as micro-batches of `machine.device_rows` rows at most.

        All ranks make equally many, of one shape; where `rows` does not divide, the last ones are filled up.
        """
        most = -(-rows // self.ranks.world)
        at_once = min(self.ctx.config.machine.device_rows or most, most)
        return batch.split(memory.even(most, at_once), -(-most // at_once))

    def eval_rows(self, rows: int) -> int:
        """Rows of one validation batch over all ranks: a step's, or as many as the devices compute at a time."""
        return min(rows, (self.ctx.config.machine.device_rows or rows) * self.ranks.world)

    def engine(self) -> Engine | None:
        """What answers with the present weights; None, on all ranks, where one of them has no memory for it."""
        try:
            made = Engine(self.model, self.tokenizer)
        except torch.OutOfMemoryError:
            made = None
        return None if self.ranks.any(made is None) else made

    def looking(self, step: int) -> Callable[..., None]:
        """For a reading after `step` to call now and then, whatever with, equally often on every rank.

        It gives signs of life, and raises `StopRequested` when a stop was asked for.
        """
        said = time.monotonic()

        def look(*_: object) -> None:
            nonlocal said
            if time.monotonic() > said + SIGN_S:
                said = time.monotonic()
                self.ctx.phase(READING)
            if self.ranks.any(self.ctx.stop_requested()):
                raise StopRequested(step)

        return look

    def train(
        self,
        batches: Callable[[int], Iterable[Batch]],
        schedule: Schedule,
        *,
        lr: float = 1.0,
        weight_decay: float | None = None,
        reuse_moments: bool = False,
        parent: str | None = None,
        evals: Sequence[Every] = (),
        extra_metrics: Callable[[int], dict[str, float]] | None = None,
        at_checkpoint: Callable[[int], object] = lambda step: None,
        summary: dict[str, Any] | None = None,
        content: dict[str, str] | None = None,
        ahead: int = BATCHES_AHEAD,
    ) -> Outcome:
        """Train to the end of the schedule; the outcome's `checkpoint` is what later stages begin from.

        `weight_decay`: Muon's, where it is not that of pretraining. `reuse_moments`: see `TrainSettings`.
        `content`: hashes of files that the settings only name; a checkpoint made from others is not resumed.
        `ahead`: steps whose batches a thread makes in advance; 0 where they depend on the model or on other ranks.
        """
        ctx, machine = self.ctx, self.ctx.config.machine
        made_from = fingerprint({"settings": ctx.fingerprint, **content}) if content else ctx.fingerprint
        folder = ctx.run.dir / pipeline.CHECKPOINT_FOLDERS[ctx.name]
        optimizer = self.optimizer_settings(lr)
        if weight_decay is not None:
            optimizer = replace(optimizer, matrix_weight_decay=weight_decay)
        try:
            done = train_stage(
                ctx,
                model=self.model,
                batches=batches,
                settings=TrainSettings(
                    schedule=schedule,
                    optimizer=optimizer,
                    compute=self.compute,
                    save_every=getattr(ctx.config, ctx.name).save_every,
                    keep=Keep(machine.keep_last, machine.keep_best, machine.milestones),
                    ahead=ahead,
                    fresh=ctx.fresh,
                    reuse_moments=reuse_moments,
                    planned_tok_s=planned_tok_s(ctx, self.model),
                ),
                checkpoint_dir=folder,
                meta={"fingerprint": made_from, "tokenizer": self.tokenizer.hash, "run": ctx.run.name},
                ranks=self.ranks,
                init_from=ctx.output(parent, "checkpoint") if parent else None,
                evals=evals,
                extra_metrics=extra_metrics,
                at_checkpoint=at_checkpoint,
            )
        except StopRequested:
            self.ranks.close()
            raise
        self.ranks.close()
        figures = {
            key: getattr(done, key)
            for key in ("step", "loss", "tokens", "tok_s", "mfu", "compile_seconds", "skipped", "peak_memory")
        }
        if done.spike is not None:
            figures["spike"] = done.spike.as_summary()
        figures |= {"params": num_params(self.model.shape)["total"], "world": self.ranks.world}
        return Outcome(
            paths={"checkpoint": ctx.relative(done.checkpoint)},
            artifacts={"checkpoint": done.hash},
            summary=figures | asdict(self.compute) | (summary or {}),
        )


def open_session(ctx: StageContext, *, compiled: bool = True) -> Session:
    """Join the ranks, load the tokenizer and lay out the model with its first weights (drawn from the run's seed).

    Without `compiled` a CPU does not compile, whatever the plan found.

    Raises `UserError` when the plan is missing or there are more ranks than rows in a step.
    """
    ranks = start_ranks(ctx)
    tokenizer = Tokenizer.load(ctx.output("tokenizer", "tokenizer"))
    shape = plan.shape(ctx.config, tokenizer.vocab_size)
    rows = getattr(getattr(ctx.config, ctx.name), "rows", ranks.world)
    if rows < ranks.world:
        raise UserError(
            f"{ctx.name}.rows is {rows}: fewer than the {ranks.world} ranks; raise it or lower launch.nproc"
        )
    model = GPT(shape)
    model.init_weights(ctx.config.run.seed)
    compute = compute_for(ctx)
    if not compiled and ranks.device.type == "cpu":
        compute = replace(compute, compile=False)
    _fit_fewer_ranks(ctx, ranks, shape, compute)
    return Session(ctx, ranks, compute, tokenizer, model)


def _fit_fewer_ranks(ctx: StageContext, ranks: Ranks, shape: ModelShape, compute: Compute) -> None:
    """With fewer ranks than preflight had, each holds more of the optimizer's state: fewer rows at a time may fit.

    Raises `UserError` when not even one does.
    """
    found, machine = ctx.run.plan(), ctx.config.machine
    if found is None or ranks.world >= found.notes.get("world", 0) or ctx.run.wishes().machine.device_rows:
        return
    how = memory.How(
        device=ranks.device.type,
        precision=compute.precision,
        attention=compute.attention,
        fp8=compute.fp8,
        world=ranks.world,
    )
    twice = "on" if compute.checkpointing else "off"
    rows = memory.fit(shape, machine.device_rows, free_memory(ranks), how, twice).rows
    if rows < machine.device_rows:
        ctx.message(f"{ranks.world} ranks instead of {found.notes['world']}: {rows} rows at a time fit each")
        machine.device_rows = rows


def planned_tok_s(ctx: StageContext, model: GPT) -> float:
    """Tokens per second that the plan's predictions rest on; 0 when unknown, and in RL, which mostly samples."""
    found = ctx.run.plan()
    if found is None or ctx.name == "rl":
        return 0.0
    overhead = float(found.notes.get("step_overhead", plan.STEP_OVERHEAD))
    overhead *= float(found.notes.get("world", ctx.world)) / ctx.world  # the plan's speed is of all its ranks
    return float(found.notes.get("train_flops_s", 0.0)) / overhead / flops_per_token(model.shape)


def start_ranks(ctx: StageContext) -> Ranks:
    """Device, threads, determinism and the other ranks, as `[machine]` and `[launch]` ask."""
    machine, timeout = ctx.config.machine, ctx.config.launch.timeout
    return start(machine.device, threads=machine.threads, deterministic=machine.deterministic, timeout=timeout)


def compute_for(ctx: StageContext) -> Compute:
    """How to compute: as set, else as preflight found fastest, else in the plainest way."""
    found = ctx.run.plan()
    choices = found.choices if found else {}

    def chosen(knob: str, plainest: str) -> str:
        wish = getattr(ctx.config.machine, knob)
        return wish if wish != "auto" else choices.get(knob, plainest)

    return Compute(
        precision=chosen("precision", "fp32"),
        attention=chosen("attention", "explicit"),
        compile=chosen("compile", "off") == "on",
        fp8=chosen("fp8", "off") == "on",
        checkpointing=chosen("checkpointing", "off") == "on",
    )
