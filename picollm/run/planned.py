"""What a run is made from: what preflight planned, what another run made before, and what decides a stage's result."""

from __future__ import annotations

import hashlib
import json
import re
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from picollm.run import config as settings
from picollm.run import pipeline
from picollm.run.structs import complete

if TYPE_CHECKING:
    from picollm.run.folder import Run

_TASK_FILE = re.compile(r"([:,] *path *= *)([^,\n]*)")  # "custom:path=me.jsonl"
FILES = (
    "data.source", "identity.file", "identity.facts", "midtrain.custom", "sft.custom", "base_eval.core", "chat.prompts",
)  # fmt: skip
TASKS = ("midtrain.mixture", "sft.mixture", "rl.task", "chat_eval.tasks")
NO_FILES = ("", "pydocs", "climbmix", "fineweb-edu", "auto")


@complete
class Plan(msgspec.Struct, kw_only=True):
    """What preflight resolved: `values` fills the settings left at 0, `seconds` predicts every stage."""

    values: dict[str, Any] = {}
    seconds: dict[str, float] = {}
    choices: dict[str, str] = {}
    figures: dict[str, dict[str, float]] = {}
    notes: dict[str, Any] = {}
    inputs: dict[str, Any] = {}


class Inherited(msgspec.Struct, kw_only=True):
    """A stage that another run made: which attempt of it is the one taken over, and what came of it."""

    run: str
    dir: str
    attempt: int
    fingerprint: str = ""
    artifacts: dict[str, str] = {}


@complete
class Origin(msgspec.Struct, kw_only=True):
    """`base.json`: the run that this one was branched from (`branch`), where it goes its own way, and what it took."""

    run: str
    dir: str
    stage: str
    made: str
    stages: dict[str, Inherited] = {}


def inputs_of(run: Run, name: str, config: settings.Config | None = None) -> dict[str, Any]:
    """Everything that decides a stage's result: its settings, the seed, what it is fed, its version."""
    row = pipeline.stage(name)
    config = config or run.config()
    values = settings.flat(config)
    found: dict[str, Any] = {"version": row.version, "run.seed": config.run.seed}
    for key, knob in settings.knobs().items():
        if key.partition(".")[0] in row.tables and knob.affects == "result" and knob.counts(values[key]):
            found[key] = values[key]
    if name == "preflight":
        found = {k: v for k, v in found.items() if k != "run.seed"} | plan_inputs(run.wishes())
    for key in (f"{name}.custom", f"{name}.file", f"{name}.facts", f"{name}.core"):
        if values.get(key) not in (None, "", "auto"):
            found[f"{key} content"] = _content(Path(values[key]).expanduser())
    for key in (f"{name}.mixture", f"{name}.task", f"{name}.tasks"):
        written = values.get(key) or ()
        files = _TASK_FILE.findall("\n".join([written] if isinstance(written, str) else written))
        if files:
            found[f"{key} content"] = " ".join(_content(Path(file.strip())) for _, file in files)
    for need in row.needs:
        done = run.made(need)
        for artifact, digest in (done.artifacts if done else {}).items():
            found[f"{need}:{artifact}"] = digest
    return found


def with_whole_paths(values: dict[str, Any]) -> dict[str, Any]:
    """Settings by dotted key whose files are found from any folder: relative ones are meant from the present one."""

    def whole(file: str) -> str:
        return file if file in NO_FILES or "://" in file else str(Path(file).expanduser().absolute())

    def task(written: str) -> str:
        return _TASK_FILE.sub(lambda found: found[1] + whole(found[2].strip()), written)

    found = dict(values)
    for key in values.keys() & set(FILES):
        found[key] = whole(values[key])
    for key in values.keys() & set(TASKS):
        named = values[key]
        found[key] = task(named) if isinstance(named, str) else {task(name): count for name, count in named.items()}
    return found


def plan_inputs(config: settings.Config) -> dict[str, Any]:
    """The wishes that the plan was made from: change one and the plan is stale.

    Not `launch.nproc` and not `[machine]`: a run goes on with another number of ranks or rows at a time, and its
    predictions merely become worse.
    """
    values = settings.flat(config)
    keys = [key for key, knob in settings.knobs().items() if knob.auto and not key.startswith("machine.")]
    keys += [key for key in values if key.startswith("model.")] + ["pretrain.ratio"]
    keys += [f"{table}.rows" for table in ("midtrain", "sft")]
    keys += ["run.minutes", "tokenizer.vocab_size", "rl.questions", "rl.samples", "rl.max_tokens"]
    keys += [key for key in values if key.endswith(".share")]
    if not values["run.minutes"]:  # the lengths follow from the mixtures, not from the time
        keys += ["midtrain.mixture", "midtrain.custom", "sft.mixture", "sft.custom"]
    return {key: values[key] for key in sorted(set(keys)) if settings.knobs()[key].counts(values[key])}


def apply_plan(config: settings.Config, plan: Plan | None) -> settings.Config:
    """Fill the settings left at 0 with what preflight planned; a value the person wrote always wins."""
    if plan is None:
        return config
    values = settings.flat(config)
    for key, knob in settings.knobs().items():
        if knob.auto and not values[key] and key in plan.values:
            values[key] = settings.check(key, plan.values[key], "plan.json (run preflight again)")
    return settings.build(values)


def _content(file: Path) -> str:
    """The first digits of a file's sha256, "missing" when it is not there; read again only when it was touched.

    Of a folder: of the names and contents of all files in it but hidden ones.
    """
    try:
        if file.is_dir():
            parts = sorted(part for part in file.rglob("[!.]*") if part.is_file())
            listed = "".join(f"{part.relative_to(file).as_posix()}\n{_content(part)}\n" for part in parts)
            return hashlib.sha256(listed.encode()).hexdigest()[:16]
        stat = file.stat()
        return _digest(str(file), stat.st_mtime_ns, stat.st_size, stat.st_ino)
    except OSError:
        return "missing"


@lru_cache(maxsize=256)
def _digest(file: str, touched_ns: int, size: int, inode: int) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:16]


def fingerprint(inputs: dict[str, Any]) -> str:
    """Hex sha256 of a stage's inputs."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()
