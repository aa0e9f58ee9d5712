"""What a run takes, before it is started: parameters, tokens, FLOPs, memory, disk, time, money.

From the settings and a plan, which is either the one that preflight measured or, with `assumed`, one for a machine that
is not here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import msgspec

from picollm.run import gpus, memory, plan, scaling
from picollm.run.config import Config
from picollm.run.errors import UserError
from picollm.run.folder import ACTIVE, StageStatus
from picollm.run.planned import Plan, apply_plan

ALL_KEPT = 10
"""Checkpoints counted for each stage where `machine.keep_last = 0` keeps every one."""
LIGHT_S, TORCH_S = 0.15, 4.0
"""Until a process does its first work on a rented machine, without and with torch."""
DECODE_SHARE = 0.2
"""Assumed of the bandwidth when sampling: every token of every row waits for the weights, read once a step in bf16."""
RENDERED_FROM, CONVERSATION_BYTES = 20_000, 24
"""Examples of a task from which on they are kept rendered, and bytes of each besides its tokens (see
`picollm.tasks.conversations`)."""
POCKET_BYTES = 2_500_000
"""The documentation that Python carries."""


class Estimate(msgspec.Struct, kw_only=True):
    """What a run takes. Memory is per rank, in bytes, by part, with its "total"; so is disk, of the whole run.

    params: by optimizer group, "total" and "scaling" (the N of the rules). steps, tokens: by training stage (RL's
    tokens are those it samples and trains on). rates: learning rates of pretraining by group, and the decay. epochs:
    passes of pretraining through the text. flops: all training. eta_s: wall clock from start to report, stages that
    overlap counted once. cost: dollars, None without a price.
    """

    machine: str
    shape: scaling.ModelShape
    params: dict[str, int]
    steps: dict[str, int]
    tokens: dict[str, int]
    rows: dict[str, int]
    rates: dict[str, float]
    micro_batches: int
    epochs: float
    flops: float
    flops_per_token: float
    tok_s: float
    how: memory.How
    memory: dict[str, int]
    free: int
    disk: dict[str, int]
    seconds: dict[str, float]
    eta_s: float
    cost: float | None = None
    note: str = ""


def assumed(config: Config, name: str, count: int, price: float | None = None) -> Estimate:
    """For `count` GPUs of the kind `name`, from the table in `picollm.run.gpus`.

    Raises `UserError` for a kind that is not there, settings that leave too much open, or a model that does not fit.
    """
    gpu = gpus.gpu(name)
    if count < 1:
        raise UserError(f"--count is {count}: give the number of GPUs, 1 or more")
    attention = "explicit" if gpu.device == "cpu" and config.model.seq_len <= 512 else "sdpa"
    how = memory.How(
        device=gpu.device,
        precision=config.machine.precision if config.machine.precision != "auto" else gpu.precision,
        attention=attention if config.machine.attention == "auto" else config.machine.attention,
        world=count,
    )

    def measured(dim: int) -> plan.Measured:
        wide = plan.at_depth(config, config.model.depth or max(1, dim // 64))
        answers = config.rl.questions * config.rl.samples
        streamed = DECODE_SHARE * answers * gpu.bandwidth / (2 * scaling.num_params(wide)["scaling"])
        share = gpus.mfu(gpu, dim) * (gpus.FP8_SPEEDUP if gpus.pays_fp8(gpu, dim, config.machine.fp8) else 1.0)
        train = count * gpu.flops * share
        return plan.Measured(
            light_s=LIGHT_S,
            torch_s=TORCH_S,
            compiled=config.machine.compile != "off",
            train_flops_s=train,
            decode_flops_s=min(train, streamed * scaling.flops_per_token(wide)),
            text_bytes=text_bytes(config),
            world=count,
            memory_bytes=gpu.memory,
            step_overhead=1.0,  # the table's shares are of whole runs
        )

    # The speed depends on the width and the width, in a budget, on the speed: two rounds settle it.
    found = measured(config.model.dim or 64 * (config.model.depth or plan.SHALLOWEST))
    first = plan.make_plan(config, found, how)
    found = measured(first.values["model.dim"])
    made = plan.make_plan(config, found, how)
    fp8 = gpus.pays_fp8(gpu, made.values["model.dim"], config.machine.fp8)
    how = msgspec.structs.replace(how, fp8=fp8, checkpointing=made.choices["checkpointing"] == "on")
    price = gpu.price if price is None else price
    note = f"{gpus.mfu(gpu, made.values['model.dim']):.0%} of {gpu.flops / 1e12:,.0f} TFLOP/s ({gpu.source})"
    return estimate(
        config, made, found, how, machine=f"{count} × {name.lower()}", price=price * count, note=note + fp8 * ", fp8"
    )


def estimate(
    wishes: Config,
    made: Plan,
    measured: plan.Measured,
    how: memory.How,
    *,
    machine: str,
    price: float | None = None,
    note: str = "",
) -> Estimate:
    """From a plan. `price`: dollars per hour of the whole machine."""
    config = apply_plan(wishes, made)
    shape = plan.shape(config)
    per_token = scaling.flops_per_token(shape)
    counts = scaling.num_params(shape)
    steps = {name: getattr(config, name).steps for name in plan.TRAINED}
    rows = {name: getattr(config, name).rows for name in ("pretrain", "midtrain", "sft")}
    tokens = {name: steps[name] * count * shape.seq_len for name, count in rows.items()}
    answers = config.rl.questions * config.rl.samples
    tokens["rl"] = round(steps["rl"] * answers * plan.ANSWER_SHARE * config.rl.max_tokens)
    text_tokens = measured.text_bytes / plan.bytes_per_token(config.tokenizer.vocab_size)
    eta = eta_seconds(config, made.seconds)
    at_once = config.machine.device_rows
    most = -(-config.pretrain.rows // how.world)
    return Estimate(
        machine=machine,
        shape=shape,
        params=counts,
        steps=steps,
        tokens=tokens,
        rows=rows | {"device": at_once},
        rates=plan.learning_rates(config, shape),
        micro_batches=-(-most // min(at_once, most)),
        epochs=tokens["pretrain"] / text_tokens if text_tokens else 0.0,
        flops=per_token * sum(tokens.values()),
        flops_per_token=per_token,
        tok_s=measured.train_flops_s / measured.step_overhead / per_token,
        how=how,
        memory=memory.step_bytes(shape, at_once, how),
        free=measured.memory_bytes,
        disk=disk(config, shape, measured.text_bytes),
        seconds=made.seconds,
        eta_s=eta,
        cost=None if not price else price * eta / 3600,
        note=note,
    )


def text_bytes(config: Config) -> int:
    """Bytes of text that a source from the Hub will bring, or the documentation has; 0 for a person's own."""
    if config.data.source in plan.HUB_SHARDS:
        return config.data.shards * plan.SHARD_CHARACTERS
    return POCKET_BYTES if config.data.source == "pydocs" else 0


def disk(config: Config, shape: scaling.ModelShape, text: int) -> dict[str, int]:
    """Bytes that the run needs on disk, by part, with "total". `text`: bytes of training text."""
    kept = text
    if config.data.source in plan.HUB_SHARDS:
        # Also without `data.keep_text`: downloads may be far ahead of the encoding after which a file goes.
        kept = (config.data.shards + 1) * plan.SHARD_BYTES
    tokens = text / plan.bytes_per_token(config.tokenizer.vocab_size)
    checkpoints = (config.machine.keep_last or ALL_KEPT) + config.machine.keep_best
    parts = {"tokens": tokens, "bytes": kept, "conversations": conversation_bytes(config)}
    return memory.disk_bytes(shape, checkpoints, len(plan.TRAINED), parts)


def conversation_bytes(config: Config) -> int:
    """Of the rendered conversations that are kept: 2 bytes a token with a vocabulary of up to 32,768, else 4."""
    width = 2 if config.tokenizer.vocab_size <= 1 << 15 else 4
    found = 0
    for name, count in (*config.midtrain.mixture.items(), *config.sft.mixture.items()):
        if count >= RENDERED_FROM:
            each = plan.TASK_EXAMPLE_TOKENS.get(name.partition(":")[0], plan.EXAMPLE_TOKENS)
            found += count * (width * min(each, config.model.seq_len) + CONVERSATION_BYTES)
    return found


def left_seconds(config: Config, statuses: Iterable[StageStatus], queue: Collection[str] | None = None) -> float | None:
    """Wall clock still to go, by the pace of what runs and the predictions for what has not begun; None before anybody
    can tell. `queue`: the stages that were asked for, where not all that are left were."""
    found = {status.name: status for status in statuses}
    left: dict[str, float | None] = {}
    for name, one in found.items():
        if one.state in ACTIVE:
            left[name] = one.eta or 0.0
        elif one.state in ("done", "skipped") or (queue is not None and name not in queue):
            left[name] = 0.0
        else:
            left[name] = one.eta if one.eta is not None else one.predicted_s
    seconds = {name: value for name, value in left.items() if value is not None}
    if len(seconds) < len(left):
        return None
    return eta_seconds(config, seconds, begun="pretrain" in found and found["pretrain"].state in ACTIVE)


def eta_seconds(config: Config, seconds: dict[str, float], begun: bool = False) -> float:
    """Wall clock of all stages. From the Hub, training begins with the first files while the rest arrive; `begun`: it
    has."""
    total = sum(seconds.values())
    if config.data.source not in plan.HUB_SHARDS:
        return total
    preparing = seconds["dataset"] + seconds["tokenizer"]
    first = 0.0 if begun else preparing * min(1.0, (config.data.first_shards + 1) / (config.data.shards + 1))
    return total - preparing + first + max(0.0, preparing - first - seconds["pretrain"])
