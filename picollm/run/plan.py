"""The plan: sizes, steps and seconds of every stage, from what was measured, before anything is spent.

Pure arithmetic over `Measured`; `stages/preflight` measures and calls `make_plan`. The budget (`run.minutes`) pays for
the fixed work first, and what is left is shared among the four training stages.
"""

from __future__ import annotations

import msgspec

from picollm.run import pipeline, scaling
from picollm.run.config import Config
from picollm.run.errors import UserError
from picollm.run.folder import Plan, plan_inputs

SHARES = {"pretrain": 0.39, "midtrain": 0.12, "sft": 0.29, "rl": 0.20}
SMALLEST_STEPS = {"pretrain": 20, "midtrain": 10, "sft": 20, "rl": 4}
SHALLOWEST, DEEPEST = 2, 12
TOKENS_PER_PARAMETER = 0.5
"""Minutes of training are worth a deeper model from about this many tokens per scaling parameter (docs/log.md)."""

# What stages without training cost, in starts of a light process (Measured.light_s), which follows the machine's speed.
LIGHT_WORK = {"doctor": 1.4, "identity": 2.2, "tokenizer_eval": 2.2, "report": 1.2}
READ_STARTS_PER_MB = 4.8
LEARN_STARTS_PER_MB = 2.4
EVAL_TASKS, EVAL_PROMPTS, TASK_TOKENS = 7, 9, 48
MIX_S_PER_START = 10.0
"""Reading the documentation and rendering a mixture, in light starts."""
LOAD_SHARE = 1.8
"""Ranks, model, optimizer and checkpoint, as a multiple of the time that loading torch takes."""
WARM_SHARE = 2.3
"""Tracing a graph that the compile cache holds, likewise."""
STEP_OVERHEAD = 1.32
"""A step in the loop (batches, events, the app drawing beside it) against one measured alone."""
VAL_TOKENS = 4 * 4096
"""One validation reading during pretraining (see stages/pretrain)."""
ANSWER_SHARE = 0.75
"""Sampling costs this share of all the tokens allowed: a batch goes on until its longest answer ends."""


class Measured(msgspec.Struct, kw_only=True):
    """What preflight found out. Rates are of the whole machine, all ranks together.

    light_s, torch_s: seconds until a stage process does its first work, without and with torch.
    compiled: training code comes from the compile cache.
    train_flops_s, decode_flops_s: model FLOP/s (`scaling.flops_per_token` × tokens/s) of whole optimizer steps, and of
    sampling in batches. text_bytes: size of the text. spent_s: seconds already gone.
    """

    light_s: float
    torch_s: float
    compiled: bool = False
    train_flops_s: float
    decode_flops_s: float
    text_bytes: int
    spent_s: float = 0.0


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


def make_plan(config: Config, measured: Measured) -> Plan:
    """Fill in every 0 and predict every stage's seconds; what the person set is kept."""
    depth = config.model.depth or _depth(config, measured)
    chosen = at_depth(config, depth)
    seconds = _fixed_seconds(config, measured, chosen)
    start = _start_seconds(measured)
    step_s = _step_seconds(config, measured, chosen)
    left = _left(config, measured, seconds, start)
    values: dict[str, int] = {"model.depth": depth, "model.dim": chosen.dim}
    for name, share in SHARES.items():
        steps = getattr(config, name).steps or max(SMALLEST_STEPS[name], round(share * left / step_s[name]))
        values[f"{name}.steps"] = steps
        seconds[name] += start + steps * step_s[name]
    return Plan(
        values=values,
        seconds={name: round(seconds[name], 2) for name in pipeline.NAMES},
        inputs=plan_inputs(config),
    )


def _left(config: Config, measured: Measured, fixed: dict[str, float], start: float) -> float:
    """Seconds for training steps; never less than a fifth of the budget, or a slow machine would learn nothing."""
    budget = 60 * config.run.minutes
    return max(0.2 * budget, budget - sum(fixed.values()) - len(SHARES) * start)


def _start_seconds(measured: Measured) -> float:
    """From the launcher to the first step of a training stage."""
    return measured.torch_s * (1 + LOAD_SHARE + (WARM_SHARE if measured.compiled else 0.0))


def _depth(config: Config, measured: Measured) -> int:
    """The deepest model that still sees `TOKENS_PER_PARAMETER` in pretraining's share of the budget."""
    for depth in range(DEEPEST, SHALLOWEST, -1):
        chosen = at_depth(config, depth)
        left = _left(config, measured, _fixed_seconds(config, measured, chosen), _start_seconds(measured))
        tokens = SHARES["pretrain"] * left * measured.train_flops_s / scaling.flops_per_token(chosen)
        if tokens >= TOKENS_PER_PARAMETER * scaling.num_params(chosen)["scaling"]:
            return depth
    return SHALLOWEST


def _step_seconds(config: Config, measured: Measured, chosen: scaling.ModelShape) -> dict[str, float]:
    per_token = scaling.flops_per_token(chosen)
    step = {
        name: STEP_OVERHEAD * getattr(config, name).rows * config.model.seq_len * per_token / measured.train_flops_s
        for name in ("pretrain", "midtrain", "sft")
    }
    rl = config.rl
    answers = rl.questions * rl.samples
    sampled = answers * ANSWER_SHARE * rl.max_tokens * per_token / measured.decode_flops_s
    row = min(config.model.seq_len, 128)
    step["rl"] = STEP_OVERHEAD * (sampled + answers * row * per_token / measured.train_flops_s)
    return step


def _fixed_seconds(config: Config, measured: Measured, chosen: scaling.ModelShape) -> dict[str, float]:
    """Everything but the training steps and the start of the training stages."""
    per_token = scaling.flops_per_token(chosen)
    seconds = dict.fromkeys(pipeline.NAMES, 0.0)
    seconds |= {name: starts * measured.light_s for name, starts in LIGHT_WORK.items()}
    megabytes = measured.text_bytes / 1e6
    seconds["preflight"] = measured.spent_s
    seconds["dataset"] = (1 + READ_STARTS_PER_MB * megabytes) * measured.light_s
    seconds["tokenizer"] = (2 + LEARN_STARTS_PER_MB * megabytes) * measured.light_s
    # Reading text costs a third of training on it; a token of the tokenizer is about 3.5 bytes.
    val_tokens = config.base_eval.val_tokens or megabytes * 1e6 * config.data.val_share / 3.5
    decode = measured.decode_flops_s / per_token
    few = 0.25  # a handful of rows decode at about a quarter of the speed of a full batch
    seconds["base_eval"] = 2.4 * measured.torch_s + val_tokens * per_token / 3 / measured.train_flops_s
    seconds["base_eval"] += EVAL_PROMPTS * config.base_eval.sample_tokens / (few * decode)
    evals = config.chat_eval
    answers = EVAL_TASKS * evals.items * ANSWER_SHARE * (evals.max_tokens or TASK_TOKENS) / decode
    prompts = EVAL_PROMPTS * config.chat.max_tokens / (few * decode)
    seconds["chat_eval"] = 2 * measured.torch_s + len(pipeline.MODEL_STAGES) * (answers + prompts)
    seconds["midtrain"] = seconds["sft"] = MIX_S_PER_START * measured.light_s
    readings = 1 + SHARES["pretrain"] * 60 * config.run.minutes / config.pretrain.eval_every
    seconds["pretrain"] = readings * VAL_TOKENS * per_token / 3 / measured.train_flops_s
    held_out = config.rl.eval_items * ANSWER_SHARE * config.rl.max_tokens / decode
    seconds["rl"] = (1 + (config.rl.steps or 40) / config.rl.eval_every) * held_out
    return seconds
