"""The set-up around the loop that pretraining, midtraining, SFT and RL share: begin, resume, save, stop, report."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from picollm.model.gpt import GPT
from picollm.run.errors import StopRequested, UserError
from picollm.run.spike import Spike
from picollm.train import checkpoint
from picollm.train.batch import Batch
from picollm.train.device import Ranks, peak_memory
from picollm.train.loop import Every, NotFinite, loop
from picollm.train.meter import Context, Meter
from picollm.train.nonfinite import where_not_finite
from picollm.train.optim import OptimizerSettings, build_optimizer
from picollm.train.prefetch import ahead
from picollm.train.saver import Saver
from picollm.train.schedule import Schedule
from picollm.train.sharded import AnyOptimizer, ShardedOptimizer
from picollm.train.step import Compute, ForwardBackward

READING = "held-out reading"
SIGN_S = 5.0
"""A reading that takes longer is a phase, said again and again as a sign of life."""


@dataclass(frozen=True)
class TrainSettings:
    """What a training stage decides.

    Attributes:
        optimizer, schedule, compute: see their modules; `schedule.steps` is the stage's length.
        save_every: seconds between checkpoints, 0 for none but the last; `save_steps` the same in steps.
        keep: which checkpoints outlive the next save.
        ahead: steps whose batches are made before they are asked for, in a thread; 0 where they depend on the model.
        patience: steps in a row without a finite loss before giving up.
        fresh: remove this stage's own checkpoints and start over.
        reuse_moments: start from the parent's optimizer state too, not only its weights.
        planned_tok_s: tokens per second the plan counts on, for a warning when it is far slower; 0: unknown.
    """

    schedule: Schedule
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    compute: Compute = field(default_factory=Compute)
    save_every: float = 30.0
    save_steps: int = 0
    keep: checkpoint.Keep = field(default_factory=checkpoint.Keep)
    ahead: int = 0
    patience: int = 10
    fresh: bool = False
    reuse_moments: bool = False
    planned_tok_s: float = 0.0


@dataclass(frozen=True)
class Summary:
    """How the stage went; `hash` is the sha256 of the weights, `tok_s` the median over the steps of this attempt.

    `tokens` are those of all attempts, `spike` is how the loss of midtraining began.
    An attempt with nothing left to do has the `loss` and `tok_s` of the one before.
    """

    step: int
    checkpoint: Path
    hash: str
    loss: float
    tokens: int
    tok_s: float
    mfu: float
    seconds: float
    compile_seconds: float
    skipped: int
    resumed_from: int
    peak_memory: int
    spike: Spike | None = None


def train_stage(
    ctx: Context,
    *,
    model: GPT,
    batches: Callable[[int], Iterable[Batch]],
    settings: TrainSettings,
    checkpoint_dir: Path,
    meta: dict[str, Any],
    ranks: Ranks,
    init_from: Path | None = None,
    evals: Sequence[Every] = (),
    extra_metrics: Callable[[int], dict[str, float]] | None = None,
    at_checkpoint: Callable[[int], object] = lambda step: None,
) -> Summary:
    """Train `model` to `settings.schedule.steps` and leave the last checkpoint in `checkpoint_dir`.

    Begins from this stage's own newest whole checkpoint if there is one, else from the weights of `init_from`, else
    from the model as given (same on every rank). `meta` must hold "fingerprint" (everything that affects the result)
    and "tokenizer" (its hash); both are stored and checked. `batches(step)` gives this rank's micro-batches as a pure
    function of the step. `evals` and `extra_metrics` (figures to report along with a step's) run on the way, and
    `at_checkpoint` at every checkpoint but that of a stop, on all ranks.

    Raises StopRequested after saving when a stop was asked for, and UserError for a changed setting, another tokenizer,
    a full disk, or a loss that stays non-finite.
    """
    steps = settings.schedule.steps
    # A seed for whatever is random without saying so: nothing in training should be, and then it is at least the same.
    torch.manual_seed(0)
    model.to(ranks.device).train()
    settings = replace(settings, optimizer=replace(settings.optimizer, muon_dtype=settings.compute.dtype))
    fuse = settings.compute.compile and ranks.device.type == "cuda"
    optimizer: AnyOptimizer
    if ranks.world == 1:
        optimizer = build_optimizer(model, settings.optimizer, compiled=fuse)
    else:
        optimizer = ShardedOptimizer(model.param_groups(), settings.optimizer, ranks, compiled=fuse)
    ctx.phase("load")
    first, figures = begin(ctx, model, optimizer, settings, checkpoint_dir, meta, ranks, init_from)
    run = ForwardBackward(model, settings.compute, ctx.warning)
    warmup, planned = settings.schedule.warmup, settings.planned_tok_s
    meter = Meter(ctx, model, steps, ranks, run, extra_metrics, warmup=warmup, planned_tok_s=planned)
    meter.restore(figures)
    saver = Saver(ctx, model, optimizer, checkpoint_dir, meta, settings.keep, ranks, first, meter.figures)
    saver.score = figures.get("score")

    ctx.phase("compile" if settings.compute.compile and first < steps else "train")

    def save(step: int) -> None:
        saver.begin(step)
        at_checkpoint(step)

    def read(reading: Callable[[int], object], step: int) -> None:
        """What it returns (if a number: lower is better) is noted with the checkpoints that follow."""
        begun = time.monotonic()
        saver.read(reading(step))
        if time.monotonic() > begun + SIGN_S:
            ctx.phase("compile" if meter.compiling and step < steps else "train")

    idle = saver.idle if settings.save_every else None  # by the clock, and not while the one before is being written
    every = [
        *(replace(item, fn=partial(read, item.fn)) for item in evals),
        Every(0, saver.settle, at_end=False, when=saver.landed),
        Every(settings.save_steps, save, settings.save_every, at_end=False, when=idle),
    ]
    begun = time.perf_counter()
    try:
        with ahead(batches, first, steps, settings.ahead, ranks.device) as made:
            done = loop(
                run, optimizer, made, settings.schedule, ranks, first=first, last=steps, every=every,
                report=meter.report, stop=ctx.stop_requested, updated=model.weights_changed,
                patience=settings.patience,
            )  # fmt: skip
        stopped = done < steps
    except StopRequested as stop:  # in a reading
        done, stopped = stop.step, True
    except NotFinite as error:
        saver.settle()
        origin = where_not_finite(model, error.batches, ranks)
        kept = checkpoint.latest(checkpoint_dir)
        kept_text = f"{kept.name} is kept" if kept else "no checkpoint had been saved"
        raise UserError(
            f"{ctx.name}: {error}; {origin} ({kept_text}); "
            "lower the learning rate or set machine.precision to fp32, then resume"
        ) from error
    ctx.phase("save")
    info = saver.save(done)
    if stopped:
        raise StopRequested(done)
    at_checkpoint(done)
    return Summary(
        step=done,
        checkpoint=info.path,
        hash=info.hash,
        loss=meter.loss,
        tokens=meter.tokens,
        tok_s=meter.median_tok_s(),
        mfu=meter.mfu(meter.median_tok_s()),
        seconds=time.perf_counter() - begun,
        compile_seconds=run.compile_seconds if settings.compute.compile else 0.0,
        skipped=meter.skipped,
        resumed_from=first,
        peak_memory=peak_memory(ranks.device),
        spike=meter.watch.spike(),
    )


def begin(
    ctx: Context,
    model: GPT,
    optimizer: AnyOptimizer,
    settings: TrainSettings,
    folder: Path,
    meta: dict[str, Any],
    ranks: Ranks,
    init_from: Path | None,
) -> tuple[int, dict[str, Any]]:
    """Fill model and optimizer from where training should begin.

    Returns the number of steps already made, and the figures saved with them (at the start: the parent's loss).
    """
    # Rank 0 looks (and says what it passed over); the others take its word, or they might choose differently.
    if settings.fresh and ranks.rank == 0:
        checkpoint.clear(folder)
    own = ranks.share(checkpoint.latest(folder, ctx.warning) if ranks.rank == 0 else None)
    if own is not None:
        theirs = checkpoint.read_meta(own)
        if theirs.get("fingerprint") != meta["fingerprint"]:
            raise UserError(
                f"{ctx.name}: {own} was made with other settings or files: start over with --fresh, or put them back"
            )
        checkpoint.check_tokenizer(theirs, meta["tokenizer"], own)
        checkpoint.load(own, model, optimizer)
        step = int(theirs["step"])
        if step > settings.schedule.steps:
            raise UserError(f"{ctx.name}: {own} is past step {settings.schedule.steps}: start over with --fresh")
        ctx.resumed(step, ctx.relative(own))
        ctx.message(f"resuming at step {step} from {own.name}")
        return step, {**(theirs.get("figures") or {}), "score": theirs.get("score")}
    figures: dict[str, Any] = {}
    if init_from is not None:
        wrong = ranks.share(checkpoint.problem(init_from) if ranks.rank == 0 else None)
        if wrong:
            raise UserError(f"{ctx.name}: cannot start from {init_from}: {wrong}; run the stage before it again")
        theirs = checkpoint.read_meta(init_from)
        checkpoint.check_tokenizer(theirs, meta["tokenizer"], init_from)
        checkpoint.load(init_from, model, optimizer if settings.reuse_moments else None)
        last = theirs.get("figures") or {}
        figures = {"parent_loss": last.get("usual_loss", last.get("loss"))}
    ctx.resumed(0)  # what an earlier attempt reported and did not save, or was told to forget, is superseded
    return 0, figures
