"""Preflight: measure the machine, choose how to compute, and plan sizes and steps once."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import msgspec
import psutil
import torch

from picollm.data import own_text
from picollm.infer.engine import Engine
from picollm.infer.sampling import Sampling
from picollm.model.gpt import GPT
from picollm.run import plan
from picollm.run.config import Config
from picollm.run.errors import UserError
from picollm.run.folder import Plan, Run, plan_inputs, write_atomic
from picollm.run.launch import child_environment
from picollm.run.scaling import ModelShape, flops_per_token, num_params
from picollm.run.schema import DataConfig
from picollm.run.stage import Outcome, StageContext, main
from picollm.tasks import identity, make
from picollm.train.device import Ranks
from picollm.train.probe import Probe, probe
from picollm.train.session import start_ranks

REFERENCE_DEPTH = 4
TRIAL_S = 1.0
DECODE_TOKENS, PROMPT_TOKENS = 16, 40
PYDOCS_BYTES = 2_500_000
TRAINING_SHARE = 0.6
"""Share of the budget that is spent in training steps, to judge whether compiling pays."""
STATE_BYTES = 4 * 4
"""Per parameter in fp32: weight, gradient, two of optimizer state."""


def work(ctx: StageContext) -> Outcome:
    torch_s = ctx.seconds
    check_settings(ctx.run)
    ranks = start_ranks(ctx)
    wishes = ctx.run.wishes()
    kept = ctx.run.plan()
    if kept is not None and not ctx.fresh and msgspec.to_builtins(plan_inputs(wishes)) == kept.inputs:
        ctx.message("the plan was made before from the same wishes: it is kept")
        return _outcome(kept)
    ctx.message(f"torch {torch.__version__} on {ranks.device}, {torch.get_num_threads()} threads")
    measured = plan.Measured(
        light_s=_light_start(),
        torch_s=torch_s,
        train_flops_s=0.0,
        decode_flops_s=0.0,
        text_bytes=_source_bytes(wishes.data),
    )
    reference = plan.at_depth(wishes, wishes.model.depth or REFERENCE_DEPTH)
    ctx.phase("candidates")
    found = _probe(ctx, wishes, reference, ranks, compile="off")
    measured.train_flops_s = found.best.tok_s * flops_per_token(reference)
    ctx.raise_if_stopped()
    ctx.phase("decode")
    measured.decode_flops_s = _decode_rate(ctx, reference, ranks, wishes.rl.questions * wishes.rl.samples)
    measured.spent_s = ctx.seconds
    ctx.raise_if_stopped()
    chosen = plan.at_depth(wishes, plan.make_plan(wishes, measured).values["model.depth"])
    ctx.phase("compile")
    final = _probe(ctx, wishes, chosen, ranks, compile=wishes.machine.compile, only=found)
    measured.train_flops_s = final.best.tok_s * flops_per_token(chosen)
    measured.compiled = final.best.compute.compile
    best = final.best.compute
    name = f"{best.precision} {best.attention} {'compiled' if best.compile else 'eager'}"
    ctx.choice("compute", name, found.table() | final.table() | {"share of matrix peak": round(final.mfu, 3)})
    measured.spent_s = ctx.seconds
    fixed_depth = msgspec.structs.replace(wishes, model=msgspec.structs.replace(wishes.model, depth=chosen.depth))
    made = plan.make_plan(fixed_depth, measured)
    made.inputs = plan_inputs(wishes)
    made.choices = {
        "precision": best.precision,
        "attention": best.attention,
        "compile": "on" if best.compile else "off",
    }
    made.figures = {"compute": found.table() | final.table(), "peak_flops_s": final.peaks}
    made.notes = msgspec.to_builtins(measured)
    _check_room(ctx, wishes, chosen)
    write_atomic(ctx.run.dir / "plan.json", msgspec.json.format(msgspec.json.encode(made), indent=1))
    for name, seconds in made.seconds.items():
        print(f"{name:15} {seconds:7.1f} s")
    return _outcome(made)


def check_settings(run: Run) -> None:
    """What later stages would refuse, perhaps after hours of training. Raises `UserError` naming the setting."""
    wishes = run.wishes()
    for table, settings in (("midtrain", wishes.midtrain), ("sft", wishes.sft)):
        for name in settings.mixture:
            with _naming(f"{table}.mixture"):
                make(name)
        if settings.custom:
            with _naming(f"{table}.custom"):
                make("custom", path=Path(settings.custom).expanduser())
        elif not any(settings.mixture.values()):
            raise UserError(f"{table}.mixture is empty: give it tasks, or set {table}.custom")
    with _naming("rl.task"):
        make(wishes.rl.task)
    if wishes.identity.file:
        with _naming("identity.file"):
            identity.verify(Path(wishes.identity.file).expanduser())
    if wishes.rl.max_tokens >= wishes.model.seq_len:
        raise UserError(
            f"rl.max_tokens is {wishes.rl.max_tokens} and model.seq_len {wishes.model.seq_len}: "
            "no room for a question; lower rl.max_tokens"
        )
    with _naming("chat.prompts"):
        run.prompts()


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


def _source_bytes(data: DataConfig) -> int:
    """Size of the files that will be read, near enough to predict how long reading takes."""
    if data.source == "pydocs":
        return PYDOCS_BYTES
    if data.source in plan.HUB_SHARDS:
        return data.shards * plan.SHARD_CHARACTERS
    return sum(file.stat().st_size for file in own_text.files(Path(data.source).expanduser(), own_text.Counts()))


def _probe(
    ctx: StageContext, wishes: Config, shape: ModelShape, ranks: Ranks, *, compile: str, only: Probe | None = None
) -> Probe:
    """Candidates that the settings leave open, each run for a moment on a quarter of the rows.

    `only` narrows them to an earlier best, which is timed on all rows and then compiled.
    """
    machine = wishes.machine
    precision: str = machine.precision
    attention: str = machine.attention
    if only is not None:
        precision, attention = only.best.compute.precision, only.best.compute.attention
    try:
        return probe(
            shape,
            wishes.pretrain.rows if only else max(1, wishes.pretrain.rows // 4),
            TRIAL_S,
            device=ranks.device,
            planned_s=TRAINING_SHARE * 60 * wishes.run.minutes,
            precisions=("fp32", "bf16") if precision == "auto" else (precision,),
            attentions=("explicit", "sdpa") if attention == "auto" else (attention,),
            compile=compile,
            warn=ctx.warning,
            say=ctx.message,
        )
    except RuntimeError as error:
        raise UserError(
            f"preflight: {error}; set machine.device, precision or attention to something that works"
        ) from None


def _decode_rate(ctx: StageContext, shape: ModelShape, ranks: Ranks, rows: int) -> float:
    """Model FLOP/s of sampling `rows` answers at once, as RL does; random weights cost the same as trained ones."""
    model = GPT(shape).to(ranks.device)
    model.init_weights(0)
    ids = SimpleNamespace(
        vocab_size=shape.vocab_size,
        bos_id=shape.vocab_size,  # out of reach: no answer ends early
        special=lambda name: shape.vocab_size,
        is_special=lambda token: False,
        encode=lambda text: [0],
        decode=lambda ids: "",
        decode_bytes=lambda ids: b"x",
    )
    engine = Engine(model, ids)
    prompts: Sequence[list[int]] = [[(7 * row + 3 * at) % 200 for at in range(PROMPT_TOKENS)] for row in range(rows)]
    sampling = Sampling(max_tokens=DECODE_TOKENS, temperature=1.0, top_k=50)
    engine.generate(prompts, sampling)
    begun = time.monotonic()
    engine.generate(prompts, sampling)
    rate = rows * DECODE_TOKENS / (time.monotonic() - begun)
    ctx.choice("decoding", str(engine.dtype).removeprefix("torch."), {"rows": rows, "tok_s": round(rate, 1)})
    return rate * flops_per_token(shape)


def _check_room(ctx: StageContext, wishes: Config, shape: ModelShape) -> None:
    """Memory for training and disk for the checkpoints. Raises `UserError` when either cannot be enough."""
    params = num_params(shape)["total"]
    activations = 40 * wishes.pretrain.rows * shape.seq_len * shape.dim * shape.depth * 4
    logits = 4 * 1024 * shape.padded_vocab * 4
    memory, free = STATE_BYTES * params + activations + logits, psutil.virtual_memory().available
    status = "ok" if memory < 0.8 * free else "fail"
    fix = "make model.depth or pretrain.rows smaller"
    ctx.check("training memory", status, f"{memory / 2**30:.2f} GiB of {free / 2**30:.1f} GiB free", "< 80 %", fix)
    disk, free_disk = 4 * 3 * 3 * 4 * params, shutil.disk_usage(ctx.run.dir).free
    disk_status = "ok" if disk < free_disk else "fail"
    ctx.check("checkpoint disk", disk_status, f"{disk / 2**30:.2f} GiB of {free_disk / 2**30:.1f} GiB free", "", fix)
    if "fail" in (status, disk_status):
        raise UserError(
            f"preflight: training needs {memory / 2**30:.1f} GiB of memory ({free / 2**30:.1f} free) "
            f"and {disk / 2**30:.1f} GiB of disk ({free_disk / 2**30:.1f} free); {fix}"
        )


if __name__ == "__main__":
    main("preflight", work)
