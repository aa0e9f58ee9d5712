"""The plan: sizes, steps and seconds of every stage, from what was measured, before anything is spent.

Pure arithmetic over `Measured`; `stages/preflight` measures and calls `make_plan` once. The budget (`run.minutes`)
pays for the fixed work first, and what is left is shared among the four training stages.
"""

from __future__ import annotations

import msgspec

from picollm.run import pipeline, scaling
from picollm.run.config import Config
from picollm.run.errors import UserError
from picollm.run.folder import Plan, plan_inputs

SHARES = {"pretrain": 0.50, "midtrain": 0.12, "sft": 0.22, "rl": 0.16}
SMALLEST_STEPS = {"pretrain": 20, "midtrain": 10, "sft": 20, "rl": 4}
DEEPEST = 24
TOKENS_PER_PARAMETER = 0.12
"""With so little time a model is worth its size from about this many tokens per scaling parameter (see docs/log.md)."""


class Measured(msgspec.Struct, kw_only=True):
    """What preflight found out. Rates are of the whole machine, all ranks together.

    light_s, torch_s: seconds from asking for a stage to its first work, without and with torch.
    warm_s: seconds to the first step of a training stage once the compile cache is filled.
    depth, flops_s: the shape that was timed and the model FLOP/s it reached in full optimizer steps.
    eval_flops_s: model FLOP/s (forward and backward convention) of evaluation.
    decode_tok_s: sampled tokens a second in batches of `decode_rows`.
    text_bytes: size of the text, 0 when not known.
    """

    light_s: float
    torch_s: float
    warm_s: float
    depth: int
    flops_s: float
    eval_flops_s: float
    decode_tok_s: float
    decode_rows: int
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
    model = msgspec.structs.replace(config.model, depth=depth)
    return shape(msgspec.structs.replace(config, model=model))


def make_plan(config: Config, measured: Measured) -> Plan:
    """Fill in every 0 and predict every stage's seconds; what the person set is kept."""
    fixed = _fixed_seconds(config, measured)
    start = {name: measured.torch_s + measured.warm_s for name in SHARES}
    left = max(20.0, 60 * config.run.minutes - sum(fixed.values()) - sum(start.values()))
    depth = config.model.depth or _depth(config, measured, SHARES["pretrain"] * left)
    chosen = at_depth(config, depth)
    per_token = scaling.flops_per_token(chosen)
    step_s = {
        name: getattr(config, name).rows * config.model.seq_len * per_token / measured.flops_s
        for name in ("pretrain", "midtrain", "sft")
    }
    decode = measured.decode_tok_s * scaling.flops_per_token(at_depth(config, measured.depth)) / per_token
    rl = config.rl
    answers = rl.questions * rl.samples
    step_s["rl"] = answers * rl.max_tokens / decode + answers * config.model.seq_len * per_token / measured.flops_s
    values: dict[str, int] = {"model.depth": depth, "model.dim": chosen.dim}
    seconds = dict(fixed)
    eval_s = _eval_seconds(config, measured, per_token)
    decode_rate = decode
    seconds["base_eval"] += eval_s + 9 * config.base_eval.sample_tokens / max(1.0, decode_rate / 8)
    seconds["chat_eval"] += _chat_eval_seconds(config, measured, per_token, decode_rate)
    left = max(20.0, 60 * config.run.minutes - sum(seconds.values()) - sum(start.values()))
    for name, share in SHARES.items():
        steps = getattr(config, name).steps or max(SMALLEST_STEPS[name], round(share * left / step_s[name]))
        values[f"{name}.steps"] = steps
        seconds[name] = start[name] + steps * step_s[name]
    seconds["pretrain"] += eval_s * max(1.0, seconds["pretrain"] / config.pretrain.eval_every)
    ordered = {name: round(seconds[name], 2) for name in pipeline.NAMES}
    return Plan(values=values, seconds=ordered, inputs=plan_inputs(config))
