"""Every knob, typed once: the schema behind `picollm.toml`, `--set`, the environment, forms and help.

A field's annotation carries its unit, bounds and what it `affects`: `result` (the weights or numbers made; part of a
stage's fingerprint), `how` (speed, cadence, placement) or `display`. A field with `auto` may be 0: `preflight` then
plans it once from the measured speed of the machine and writes it to `plan.json`.

Layers: schema defaults < profile < `--config` file < environment (`PICOLLM_SFT__LR=0.1`) < `--set sft.lr=0.1`.
"""

from __future__ import annotations

import functools
import math
import os
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import msgspec
import tomli_w
from msgspec import Meta

from picollm.run.errors import UserError


def _meta(text: str, unit: str = "", affects: str = "result", auto: bool = False, **bounds: Any) -> Meta:
    return Meta(description=text, extra={"unit": unit, "affects": affects, "auto": auto}, **bounds)


Rows = Annotated[int, _meta("sequences in one optimizer step, over all ranks", "rows", ge=1, le=1 << 20)]
Steps = Annotated[int, _meta("optimizer steps; 0: planned from the measured speed", "steps", auto=True, ge=0, le=10**8)]
LrScale = Annotated[float, _meta("learning rates as a multiple of the [pretrain] ones", "×", ge=0, le=100)]
Warmdown = Annotated[float, _meta("share of the steps over which the learning rate falls", "share", ge=0, le=1)]
FinalLr = Annotated[float, _meta("learning rate at the end as a share of the full one", "share", ge=0, le=1)]
SaveEvery = Annotated[float, _meta("time between checkpoints (the last step always saves)", "s", "how", ge=0.1, le=1e6)]
Mix = Annotated[dict[str, Annotated[int, Meta(ge=0)]], _meta("training examples drawn from each task", "examples")]


class RunConfig(msgspec.Struct, kw_only=True):
    """The run as a whole."""

    profile: Annotated[str, _meta("the profile this run started from", affects="display")] = "pocket"
    seed: Annotated[int, _meta("all random numbers come from it", ge=0, le=2**31 - 1)] = 1337
    minutes: Annotated[float, _meta("time budget that the planned sizes and steps share", "min", "how", gt=0)] = 5.0
    nproc: Annotated[int, _meta("processes per node; 0: one per GPU, one on CPU", "ranks", "how", ge=0, le=64)] = 0


class MachineConfig(msgspec.Struct, kw_only=True):
    """Where and how the arithmetic runs; `auto` runs the candidates for a moment and takes the fastest."""

    device: Annotated[Literal["auto", "cpu", "cuda", "mps"], _meta("accelerator", affects="how")] = "auto"
    precision: Annotated[Literal["auto", "fp32", "bf16"], _meta("compute precision", affects="how")] = "auto"
    attention: Annotated[Literal["auto", "explicit", "sdpa"], _meta("attention kernel", affects="how")] = "auto"
    compile: Annotated[Literal["auto", "on", "off"], _meta("torch.compile", affects="how")] = "auto"
    deterministic: Annotated[Literal["auto", "on", "off"], _meta("repeat bit for bit; auto: on CPU", affects="how")] = (
        "auto"
    )
    stall_after: Annotated[float, _meta("alive but silent for this long is called stalled", "s", "how", gt=0)] = 120.0
    threads: Annotated[int, _meta("CPU threads; 0: all cores, shared by the ranks", "threads", "how", ge=0, le=512)] = 0


class DataConfig(msgspec.Struct, kw_only=True):
    """The text to learn from."""

    source: Annotated[
        str, _meta("'pydocs' (this machine's Python documentation), or a file or folder (.txt .md .jsonl .parquet)")
    ] = "pydocs"
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
    backout: Annotated[bool, _meta("subtract part of the middle layer at the end")] = True


class PretrainConfig(msgspec.Struct, kw_only=True):
    steps: Steps = 0
    rows: Rows = 16
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


class IdentityConfig(msgspec.Struct, kw_only=True):
    file: Annotated[str, _meta("identity rows (.jsonl, with manifest beside it); empty: the built-in ones")] = ""


class MidtrainConfig(msgspec.Struct, kw_only=True):
    steps: Steps = 0
    rows: Rows = 16
    lr: LrScale = 1.0
    warmdown: Warmdown = 0.5
    final_lr: FinalLr = 0.2
    mixture: Mix = msgspec.field(default_factory=dict)
    custom: Annotated[str, _meta("your own conversations, .jsonl; empty: none")] = ""
    save_every: SaveEvery = 30.0


class SftConfig(msgspec.Struct, kw_only=True):
    steps: Steps = 0
    rows: Rows = 16
    lr: LrScale = 0.8
    warmdown: Warmdown = 0.5
    final_lr: FinalLr = 0.0
    mixture: Mix = msgspec.field(default_factory=dict)
    custom: Annotated[str, _meta("your own conversations, .jsonl; empty: none")] = ""
    save_every: SaveEvery = 30.0


class RlConfig(msgspec.Struct, kw_only=True):
    task: Annotated[str, _meta("the task whose reward is learnt, with its settings")] = (
        "arithmetic:digits=3,operations=2"
    )
    steps: Steps = 0
    questions: Annotated[int, _meta("questions per step, over all ranks", "questions", ge=1, le=4096)] = 8
    samples: Annotated[int, _meta("answers sampled per question", "answers", ge=2, le=256)] = 8
    max_tokens: Annotated[int, _meta("longest answer", "tokens", ge=4, le=1 << 16)] = 48
    temperature: Annotated[float, _meta("sampling temperature of the rollouts", gt=0, le=5)] = 1.0
    top_k: Annotated[int, _meta("sampling top-k of the rollouts; 0: off", "ids", ge=0)] = 50
    lr: LrScale = 0.1
    eval_every: Annotated[int, _meta("steps between held-out readings", "steps", "how", ge=1)] = 20
    eval_items: Annotated[int, _meta("held-out questions per reading", "questions", "how", ge=8)] = 120
    save_every: SaveEvery = 30.0


class ChatEvalConfig(msgspec.Struct, kw_only=True):
    items: Annotated[int, _meta("held-out items per task", "items", ge=8, le=10**6)] = 120
    max_tokens: Annotated[int, _meta("longest answer; 0: each task's own", "tokens", ge=0, le=1 << 16)] = 0


class ReportConfig(msgspec.Struct, kw_only=True):
    notes: Annotated[str, _meta("your own words, put at the head of the report", affects="display")] = ""


class ChatConfig(msgspec.Struct, kw_only=True):
    """Defaults of compare and chat."""

    prompts: Annotated[str, _meta("file of prompts, one a line; empty: the run's prompts.txt", affects="display")] = ""
    temperature: Annotated[float, _meta("0: always the likeliest token", affects="display", ge=0, le=5)] = 0.7
    top_k: Annotated[int, _meta("sample among the k likeliest; 0: off", "ids", "display", ge=0)] = 50
    max_tokens: Annotated[int, _meta("longest answer", "tokens", "display", ge=1, le=1 << 16)] = 96
    seed: Annotated[int, _meta("same seed, same answer", affects="display", ge=0, le=2**31 - 1)] = 1
    system: Annotated[str, _meta("system prompt", affects="display")] = ""


class Config(msgspec.Struct, kw_only=True):
    """One field per table of `picollm.toml`."""

    run: RunConfig = msgspec.field(default_factory=RunConfig)
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
    chat: ChatConfig = msgspec.field(default_factory=ChatConfig)


class Knob(msgspec.Struct, frozen=True):
    """One field of one table, as help, forms and fingerprints need it."""

    key: str
    type: Any
    description: str
    unit: str
    affects: str
    auto: bool


@functools.cache
def _tables() -> dict[str, type[msgspec.Struct]]:
    return get_type_hints(Config)


@functools.cache
def knobs() -> dict[str, Knob]:
    """Every knob by its dotted key, in the order of the file. Read it only: the one table is shared by all callers."""
    found = {}
    for table, struct in _tables().items():
        for name, kind in get_type_hints(struct, include_extras=True).items():
            meta = next(m for m in kind.__metadata__ if isinstance(m, Meta) and m.extra)
            extra = meta.extra or {}
            found[f"{table}.{name}"] = Knob(
                f"{table}.{name}", kind, meta.description or "", extra["unit"], extra["affects"], extra["auto"]
            )
    return found


def flat(config: Config) -> dict[str, Any]:
    """`{"sft.lr": 0.8, …}`"""
    tables = msgspec.to_builtins(config)
    return {f"{table}.{key}": value for table, values in tables.items() for key, value in values.items()}


def default_file() -> Path:
    """The `picollm.toml` that ships with the package (or lies beside it in a checkout)."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "picollm.toml"
    return inside if inside.exists() else package.parent / "picollm.toml"


def layers(
    profile: str | None = None,
    file: Path | None = None,
    sets: Iterable[str] = (),
    environ: Mapping[str, str] | None = None,
) -> list[tuple[str, dict[str, Any]]]:
    """Every layer with its name, weakest first: dotted keys that it sets, checked. Raises `UserError`."""
    environ = os.environ if environ is None else environ
    shipped, profiles = _read(default_file())
    own: dict[str, Any] = {}
    if file is not None:
        own, own_profiles = _read(file)
        for name, tables in own_profiles.items():
            profiles[name] = {**profiles.get(name, {}), **tables}
    from_environment, from_sets = _from_environment(environ), parse_sets(sets)
    profile = profile or ({"run.profile": "pocket"} | own | from_environment | from_sets)["run.profile"]
    if profile not in profiles:
        raise UserError(f"unknown profile '{profile}': expected one of {', '.join(sorted(profiles))}")
    return [
        ("default", shipped),
        (f"profile {profile}", profiles[profile] | {"run.profile": profile}),
        (str(file), own),
        ("environment", from_environment),
        ("--set", from_sets),
    ]


def load(
    profile: str | None = None,
    file: Path | None = None,
    sets: Iterable[str] = (),
    environ: Mapping[str, str] | None = None,
) -> Config:
    """All layers merged and checked.

    Raises `UserError` naming file, line, key and what was expected.
    """
    found = layers(profile, file, sets, environ)
    values: dict[str, Any] = {}
    for _, layer in found:
        values |= layer
    values["run.profile"] = found[1][1]["run.profile"]
    return build(values)


def file_values(file: Path) -> dict[str, Any]:
    """What one settings file sets, its profiles aside, by dotted key. Raises `UserError`."""
    return _read(file)[0]


def profile_names(file: Path | None = None) -> list[str]:
    names = dict(_read(default_file())[1])
    if file is not None:
        names |= _read(file)[1]
    return list(names)


def load_file(file: Path) -> Config:
    """A complete configuration, as a run folder keeps it, with no profile and no environment."""
    return build(_read(file)[0])


def build(values: Mapping[str, Any]) -> Config:
    """Dotted keys, already checked one by one, to a Config."""
    tables: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        table, _, name = key.partition(".")
        tables.setdefault(table, {})[name] = value
    return msgspec.convert(tables, Config)


def dump(config: Config) -> str:
    """TOML text that `load_file` reads back."""
    return tomli_w.dumps(msgspec.to_builtins(config))


def template() -> str:
    """The commented defaults: what the head of `picollm.toml` says about every knob."""
    lines: list[str] = []
    defaults = flat(Config())
    table = ""
    for key, knob in knobs().items():
        head, _, name = key.partition(".")
        if head != table:
            table = head
            lines += ["", f"[{table}]"]
        note = knob.description + (f" [{knob.unit}]" if knob.unit else "")
        lines += [
            f"# {note}",
            tomli_w.dumps({name: defaults[key]}).strip() if defaults[key] != {} else f"{name} = {{}}",
        ]
    return "\n".join(lines).strip() + "\n"


def _read(path: Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """One TOML file to checked dotted values and its profiles' dotted values."""
    try:
        text = path.read_text(encoding="utf-8")
        document = tomllib.loads(text)
    except OSError as error:
        raise UserError(f"cannot read settings file {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text") from None
    except (ValueError, RecursionError) as error:  # besides TOMLDecodeError: an integer of 5,000 digits, 1,000 brackets
        raise UserError(f"{path}: not valid TOML: {error}") from None
    profiles = document.pop("profiles", {})
    where = _Where(path, text)
    if not isinstance(profiles, dict):
        raise UserError(f"{where.at('profiles')}: [profiles] must be a table of profiles")
    values = _check_tables(document, where, "")
    checked = {name: _check_tables(tables, where, f"profiles.{name}.") for name, tables in profiles.items()}
    return values, checked


def _check_tables(document: Any, where: _Where, prefix: str) -> dict[str, Any]:
    if not isinstance(document, dict):
        raise UserError(f"{where.at(prefix.rstrip('.'))}: expected tables")
    values = {}
    tables = _tables()
    for table, content in document.items():
        if table not in tables:
            raise UserError(
                f"{where.at(prefix + table)}: unknown table [{prefix}{table}]; expected one of {', '.join(tables)}"
            )
        if not isinstance(content, dict):
            raise UserError(f"{where.at(prefix + table)}: [{table}] must be a table")
        for name, value in content.items():
            place = functools.partial(where.at, f"{prefix}{table}.{name}")
            values[f"{table}.{name}"] = check(f"{table}.{name}", value, place)
    return values


def check(key: str, value: Any, where: str | Callable[[], str]) -> Any:
    """One value against its knob; returns it, converted. Raises `UserError` starting with `where`, which may be a
    function when finding the place takes longer than checking."""
    try:
        return _check(key, value)
    except UserError as error:
        raise UserError(f"{where if isinstance(where, str) else where()}: {error}") from None


def _check(key: str, value: Any) -> Any:
    all_knobs = knobs()
    if key not in all_knobs:
        table = key.partition(".")[0]
        near = [k for k in all_knobs if k.startswith(table + ".")] or sorted({k.partition(".")[0] for k in all_knobs})
        raise UserError(f"unknown key '{key}'; expected one of {', '.join(near)}")
    try:
        converted = msgspec.convert(value, all_knobs[key].type)
    except msgspec.ValidationError as error:
        reason = str(error)
        reason = reason[0].lower() + reason[1:]
        unit = f" ({all_knobs[key].unit})" if all_knobs[key].unit else ""
        shown = repr(value) if len(repr(value)) <= 80 else repr(value)[:77] + "..."
        raise UserError(f"{key} = {shown}: {reason}{unit}; {all_knobs[key].description}") from None
    if isinstance(converted, float) and not math.isfinite(converted):
        raise UserError(f"{key} = {value!r}: expected a finite number; {all_knobs[key].description}")
    return converted


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    values = {}
    for name, text in environ.items():
        match = re.fullmatch(r"PICOLLM_([A-Z_]+?)__([A-Z_]+)", name)
        if match:
            key = f"{match[1].lower()}.{match[2].lower()}"
            values[key] = check(key, _parse(key, text), f"environment variable {name}")
    return values


def parse_sets(sets: Iterable[str]) -> dict[str, Any]:
    """`["sft.lr=0.5"]` to checked dotted values. Raises `UserError`."""
    values = {}
    for item in sets:
        key, equals, text = item.partition("=")
        key = key.strip()
        if not equals:
            raise UserError(f"--set {item}: expected table.key=value, for example --set sft.lr=0.5")
        values[key] = check(key, _parse(key, text.strip()), f"--set {item}")
    return values


def _parse(key: str, text: str) -> Any:
    """A value written on a command line: TOML where it parses, else a bare string."""
    knob = knobs().get(key)
    if knob is not None and knob.type.__origin__ is str:
        text_value = text.strip()
        if not (text_value.startswith('"') and text_value.endswith('"') and len(text_value) > 1):
            return text_value
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text


class _Where:
    """Finds the line of a dotted key in TOML text; msgspec and tomllib name keys, not lines."""

    def __init__(self, path: Path, text: str) -> None:
        self.path = path
        self.lines = text.splitlines()

    def at(self, dotted: str) -> str:
        """`file:line` of the key, of its table when the key is written inline, or the file alone."""
        table, _, _ = dotted.rpartition(".")
        current = ""
        header = 0
        for number, line in enumerate(self.lines, 1):
            if match := re.match(r"\s*\[\[?\s*([^\]]+?)\s*\]", line):
                current = re.sub(r"[\s\"']", "", match[1])
                if current in (dotted, table) or (not header and current.startswith(dotted + ".")):
                    header = header or number
                if current == dotted:
                    return f"{self.path}:{number}"
            elif match := re.match(r"\s*([A-Za-z0-9_.\"'-]+)\s*=", line):
                key = re.sub(r"[\"']", "", match[1])
                if f"{current}.{key}".lstrip(".") == dotted:
                    return f"{self.path}:{number}"
        return f"{self.path}:{header}" if header else str(self.path)
