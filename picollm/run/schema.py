"""Every knob, typed once: the schema behind `picollm.toml`, `--set`, the environment, forms and help.

A field's annotation carries its unit, bounds and what it `affects`: `result` (the weights or numbers made; part of a
stage's fingerprint), `how` (speed, cadence, placement) or `display`. A field with `auto` may be 0: `preflight` then
plans it once from the measured speed of the machine and writes it to `plan.json`. A knob that is `added` to what runs
were made with before must have a default that means "as before": while it stands there it counts as absent.
"""

from __future__ import annotations

import functools
from typing import Annotated, Any, Literal, get_type_hints

import msgspec
from msgspec import Meta

from picollm.run.structs import complete


def _meta(text: str, unit: str = "", affects: str = "result", auto: bool = False, **bounds: Any) -> Meta:
    return Meta(description=text, extra={"unit": unit, "affects": affects, "auto": auto}, **bounds)


ADDED = Meta(extra={"added": True})
"""Marks a knob that a finished run may not know yet, and whose default is what was done without it."""


Rows = Annotated[int, _meta("sequences in one optimizer step, over all ranks", "rows", ge=1, le=1 << 20)]
Steps = Annotated[int, _meta("optimizer steps; 0: planned from the measured speed", "steps", auto=True, ge=0, le=10**8)]
Share = Annotated[
    float,
    _meta("its part of the training time when the steps are planned, against the other stages", affects="how", gt=0),
    ADDED,
]
LrScale = Annotated[float, _meta("learning rates as a multiple of the [pretrain] ones", "×", ge=0, le=100)]
Warmdown = Annotated[float, _meta("share of the steps over which the learning rate falls", "share", ge=0, le=1)]
FinalLr = Annotated[float, _meta("learning rate at the end as a share of the full one", "share", ge=0, le=1)]
Decay = Annotated[float, _meta("Muon's cautious weight decay", ge=0, le=10)]
Moments = Annotated[bool, _meta("begin with the optimizer's moments of the stage before, not with none")]
ReadEvery = Annotated[
    float, _meta("time between held-out readings (the first and the last step always)", "s", "how", ge=0.1, le=1e6)
]
ReadItems = Annotated[
    int, _meta("held-out items of each task in a reading; 0: the loss alone", "items", "how", ge=0, le=10**6)
]
SaveEvery = Annotated[float, _meta("time between checkpoints (the last step always saves)", "s", "how", ge=0.1, le=1e6)]
Mix = Annotated[dict[str, Annotated[int, Meta(ge=0)]], _meta("training examples drawn from each task", "examples")]


class RunConfig(msgspec.Struct, kw_only=True):
    """The run as a whole."""

    profile: Annotated[str, _meta("the profile this run started from", affects="display")] = "pocket"
    seed: Annotated[int, _meta("all random numbers come from it", ge=0, le=2**31 - 1)] = 1337
    minutes: Annotated[
        float,
        _meta("time for the planned sizes and steps; 0: they follow from depth alone", "min", "how", ge=0),
    ] = 5.0


class LaunchConfig(msgspec.Struct, kw_only=True):
    """How many processes, on which machines."""

    nproc: Annotated[
        Annotated[int, Meta(ge=1, le=64)] | Literal["auto"],
        _meta("processes per node; auto: one per GPU, one on CPU", "ranks", "how"),
    ] = "auto"
    nnodes: Annotated[int, _meta("machines that train together, the run folder shared", "nodes", "how", ge=1)] = 1
    node_rank: Annotated[
        Annotated[int, Meta(ge=0)] | Literal["auto"],
        _meta("which of them this one is, from 0; auto: as the job scheduler says", affects="how"),
    ] = "auto"
    rendezvous: Annotated[
        str, _meta("host:port of node 0, where they meet; empty: as the job scheduler says", affects="how")
    ] = ""
    timeout: Annotated[float, _meta("a rank silent for this long is given up", "min", "how", gt=0)] = 10.0


class MachineConfig(msgspec.Struct, kw_only=True):
    """Where and how the arithmetic runs; `auto` runs the candidates for a moment and takes the fastest."""

    device: Annotated[Literal["auto", "cpu", "cuda", "mps"], _meta("accelerator", affects="how")] = "auto"
    precision: Annotated[Literal["auto", "fp32", "bf16"], _meta("compute precision", affects="how")] = "auto"
    attention: Annotated[
        Literal["auto", "explicit", "sdpa", "cudnn", "varlen", "flex", "flash3", "flash4"],
        _meta("attention kernel", affects="how"),
    ] = "auto"
    fp8: Annotated[Literal["auto", "on", "off"], _meta("8-bit matrix products (Hopper or newer)", affects="how")] = (
        "auto"
    )
    compile: Annotated[Literal["auto", "on", "off"], _meta("torch.compile", affects="how")] = "auto"
    deterministic: Annotated[Literal["auto", "on", "off"], _meta("repeat bit for bit; auto: on CPU", affects="how")] = (
        "auto"
    )
    device_rows: Annotated[
        int, _meta("rows a device computes at a time; 0: found by a dry run", "rows", "how", auto=True, ge=0)
    ] = 0
    checkpointing: Annotated[
        Literal["auto", "on", "off"],
        _meta("compute activations twice to save memory; auto: when it must", affects="how"),
    ] = "auto"
    keep_last: Annotated[int, _meta("newest checkpoints kept of each stage; 0: all", "checkpoints", "how", ge=0)] = 2
    keep_best: Annotated[bool, _meta("also keep the one of the best validation reading", affects="how")] = False
    milestones: Annotated[int, _meta("also keep one every so many steps; 0: none", "steps", "how", ge=0)] = 0
    stall_after: Annotated[float, _meta("alive but silent for this long is called stalled", "s", "how", gt=0)] = 120.0
    threads: Annotated[int, _meta("CPU threads; 0: all cores, shared by the ranks", "threads", "how", ge=0, le=512)] = 0


class DataConfig(msgspec.Struct, kw_only=True):
    """The text to learn from."""

    source: Annotated[
        str,
        _meta(
            "'pydocs' (this machine's Python documentation), a file or folder (.txt .md .jsonl .parquet), "
            "'climbmix' or 'fineweb-edu' (Hugging Face Hub)"
        ),
    ] = "pydocs"
    shards: Annotated[int, _meta("files of a Hub source to train on", "files", ge=1)] = 8
    first_shards: Annotated[int, _meta("training may start when this many of them are ready", "files", "how", ge=1)] = 1
    mirrors: Annotated[str, _meta("Hub endpoints to try in turn, with commas; empty: HF_ENDPOINT", affects="how")] = ""
    keep_text: Annotated[bool, _meta("keep downloaded text after it was encoded", affects="how")] = True
    val_share: Annotated[float, _meta("share of the documents kept for validation", "share", gt=0, le=0.5)] = 0.04


class TokenizerConfig(msgspec.Struct, kw_only=True):
    vocab_size: Annotated[int, _meta("ids, specials included", "ids", ge=300, le=1 << 20)] = 4096


class ModelConfig(msgspec.Struct, kw_only=True):
    """The shape of the network; `depth` is the dial from which the rest derives."""

    depth: Annotated[int, _meta("layers; 0: planned", "layers", auto=True, ge=0, le=64)] = 0
    dim: Annotated[int, _meta("width; 0: 64 × depth", "channels", auto=True, ge=0, le=1 << 16)] = 0
    head_dim: Annotated[int, _meta("width of one head", "channels", ge=16, le=256)] = 64
    seq_len: Annotated[int, _meta("context length", "tokens", ge=32, le=1 << 20)] = 256
    window_pattern: Annotated[str, _meta("L full, S quarter context, tiled over the layers", pattern="^[SL]+$")] = "L"
    value_embeds: Annotated[bool, _meta("value embeddings on alternate layers")] = True
    smear: Annotated[bool, _meta("mix in the previous token's embedding")] = True
    backout: Annotated[bool, _meta("subtract part of the middle layer at the end (not with one layer)")] = True


class PretrainConfig(msgspec.Struct, kw_only=True):
    steps: Steps = 0
    share: Share = 0.39
    rows: Annotated[
        int, _meta("sequences in one optimizer step, over all ranks; 0: by the batch rule", "rows", auto=True, ge=0)
    ] = 16
    ratio: Annotated[float, _meta("training tokens per parameter; 0: as many as the time allows", ge=0, le=1000)] = 0.0
    scale_lr: Annotated[bool, _meta("scale learning rates and decay with batch size and horizon")] = False
    matrix_lr: Annotated[float, _meta("Muon learning rate of the block matrices", ge=0, le=10)] = 0.02
    embedding_lr: Annotated[float, _meta("AdamW learning rate of the token embedding", ge=0, le=10)] = 0.3
    value_lr: Annotated[float, _meta("AdamW learning rate of the value embeddings", ge=0, le=10)] = 0.15
    unembedding_lr: Annotated[float, _meta("AdamW learning rate of lm_head", ge=0, le=10)] = 0.008
    scalar_lr: Annotated[float, _meta("AdamW learning rate of the residual scalars", ge=0, le=10)] = 0.5
    weight_decay: Annotated[float, _meta("Muon's cautious weight decay", ge=0, le=10)] = 0.1
    warmup_steps: Annotated[int, _meta("linear warm-up", "steps", ge=0, le=10**6)] = 20
    warmdown: Warmdown = 0.65
    final_lr: FinalLr = 0.05
    eval_every: Annotated[float, _meta("time between validation readings", "s", "how", ge=0.1, le=1e6)] = 20.0
    save_every: SaveEvery = 30.0


class BaseEvalConfig(msgspec.Struct, kw_only=True):
    val_tokens: Annotated[int, _meta("validation tokens read for bits per byte; 0: all", "tokens", ge=0)] = 0
    sample_tokens: Annotated[int, _meta("length of each sample", "tokens", ge=1, le=4096)] = 64
    core: Annotated[
        str,
        _meta("CORE: a bundle (folder or zip file), or 'auto' for the one at core_url; empty: not measured"),
        ADDED,
    ] = ""
    core_url: Annotated[str, _meta("where 'auto' gets the bundle, once", affects="how")] = (
        "https://karpathy-public.s3.us-west-2.amazonaws.com/eval_bundle.zip"
    )
    core_items: Annotated[int, _meta("most items of each CORE task; 0: all", "items", ge=0), ADDED] = 0


class IdentityConfig(msgspec.Struct, kw_only=True):
    file: Annotated[
        str,
        _meta("identity rows with their manifest: a .jsonl file, https://…, hf://datasets/…; empty: the built-in ones"),
    ] = ""
    name: Annotated[str, _meta("the assistant's name, in the built-in rows"), ADDED] = "picollm"
    maker: Annotated[str, _meta("who trained it, in the built-in rows"), ADDED] = "my owner"
    facts: Annotated[
        str, _meta("your own questions and answers, .jsonl, added to the built-in rows; empty: none"), ADDED
    ] = ""


class MidtrainConfig(msgspec.Struct, kw_only=True):
    steps: Steps = 0
    share: Share = 0.12
    rows: Rows = 16
    lr: LrScale = 1.0
    warmdown: Warmdown = 0.5
    final_lr: FinalLr = 0.2
    weight_decay: Decay = 0.0
    reuse_moments: Moments = True
    mixture: Mix = msgspec.field(default_factory=dict)
    custom: Annotated[str, _meta("your own conversations, .jsonl or .json; empty: none")] = ""
    eval_every: ReadEvery = 30.0
    eval_items: ReadItems = 0
    save_every: SaveEvery = 30.0


class SftConfig(msgspec.Struct, kw_only=True):
    steps: Steps = 0
    share: Share = 0.29
    rows: Rows = 16
    lr: LrScale = 0.8
    warmdown: Warmdown = 0.5
    final_lr: FinalLr = 0.0
    weight_decay: Decay = 0.0
    reuse_moments: Annotated[Moments, ADDED] = False
    mixture: Mix = msgspec.field(default_factory=dict)
    custom: Annotated[str, _meta("your own conversations, .jsonl or .json; empty: none")] = ""
    eval_every: ReadEvery = 30.0
    eval_items: ReadItems = 16
    save_every: SaveEvery = 30.0


class RlConfig(msgspec.Struct, kw_only=True):
    task: Annotated[str, _meta("the task whose reward is learnt, with its settings")] = (
        "arithmetic:digits=3,operations=2"
    )
    steps: Steps = 0
    share: Share = 0.2
    questions: Annotated[int, _meta("questions per step, over all ranks", "questions", ge=1, le=4096)] = 8
    samples: Annotated[int, _meta("answers sampled per question", "answers", ge=2, le=256)] = 8
    max_tokens: Annotated[int, _meta("longest answer", "tokens", ge=4, le=1 << 16)] = 48
    temperature: Annotated[float, _meta("sampling temperature of the rollouts", gt=0, le=5)] = 1.0
    top_k: Annotated[int, _meta("sampling top-k of the rollouts; 0: off", "ids", ge=0)] = 50
    lr: LrScale = 0.1
    schedule: Annotated[Literal["linear", "cosine"], _meta("how the learning rate falls to 0")] = "cosine"
    eval_every: Annotated[int, _meta("steps between held-out readings", "steps", "how", ge=1)] = 20
    eval_items: Annotated[int, _meta("held-out questions per reading", "questions", "how", ge=8)] = 300
    pass_items: Annotated[
        int, _meta("of them, asked 8 times by sampling for pass@1 to pass@8; 0: none", "questions", "how", ge=0)
    ] = 64
    save_every: SaveEvery = 30.0


class ChatEvalConfig(msgspec.Struct, kw_only=True):
    tasks: Annotated[
        dict[str, Annotated[int, Meta(ge=0)]],
        _meta("asked besides what the run practises, with the items of each; 0: as many as items", "items"),
        ADDED,
    ] = msgspec.field(default_factory=dict)
    items: Annotated[int, _meta("held-out items per task", "items", ge=8, le=10**6)] = 120
    max_tokens: Annotated[int, _meta("longest answer; 0: each task's own", "tokens", ge=0, le=1 << 16)] = 0


class ReportConfig(msgspec.Struct, kw_only=True):
    notes: Annotated[
        str, _meta("your own words at the head of the report, as those of the run folder's notes.md", affects="display")
    ] = ""
    price: Annotated[
        float, _meta("dollars per GPU (or machine without) and hour; 0: a typical one", "$", "display", ge=0)
    ] = 0.0


class LogConfig(msgspec.Struct, kw_only=True):
    """Where else the metrics go; both need their extra installed."""

    wandb: Annotated[Literal["off", "offline", "online"], _meta("Weights & Biases", affects="display")] = "off"
    wandb_project: Annotated[str, _meta("project name there", affects="display")] = "picollm"
    tensorboard: Annotated[bool, _meta("TensorBoard files in the run folder", affects="display")] = False


class ChatConfig(msgspec.Struct, kw_only=True):
    """Defaults of compare and chat."""

    prompts: Annotated[str, _meta("file of prompts, one a line; empty: the run's prompts.txt", affects="display")] = ""
    temperature: Annotated[float, _meta("0: always the likeliest token", affects="display", ge=0, le=5)] = 0.7
    top_k: Annotated[int, _meta("sample among the k likeliest; 0: off", "ids", "display", ge=0)] = 50
    max_tokens: Annotated[int, _meta("longest answer", "tokens", "display", ge=1, le=1 << 16)] = 96
    seed: Annotated[int, _meta("same seed, same answer", affects="display", ge=0, le=2**31 - 1)] = 1
    system: Annotated[str, _meta("system prompt", affects="display")] = ""
    precision: Annotated[
        Literal["auto", "fp32", "bf16", "int8"],
        _meta("weights that answer; auto: bf16 on a GPU, the faster of fp32 and bf16 on a CPU", affects="display"),
    ] = "auto"


@complete
class Config(msgspec.Struct, kw_only=True):
    """One field per table of `picollm.toml`."""

    run: RunConfig = msgspec.field(default_factory=RunConfig)
    launch: LaunchConfig = msgspec.field(default_factory=LaunchConfig)
    machine: MachineConfig = msgspec.field(default_factory=MachineConfig)
    data: DataConfig = msgspec.field(default_factory=DataConfig)
    tokenizer: TokenizerConfig = msgspec.field(default_factory=TokenizerConfig)
    model: ModelConfig = msgspec.field(default_factory=ModelConfig)
    pretrain: PretrainConfig = msgspec.field(default_factory=PretrainConfig)
    base_eval: BaseEvalConfig = msgspec.field(default_factory=BaseEvalConfig)
    identity: IdentityConfig = msgspec.field(default_factory=IdentityConfig)
    midtrain: MidtrainConfig = msgspec.field(default_factory=MidtrainConfig)
    sft: SftConfig = msgspec.field(default_factory=SftConfig)
    rl: RlConfig = msgspec.field(default_factory=RlConfig)
    chat_eval: ChatEvalConfig = msgspec.field(default_factory=ChatEvalConfig)
    report: ReportConfig = msgspec.field(default_factory=ReportConfig)
    log: LogConfig = msgspec.field(default_factory=LogConfig)
    chat: ChatConfig = msgspec.field(default_factory=ChatConfig)


class Knob(msgspec.Struct, frozen=True):
    """One field of one table, as help, forms and fingerprints need it."""

    key: str
    type: Any
    description: str
    unit: str
    affects: str
    auto: bool
    default: Any
    added: bool

    def counts(self, value: Any) -> bool:
        """Whether `value` is among what a result was made from; not a default that was the only way before."""
        return not self.added or value != self.default


@functools.cache
def tables() -> dict[str, type[msgspec.Struct]]:
    """The struct of every table by its name, in the order of the file."""
    return get_type_hints(Config)


@functools.cache
def knobs() -> dict[str, Knob]:
    """Every knob by its dotted key, in the order of the file. Read it only: the one table is shared by all callers."""
    found, defaults = {}, flat(Config())
    for table, struct in tables().items():
        for name, kind in get_type_hints(struct, include_extras=True).items():
            metas = [m for m in kind.__metadata__ if isinstance(m, Meta) and m.extra]
            key, extra = f"{table}.{name}", metas[0].extra or {}
            found[key] = Knob(
                key, kind, metas[0].description or "", **extra, default=defaults[key], added=ADDED in metas
            )
    return found


def flat(config: Config) -> dict[str, Any]:
    """`{"sft.lr": 0.8, …}`"""
    tables = msgspec.to_builtins(config)
    return {f"{table}.{key}": value for table, values in tables.items() for key, value in values.items()}
