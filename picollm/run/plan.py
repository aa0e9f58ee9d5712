"""The plan: sizes, steps and seconds of every stage, from what was measured, before anything is spent.

Pure arithmetic over `Measured`; `stages/preflight` measures and calls `make_plan`, `picollm.run.estimate` calls it for
a machine that is not here. Sizes come about in one of two ways:

- with a budget (`run.minutes`) it pays for the fixed work first, and what is left is shared among the four training
  stages;
- without one everything follows from `model.depth`: pretraining sees `pretrain.ratio` tokens per scaling parameter,
  midtraining and SFT pass once through their mixture.
"""

from __future__ import annotations

import math
from pathlib import Path

import msgspec

from picollm.run import memory, pipeline, scaling
from picollm.run.config import Config
from picollm.run.errors import UserError
from picollm.run.planned import Plan, plan_inputs
from picollm.run.structs import complete

TRAINED = tuple(pipeline.MODEL_STAGES.values())
"""The four stages whose steps are planned."""
SMALLEST_STEPS = {"pretrain": 20, "midtrain": 10, "sft": 20, "rl": 4}
RL_QUESTIONS = 8000
"""As many questions RL is planned to ask at most, about one pass through the largest published set (GSM8K's 7,473)."""
SHALLOWEST, DEEPEST = 2, 12
TOKENS_PER_PARAMETER = 0.5
"""Minutes of training are worth a deeper model from about this many tokens per scaling parameter (docs/log.md)."""
DEFAULT_RATIO = 12.0

# What stages without training cost, in starts of a light process (Measured.light_s), which follows the machine's speed.
LIGHT_WORK = {"doctor": 1.4, "identity": 2.2, "tokenizer_eval": 2.2, "report": 1.2}
READ_STARTS_PER_MB = 4.8
LEARN_STARTS_PER_MB = 2.4
EVAL_TASKS, EVAL_PROMPTS, TASK_TOKENS = 7, 9, 48
CORE_TASKS, CORE_ITEMS, CORE_TOKENS = 22, 3700, 800  # items of a task and tokens read for one, on average
MIX_S_PER_START = 20.0
"""Reading the documentation and rendering a mixture, in light starts."""
LOAD_SHARE = 0.5
"""Ranks, model, optimizer and checkpoint, as a multiple of the time that loading torch takes."""
WARM_SHARE = 1.2
"""Tracing a graph that the compile cache holds, likewise."""
STEP_OVERHEAD = 1.25
"""A step in the loop (batches, events, the app drawing beside it) against one measured alone, on a CPU."""
GPU_OVERHEAD = 1.05
"""The same where the CPU has only this to do (assumed)."""
EVAL_BATCHES = 4
"""One validation reading during pretraining, in steps' worth of rows (see stages/pretrain)."""
CHAT_READING = 256
"""Conversations in one during midtraining and SFT (see `picollm.train.readings`)."""
ANSWER_SHARE = 0.65
"""Sampling costs this share of all the tokens allowed: a batch goes on until its longest answer ends."""
TEACHING_SHARE, PROMPT_TOKENS, PASS_SAMPLES = 0.4, 40, 8
"""RL: share of the answers that are trained on, length of a question, answers to one question for pass@k."""

HUB_SHARDS = {"climbmix": 6543, "fineweb-edu": 1823}
"""Files of the Hub sources (see `picollm.data.hub`)."""
SHARD_BYTES, SHARD_CHARACTERS = 100_000_000, 250_000_000
DOWNLOAD_BYTES_S, ENCODE_CHARACTERS_S = 50e6, 20e6
"""Assumed of a rented machine: 400 Mbit/s, and all its cores encoding."""
LEARN_S = 60.0
"""Learning the merges of a large vocabulary on the first shard."""
EXAMPLE_TOKENS = 48
"""A conversation of the built-in tasks (between 20, arithmetic, and 90, docs_qa)."""
TASK_EXAMPLE_TOKENS = {"smoltalk": 750, "mmlu": 375, "gsm8k": 220, "spelling_bee": 130}
"""Those of the larger ones: the bytes of their files at about 4.3 bytes a token."""


@complete
class Measured(msgspec.Struct, kw_only=True):
    """What preflight found out. Rates are of the whole machine, all ranks together.

    light_s, torch_s: seconds until a stage process does its first work, without and with torch.
    compiled: training code comes from the compile cache.
    train_flops_s, decode_flops_s: model FLOP/s (`scaling.flops_per_token` × tokens/s) of whole optimizer steps, and of
    sampling in batches. text_bytes: size of the text. spent_s: seconds already gone. world: ranks.
    memory_bytes: free for each rank (0: not known, and then all its rows are planned at once). step_overhead: a step
    in the loop against one measured alone.
    """

    light_s: float
    torch_s: float
    compiled: bool = False
    train_flops_s: float
    decode_flops_s: float
    text_bytes: int
    spent_s: float = 0.0
    world: int = 1
    memory_bytes: int = 0
    step_overhead: float = STEP_OVERHEAD


def shape(config: Config, vocab_size: int | None = None) -> scaling.ModelShape:
    """The model's shape from resolved settings and the tokenizer's real size (by default the one asked for).

    Raises `UserError` when sizes do not fit together or are unplanned.
    """
    model = config.model
    if not model.depth:
        raise UserError("model.depth is not planned yet: run preflight first, or set it")
    return scaling.shape_for(
        model.depth,
        vocab_size or config.tokenizer.vocab_size,
        model.seq_len,
        dim=model.dim or None,
        head_dim=model.head_dim,
        window_pattern=model.window_pattern,
        value_embeds=model.value_embeds,
        smear=model.smear,
        backout=model.backout,
    )


def at_depth(config: Config, depth: int) -> scaling.ModelShape:
    """The shape these settings would have at `depth`."""
    return shape(msgspec.structs.replace(config, model=msgspec.structs.replace(config.model, depth=depth)))


def batch_rows(config: Config, chosen: scaling.ModelShape) -> int:
    """Rows of one pretraining step over all ranks: as set, else by the batch rule (`scaling.batch_tokens`)."""
    return config.pretrain.rows or max(1, round(scaling.batch_tokens(chosen) / chosen.seq_len))


def learning_rates(config: Config, chosen: scaling.ModelShape) -> dict[str, float]:
    """The full learning rate of every optimizer group in pretraining, and Muon's "weight decay".

    As set, AdamW's tables by width, and with `pretrain.scale_lr` all by batch, the decay by batch and horizon.
    """
    knobs, batch = config.pretrain, None
    decay = knobs.weight_decay
    if knobs.scale_lr:
        batch = batch_rows(config, chosen) * chosen.seq_len
        decay = scaling.muon_weight_decay(chosen, batch, decay)
    base = {
        "matrices": knobs.matrix_lr,
        "wte": knobs.embedding_lr,
        "value_embeds": knobs.value_lr,
        "lm_head": knobs.unembedding_lr,
        "x0": knobs.scalar_lr,
        "resid": knobs.scalar_lr / 100,
    }
    scales = scaling.lr_scales(chosen.dim, batch)
    return {name: lr * scales[name] for name, lr in base.items()} | {"weight decay": decay}


def bytes_per_token(vocab_size: int) -> float:
    """Bytes of English that a token stands for, near enough to plan with: 3.5 at 4,096 ids, 4.7 at 32,768."""
    return 3.5 + 0.4 * max(0.0, math.log2(vocab_size / 4096))


def mixture_tokens(config: Config, table: str) -> float:
    """Tokens of one pass through a stage's mixture, estimated from its counts and the size of the person's own file."""
    settings = getattr(config, table)
    own = Path(settings.custom).expanduser() if settings.custom else None
    own_bytes = own.stat().st_size if own is not None and own.exists() else 0
    tokens = 0
    for name, count in settings.mixture.items():
        each = TASK_EXAMPLE_TOKENS.get(name.partition(":")[0], EXAMPLE_TOKENS)
        tokens += count * min(each, config.model.seq_len)
    return tokens + own_bytes / bytes_per_token(config.tokenizer.vocab_size)


def check(config: Config) -> None:
    """Raises `UserError` when the settings leave something open that nothing decides."""
    if config.run.minutes:
        return
    if not config.model.depth:
        raise UserError("model.depth and run.minutes are both 0: set the depth, or the minutes it should fit")
    if not config.rl.steps:
        raise UserError("rl.steps and run.minutes are both 0: set rl.steps, since no rule gives its length")


def make_plan(config: Config, measured: Measured, how: memory.How | None = None) -> Plan:
    """Fill in every 0 and predict every stage's seconds; what the person set is kept.

    `how` decides the memory of a step; its `checkpointing` is what `machine.checkpointing` leaves to "auto".
    Raises `UserError` when the settings leave too much open, or when no row fits the memory.
    """
    check(config)
    depth = config.model.depth or _depth(config, measured)
    chosen = at_depth(config, depth)
    step_s = _step_seconds(config, measured, chosen)
    start = _start_seconds(measured)
    if config.run.minutes:
        readings_s = shares(config)["pretrain"] * 60 * config.run.minutes
        seconds = _fixed_seconds(config, measured, chosen, readings_s)
        left = _left(config, measured, seconds, start)
        steps = _affordable(config, left, step_s)
        if config.pretrain.ratio:
            steps["pretrain"] = _horizon_steps(config, chosen)
    else:
        steps = {"pretrain": _horizon_steps(config, chosen), "rl": config.rl.steps}
        for name in ("midtrain", "sft"):
            tokens = getattr(config, name).rows * config.model.seq_len
            steps[name] = max(1, math.ceil(mixture_tokens(config, name) / tokens))
        pretrain_steps = config.pretrain.steps or steps["pretrain"]
        seconds = _fixed_seconds(config, measured, chosen, pretrain_steps * step_s["pretrain"])
    rows = batch_rows(config, chosen)
    wanted = rank_rows(config, rows, measured.world)
    at_once, checkpointing = device_rows(config, measured, chosen, wanted, how or memory.How())
    values: dict[str, int] = {
        "model.depth": depth,
        "model.dim": chosen.dim,
        "pretrain.rows": rows,
        "machine.device_rows": at_once,
    }
    for name in TRAINED:
        values[f"{name}.steps"] = getattr(config, name).steps or steps[name]
        seconds[name] += start + values[f"{name}.steps"] * step_s[name]
    return Plan(
        values=values,
        seconds={name: round(seconds[name], 2) for name in pipeline.NAMES},
        choices={"checkpointing": "on" if checkpointing else "off"},
        inputs=plan_inputs(config),
    )


def rank_rows(config: Config, pretrain_rows: int, world: int) -> int:
    """The most rows that a rank has in one step of pretraining, midtraining or SFT."""
    return -(-max(pretrain_rows, config.midtrain.rows, config.sft.rows) // world)


def device_rows(
    config: Config, measured: Measured, chosen: scaling.ModelShape, wanted: int, how: memory.How
) -> tuple[int, bool]:
    """Rows that a device computes at a time, of `wanted` ones, and whether activations are checkpointed for it.

    Raises `UserError` when not even one row fits.
    """
    wish = config.machine.checkpointing
    if config.machine.device_rows or not measured.memory_bytes:
        return min(wanted, config.machine.device_rows or wanted), wish == "on" or how.checkpointing
    found = memory.fit(chosen, wanted, measured.memory_bytes, msgspec.structs.replace(how, world=measured.world), wish)
    return found.rows, found.checkpointing


def shares(config: Config) -> dict[str, float]:
    """Each trained stage's part of the time for training, 1 together."""
    wished = {name: getattr(config, name).share for name in TRAINED}
    return {name: share / sum(wished.values()) for name, share in wished.items()}


def _affordable(config: Config, left: float, step_s: dict[str, float]) -> dict[str, int]:
    """The steps that `left` seconds pay for; what RL could only repeat itself in goes to the stages before it."""
    parts = {name: share * left for name, share in shares(config).items()}
    over = parts["rl"] - max(1, RL_QUESTIONS // config.rl.questions) * step_s["rl"]
    if over > 0:
        rest = left - parts["rl"]
        parts = {name: part * (1 + over / rest) for name, part in parts.items()} | {"rl": parts["rl"] - over}
    return {name: max(SMALLEST_STEPS[name], round(part / step_s[name])) for name, part in parts.items()}


def _horizon_steps(config: Config, chosen: scaling.ModelShape) -> int:
    tokens = batch_rows(config, chosen) * chosen.seq_len
    return scaling.iterations(chosen, config.pretrain.ratio or DEFAULT_RATIO, tokens)


def _left(config: Config, measured: Measured, fixed: dict[str, float], start: float) -> float:
    """Seconds for training steps; never less than a fifth of the budget, or a slow machine would learn nothing."""
    budget = 60 * config.run.minutes
    return max(0.2 * budget, budget - sum(fixed.values()) - len(TRAINED) * start)


def _start_seconds(measured: Measured) -> float:
    """From the launcher to the first step of a training stage."""
    return measured.torch_s * (1 + LOAD_SHARE + (WARM_SHARE if measured.compiled else 0.0))


def _depth(config: Config, measured: Measured) -> int:
    """The deepest model that still sees `TOKENS_PER_PARAMETER` in pretraining's share of the budget."""
    share = shares(config)["pretrain"]
    for depth in range(DEEPEST, SHALLOWEST, -1):
        chosen = at_depth(config, depth)
        fixed = _fixed_seconds(config, measured, chosen, share * 60 * config.run.minutes)
        left = _left(config, measured, fixed, _start_seconds(measured))
        tokens = share * left * measured.train_flops_s / scaling.flops_per_token(chosen)
        if tokens >= TOKENS_PER_PARAMETER * scaling.num_params(chosen)["scaling"]:
            return depth
    return SHALLOWEST


def _step_seconds(config: Config, measured: Measured, chosen: scaling.ModelShape) -> dict[str, float]:
    per_token = scaling.flops_per_token(chosen)
    rows = {"pretrain": batch_rows(config, chosen), "midtrain": config.midtrain.rows, "sft": config.sft.rows}
    step = {
        name: measured.step_overhead * count * config.model.seq_len * per_token / measured.train_flops_s
        for name, count in rows.items()
    }
    rl = config.rl
    answers = rl.questions * rl.samples
    sampled = answers * ANSWER_SHARE * rl.max_tokens * per_token / measured.decode_flops_s
    trained = TEACHING_SHARE * answers * min(config.model.seq_len, PROMPT_TOKENS + rl.max_tokens)
    step["rl"] = measured.step_overhead * (sampled + trained * per_token / measured.train_flops_s)
    step["rl"] += _rl_reading(config, measured, chosen) / rl.eval_every
    return step


def _rl_reading(config: Config, measured: Measured, chosen: scaling.ModelShape) -> float:
    """Seconds of one held-out reading during RL."""
    asked = config.rl.eval_items + PASS_SAMPLES * config.rl.pass_items
    return asked * ANSWER_SHARE * config.rl.max_tokens * scaling.flops_per_token(chosen) / measured.decode_flops_s


def _fixed_seconds(
    config: Config, measured: Measured, chosen: scaling.ModelShape, pretrain_s: float
) -> dict[str, float]:
    """Everything but the training steps and the start of the training stages; `pretrain_s`: what those will take."""
    per_token = scaling.flops_per_token(chosen)
    seconds = dict.fromkeys(pipeline.NAMES, 0.0)
    seconds |= {name: starts * measured.light_s for name, starts in LIGHT_WORK.items()}
    megabytes = measured.text_bytes / 1e6
    seconds["preflight"] = measured.spent_s
    seconds["dataset"] = (1 + READ_STARTS_PER_MB * megabytes) * measured.light_s
    seconds["tokenizer"] = (2 + LEARN_STARTS_PER_MB * megabytes) * measured.light_s
    val_bytes = measured.text_bytes * config.data.val_share
    if config.data.source in HUB_SHARDS:
        files = config.data.shards + 1  # and the one for validation
        seconds["dataset"] = files * SHARD_BYTES / DOWNLOAD_BYTES_S
        seconds["tokenizer"] = LEARN_S + files * SHARD_CHARACTERS / ENCODE_CHARACTERS_S
        val_bytes = SHARD_CHARACTERS
    # Reading text costs a third of training on it.
    val_tokens = config.base_eval.val_tokens or val_bytes / bytes_per_token(config.tokenizer.vocab_size)
    decode = measured.decode_flops_s / per_token
    few = 0.25  # a handful of rows decode at about a quarter of the speed of a full batch
    seconds["base_eval"] = 1.3 * measured.torch_s + val_tokens * per_token / 3 / measured.train_flops_s
    if config.base_eval.core:
        items = CORE_TASKS * min(config.base_eval.core_items or CORE_ITEMS, CORE_ITEMS)
        core_tokens = items * min(CORE_TOKENS, chosen.seq_len)
        seconds["base_eval"] += core_tokens * per_token / 3 / measured.train_flops_s
    seconds["base_eval"] += EVAL_PROMPTS * config.base_eval.sample_tokens / (few * decode)
    evals = config.chat_eval
    asked = EVAL_TASKS * evals.items + sum(max(0, items - evals.items) for items in evals.tasks.values())
    answers = asked * ANSWER_SHARE * (evals.max_tokens or TASK_TOKENS) / decode
    prompts = EVAL_PROMPTS * config.chat.max_tokens / (few * decode)
    seconds["chat_eval"] = 1.3 * measured.torch_s + len(pipeline.MODEL_STAGES) * (answers + prompts)
    for name in ("midtrain", "sft"):
        knobs = getattr(config, name)
        answers = EVAL_TASKS * knobs.eval_items * ANSWER_SHARE * TASK_TOKENS / decode
        reading = CHAT_READING * EXAMPLE_TOKENS * per_token / 3 / measured.train_flops_s + answers
        readings = 2 + shares(config)[name] * 60 * config.run.minutes / knobs.eval_every
        seconds[name] = MIX_S_PER_START * measured.light_s + readings * reading
    readings = 1 + pretrain_s / config.pretrain.eval_every
    reading_tokens = EVAL_BATCHES * batch_rows(config, chosen) * chosen.seq_len
    seconds["pretrain"] = readings * reading_tokens * per_token / 3 / measured.train_flops_s
    seconds["rl"] = _rl_reading(config, measured, chosen)  # before the first step; the others count with the steps
    return seconds
