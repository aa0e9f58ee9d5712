"""Preflight: measure the machine, choose how to compute, and plan sizes and steps once."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import torch

from picollm.data import own_text
from picollm.infer.engine import Engine
from picollm.infer.rows import Mute
from picollm.infer.sampling import Sampling
from picollm.model.gpt import GPT
from picollm.run import estimate, memory, plan
from picollm.run.config import Config
from picollm.run.errors import StopRequested, UserError
from picollm.run.folder import Run, write_atomic
from picollm.run.launch import child_environment
from picollm.run.planned import Plan, apply_plan, plan_inputs
from picollm.run.scaling import ModelShape, flops_per_token
from picollm.run.stage import Outcome, StageContext, main
from picollm.tasks import Task, identity, make, mirror
from picollm.tasks.hub_task import HubTask
from picollm.train.device import Ranks
from picollm.train.dry_run import dry_run, free_memory, out_of_memory
from picollm.train.exchange import exchange_check
from picollm.train.probe import Probe, probe
from picollm.train.session import start_ranks
from picollm.train.step import Compute

REFERENCE_DEPTH = 4
PROBE_DEPTH = 4
"""Layers are alike: a few tell which way is the fastest, and they fit where all of them would not."""
TRIAL_S = 1.0
DECODE_TOKENS, PROMPT_TOKENS = 16, 40
TRAINING_SHARE = 0.6
"""Share of the budget that is spent in training steps, to judge whether compiling pays."""


def work(ctx: StageContext) -> Outcome:
    torch_s = ctx.seconds
    check_settings(ctx.run)
    ranks = start_ranks(ctx)
    wishes = ctx.run.wishes()
    kept = ctx.run.plan()
    if kept is not None and not ctx.fresh and msgspec.to_builtins(plan_inputs(wishes)) == kept.inputs:
        ctx.message("the plan was made before from the same wishes: it is kept")
        ranks.close()
        return _outcome(kept)
    ctx.message(f"torch {torch.__version__} on {ranks.device}, {torch.get_num_threads()} threads, {ranks.world} ranks")
    found: dict[str, dict[str, float]] = {}
    if ranks.world > 1:
        ctx.phase("exchange")
        found["exchange"] = exchange_check(ranks)
        ctx.message("exchange: " + ", ".join(f"{key} {figure:,.1f}" for key, figure in found["exchange"].items()))
    measured = plan.Measured(
        light_s=ranks.share(_light_start() if ranks.rank == 0 else 0.0),
        torch_s=ranks.share(torch_s),
        train_flops_s=0.0,
        decode_flops_s=0.0,
        text_bytes=_source_bytes(wishes),
        world=ranks.world,
        memory_bytes=free_memory(ranks),
        step_overhead=plan.STEP_OVERHEAD if ranks.device.type == "cpu" else plan.GPU_OVERHEAD,
    )

    ctx.phase("candidates")
    reference = _shallow(plan.at_depth(wishes, wishes.model.depth or REFERENCE_DEPTH))
    wanted = plan.rank_rows(wishes, plan.batch_rows(wishes, reference), ranks.world)
    some = plan.device_rows(wishes, measured, reference, max(1, wanted // 4), _how(wishes, ranks, None))[0]
    candidates = _probe(ctx, wishes, reference, ranks, some, compile="off")
    measured.train_flops_s = ranks.world * candidates.best.tok_s * flops_per_token(reference)
    _leave_if_stopped(ctx, ranks)

    ctx.phase("decode")
    measured.decode_flops_s = _decode_rate(ctx, reference, ranks, wishes.rl.questions * wishes.rl.samples)
    measured.spent_s = ranks.share(ctx.seconds)
    _leave_if_stopped(ctx, ranks)

    first = plan.make_plan(wishes, measured, _how(wishes, ranks, candidates.best.compute))
    resolved = apply_plan(wishes, first)
    chosen = plan.shape(resolved)
    ctx.phase("compile")
    rows = resolved.machine.device_rows
    final = _probe(
        ctx, wishes, _shallow(chosen), ranks, rows, compile=wishes.machine.compile, only=candidates, made=first
    )
    best = replace(final.best.compute, checkpointing=first.choices["checkpointing"] == "on")
    found["compute"] = candidates.table() | final.table()
    ctx.choice("attention", best.attention, final.attention_ms() | candidates.attention_ms())
    ctx.choice("compute", final.best.name, found["compute"] | {"share of matrix peak": round(final.mfu, 3)})
    _leave_if_stopped(ctx, ranks)

    ctx.phase("dry run")
    done = dry_run(
        chosen, best, ranks, step_rows=resolved.pretrain.rows, rows=rows, seconds=TRIAL_S / 2,
        may_checkpoint=wishes.machine.checkpointing == "auto", warn=ctx.warning,
    )  # fmt: skip
    best = done.compute
    how = _how(wishes, ranks, best)
    found["rows"] = {"planned": float(rows), "worked": float(done.rows)}
    found["dry run"] = {
        "tok_s": round(done.tok_s, 1), "step_s": done.step_s, "exchange_s": done.exchange_s,
        "memory": float(done.memory), "memory predicted": float(memory.step_bytes(chosen, done.rows, how)["total"]),
    }  # fmt: skip
    ctx.choice("rows at a time", str(done.rows), found["rows"] | found["dry run"])

    measured.train_flops_s = done.tok_s * flops_per_token(chosen)
    measured.compiled = best.compile
    measured.spent_s = ranks.share(ctx.seconds)
    fixed = msgspec.structs.replace(wishes, model=msgspec.structs.replace(wishes.model, depth=chosen.depth))
    made = plan.make_plan(fixed, measured, how)
    made.values["machine.device_rows"] = done.rows
    made.inputs = plan_inputs(wishes)
    made.choices = {
        "precision": best.precision,
        "attention": best.attention,
        **{knob: "on" if getattr(best, knob) else "off" for knob in ("compile", "fp8", "checkpointing")},
    }
    made.figures = found | {"peak_flops_s": final.peaks}
    made.notes = msgspec.to_builtins(measured) | {"device": ranks.device.type}
    _check_room(ctx, apply_plan(wishes, made), made, measured)
    ranks.close()
    if ranks.rank == 0:
        write_atomic(ctx.run.dir / "plan.json", msgspec.json.format(msgspec.json.encode(made), indent=1))
        for name, seconds in made.seconds.items():
            print(f"{name:15} {seconds:7.1f} s")
    return _outcome(made)


def _leave_if_stopped(ctx: StageContext, ranks: Ranks) -> None:
    if ranks.any(ctx.stop_requested()):
        raise StopRequested()


def _how(wishes: Config, ranks: Ranks, best: Compute | None) -> memory.How:
    """What the memory of a step depends on; before anything was chosen, the thriftiest of what may be."""
    compute = best or Compute("bf16" if wishes.machine.precision == "auto" else wishes.machine.precision, "sdpa")
    return memory.How(
        device=ranks.device.type,
        precision=compute.precision,
        attention=compute.attention,
        fp8=compute.fp8,
        checkpointing=compute.checkpointing,
        world=ranks.world,
    )


def check_settings(run: Run) -> None:
    """What later stages would refuse, perhaps after hours of training. Raises `UserError` naming the setting."""
    wishes = run.wishes()
    plan.check(wishes)
    for table, settings in (("midtrain", wishes.midtrain), ("sft", wishes.sft)):
        for name in (name for name, count in settings.mixture.items() if count):
            with _naming(f"{table}.mixture"):
                _trainable(name)
        if settings.custom:
            with _naming(f"{table}.custom"):
                make("custom", path=Path(settings.custom).expanduser())
        elif not any(settings.mixture.values()):
            raise UserError(f"{table}.mixture is empty: give it tasks, or set {table}.custom")
    with _naming("rl.task"):
        if reason := _trainable(wishes.rl.task).unavailable():
            raise UserError(f"'{wishes.rl.task}' cannot be judged on this machine: {reason}")
    for name in wishes.chat_eval.tasks:
        with _naming("chat_eval.tasks"):
            make(name)
    with _naming("identity.file" if wishes.identity.file else "identity"):
        identity.fitting(wishes.identity)
        if wishes.identity.file:
            identity.verify(mirror.local(wishes.identity.file))
    if wishes.rl.max_tokens >= wishes.model.seq_len:
        raise UserError(
            f"rl.max_tokens is {wishes.rl.max_tokens} and model.seq_len {wishes.model.seq_len}: "
            "no room for a question; lower rl.max_tokens"
        )
    with _naming("chat.prompts"):
        run.prompts()


def _trainable(name: str) -> Task:
    """The task. Raises `UserError` when it is published for evaluation only."""
    task = make(name)
    if isinstance(task, HubTask) and "train" not in task.splits():
        raise UserError(f"task '{name}' has no training examples; ask it in chat_eval.tasks")
    return task


@contextlib.contextmanager
def _naming(key: str) -> Iterator[None]:
    """Say which setting an error is about."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{key}: {error}") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UserError(f"{key}: the file cannot be read ({reason}); choose another one") from None


def _outcome(made: Plan) -> Outcome:
    return Outcome(paths={"plan": "plan.json"}, summary={**made.values, **made.choices, "seconds": made.seconds})


def _light_start() -> float:
    """Seconds that a process takes which loads the contract and no torch: a measure of the machine's plain speed."""
    begun = time.monotonic()
    subprocess.run([sys.executable, "-c", "import picollm.run.stage"], check=True, env=child_environment())
    return time.monotonic() - begun


def _source_bytes(wishes: Config) -> int:
    """Size of the text that will be read, near enough to predict how long reading takes."""
    source = wishes.data.source
    if source == "pydocs" or source in plan.HUB_SHARDS:
        return estimate.text_bytes(wishes)
    return sum(file.stat().st_size for file in own_text.files(Path(source).expanduser(), own_text.Counts()))


def _probe(
    ctx: StageContext,
    wishes: Config,
    shape: ModelShape,
    ranks: Ranks,
    rows: int,
    *,
    compile: str,
    only: Probe | None = None,
    made: Plan | None = None,
) -> Probe:
    """Candidates that the settings leave open, each run for a moment on `rows` rows, by all ranks at once; rank 0's.

    `only` narrows them to an earlier best, which is timed at the planned rows and then compiled, if that pays in
    what `made` plans.
    """
    machine = wishes.machine
    precision: str = machine.precision
    attention: str = machine.attention
    if only is not None:
        precision, attention = only.best.compute.precision, only.best.compute.attention
    planned_s = TRAINING_SHARE * 60 * wishes.run.minutes
    if made is not None and not wishes.run.minutes:
        planned_s = sum(made.seconds[name] for name in plan.TRAINED)
    while True:
        try:
            found = probe(
                shape,
                rows,
                TRIAL_S,
                device=ranks.device,
                planned_s=planned_s,
                precisions=() if precision == "auto" else (precision,),
                attentions=() if attention == "auto" else (attention,),
                compile=compile,
                fp8="off" if only is None else machine.fp8,
                warn=ctx.warning,
                say=ctx.message,
            )
            return ranks.share(found)
        except RuntimeError as error:
            if out_of_memory(error) and rows > 1:
                rows = -(-rows // 2)
                continue
            raise UserError(
                f"preflight: {error}; set machine.device, precision or attention to something that works"
            ) from None


def _shallow(shape: ModelShape) -> ModelShape:
    return msgspec.structs.replace(shape, depth=min(shape.depth, PROBE_DEPTH))


def _decode_rate(ctx: StageContext, shape: ModelShape, ranks: Ranks, all_rows: int) -> float:
    """Model FLOP/s of all ranks sampling their share of `all_rows` answers at once, as RL does.

    Random weights cost the same as trained ones.
    """
    rows = -(-all_rows // ranks.world)
    model = GPT(shape).to(ranks.device)
    model.init_weights(0)
    engine = Engine(model, Mute(shape.vocab_size))
    prompts: Sequence[list[int]] = [[(7 * row + 3 * at) % 200 for at in range(PROMPT_TOKENS)] for row in range(rows)]
    sampling = Sampling(max_tokens=DECODE_TOKENS, temperature=1.0, top_k=50)
    engine.generate(prompts, sampling)
    begun = time.monotonic()
    engine.generate(prompts, sampling)
    rate = sum(ranks.gather(rows * DECODE_TOKENS / (time.monotonic() - begun)))
    ctx.choice("decoding", str(engine.dtype).removeprefix("torch."), {"rows": all_rows, "tok_s": round(rate, 1)})
    return rate * flops_per_token(shape)


def _check_room(ctx: StageContext, resolved: Config, made: Plan, measured: plan.Measured) -> None:
    """Disk for checkpoints, shards and text. Raises `UserError` when it cannot be enough. The memory was tried."""
    figures, free = made.figures["dry run"], shutil.disk_usage(ctx.run.dir).free
    found = f"{figures['memory'] / memory.GIB:.2f} GiB at most, {resolved.machine.device_rows} rows at a time"
    ctx.check("training memory", "ok", found, f"{measured.memory_bytes / memory.GIB:.1f} GiB were free")
    disk = estimate.disk(resolved, plan.shape(resolved), measured.text_bytes)
    parts = ", ".join(f"{name} {count / memory.GIB:.1f}" for name, count in disk.items() if name != "total")
    enough = disk["total"] < free
    said = f"{disk['total'] / memory.GIB:.1f} GiB ({parts}) of {free / memory.GIB:.1f} GiB free"
    fix = "" if enough else "free space, set PICOLLM_RUNS and PICOLLM_HOME to another disk, or make model.depth smaller"
    ctx.check("disk", "ok" if enough else "fail", said, "", fix)
    if not enough:
        raise UserError(f"preflight: the run needs {said}; {fix}")


if __name__ == "__main__":
    main("preflight", work)
