"""The pipeline: which stages there are, in order, what each needs, and what a person should know about it.

One row per stage and no second list anywhere: the conductor, the command line, the app's rail, the report and the
tests read this one.
"""

from __future__ import annotations

import msgspec

from picollm.run.errors import UserError

TYPICAL_MIN = 5.0


class Stage(msgspec.Struct, frozen=True, kw_only=True):
    """One stage. Name = table in `picollm.toml` = `stages/<name>.py` = `runs/<run>/stages/<name>/`.

    `needs`: stages whose artifacts go into this one (their hashes are part of its fingerprint). `after`: order only.
    `tables`: the settings it reads. `trains`: runs the training loop, so it checkpoints, resumes and runs under
    torchrun; `ranked`: runs under torchrun without training. `early`: starts as soon as what it needs can be used
    (`events.Ready`), and waits for the rest of it while it works. `version` is raised by hand when the code changes
    what a stage makes. `typical_s`: seconds it takes in a run of `TYPICAL_MIN` minutes.
    """

    name: str
    title: str
    purpose: str
    expect: str
    needs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()
    trains: bool = False
    ranked: bool = False
    early: bool = False
    version: int = 1
    typical_s: float = 5.0


STAGES: tuple[Stage, ...] = (
    Stage(
        name="doctor",
        title="Doctor",
        purpose="Checks Python, packages, memory, disk, network and GPUs, and says how to mend what is wrong.",
        expect="All ok, or a warning with its fix; only a failed check stops the run.",
        typical_s=0.2,
    ),
    Stage(
        name="preflight",
        title="Preflight",
        purpose="Measures this machine, chooses precision, attention and compile, and plans sizes and steps once.",
        expect="A plan with a predicted time for every stage; the figures behind each choice are kept.",
        after=("doctor",),
        tables=("model", "machine"),
        ranked=True,
        typical_s=20,
    ),
    Stage(
        name="dataset",
        title="Dataset",
        purpose="Gathers the raw text, removes duplicates, and sets the validation documents aside.",
        expect="Counts of documents and bytes; the same text gives the same hash.",
        after=("preflight",),
        tables=("data",),
        typical_s=6,
    ),
    Stage(
        name="tokenizer",
        title="Tokenizer",
        purpose="Learns byte-pair merges from the text and turns all of it into token ids.",
        expect="About 3 to 4 bytes per token on English with a small vocabulary.",
        needs=("dataset",),
        tables=("tokenizer",),
        early=True,
        typical_s=5,
    ),
    Stage(
        name="tokenizer_eval",
        title="Tokenizer eval",
        purpose="Measures bytes per token and round trips on several kinds of text.",
        expect="Every round trip exact; text unlike the corpus costs more tokens.",
        needs=("tokenizer",),
        early=True,
        typical_s=2,
    ),
    Stage(
        name="pretrain",
        title="Pretrain",
        purpose="Trains the base model to predict the next token of raw text.",
        expect="Loss starts near ln(vocabulary) and falls fast, then slowly; no spike stays.",
        needs=("tokenizer",),
        after=("tokenizer_eval",),
        tables=("model", "pretrain"),
        trains=True,
        early=True,
        typical_s=100,
        version=2,
    ),
    Stage(
        name="base_eval",
        title="Base eval",
        purpose="Bits per byte on the validation text, samples (the base model continues, it does not answer), CORE.",
        expect="Bits per byte close to the last validation reading of pretraining.",
        needs=("pretrain",),
        tables=("base_eval",),
        ranked=True,
        typical_s=12,
    ),
    Stage(
        name="identity",
        title="Identity",
        purpose="Builds or takes the conversations that tell the model who it is, and verifies their checksum.",
        expect="At least 1,000 rows whose sha256 matches the manifest; anything else stops the run.",
        after=("base_eval",),
        tables=("identity",),
        typical_s=2,
    ),
    Stage(
        name="midtrain",
        title="Midtrain",
        purpose="Teaches the chat format and the tasks on a mixture of conversations.",
        expect="The loss jumps up, because the format is new, and falls within a few dozen steps.",
        needs=("pretrain", "identity"),
        tables=("midtrain",),
        trains=True,
        typical_s=30,
    ),
    Stage(
        name="sft",
        title="SFT",
        purpose="Fine-tunes on the assistant's words only: user turns and tool output carry no loss.",
        expect="A lower loss than midtraining; answers become short and end properly.",
        needs=("midtrain", "identity"),
        tables=("sft",),
        trains=True,
        typical_s=45,
    ),
    Stage(
        name="rl",
        title="RL",
        purpose="GRPO: samples several answers per question and makes the better than average ones likelier.",
        expect="Reward rises with noise; held-out accuracy follows.",
        needs=("sft",),
        tables=("rl",),
        trains=True,
        typical_s=45,
    ),
    Stage(
        name="chat_eval",
        title="Chat eval",
        purpose="Accuracy on every held-out task for base, mid, sft and rl, with 95 % intervals.",
        expect="Base near chance, SFT well above it, RL above SFT on the task it practised.",
        needs=("pretrain", "midtrain", "sft", "rl"),
        tables=("chat_eval",),
        ranked=True,
        typical_s=30,
    ),
    Stage(
        name="report",
        title="Report",
        purpose="Puts everything measured into report/report.md and run_manifest.json.",
        expect="Base, mid, sft and rl side by side; plan against outcome.",
        needs=("base_eval", "chat_eval", "tokenizer_eval"),
        after=("dataset", "tokenizer"),
        tables=("report",),
        typical_s=2,
    ),
)

BY_NAME: dict[str, Stage] = {stage.name: stage for stage in STAGES}
NAMES: tuple[str, ...] = tuple(BY_NAME)

CHECKPOINT_FOLDERS = {
    "pretrain": "base_checkpoints",
    "midtrain": "mid_checkpoints",
    "sft": "chatsft_checkpoints",
    "rl": "rl_checkpoints",
}
MODEL_STAGES = {"base": "pretrain", "mid": "midtrain", "sft": "sft", "rl": "rl"}


def stage(name: str) -> Stage:
    """Raises `UserError` for an unknown name, listing the known ones."""
    if name not in BY_NAME:
        raise UserError(f"unknown stage '{name}': expected one of {', '.join(NAMES)}")
    return BY_NAME[name]


def title(name: str) -> str:
    """What people call a stage; the name itself of one that a run remembers and that there is no more."""
    return BY_NAME[name].title if name in BY_NAME else name


def unplanned_s(name: str, minutes: float) -> float | None:
    """Seconds to expect before preflight has planned the run, from its budget; None where the machine's speed decides
    (`run.minutes = 0`) and nobody has measured it."""
    typical = stage(name).typical_s
    if name in ("doctor", "preflight"):
        return typical
    return typical * minutes / TYPICAL_MIN if minutes else None


def upstream(name: str) -> tuple[str, ...]:
    """What must be done before `name` may start, in pipeline order."""
    row = stage(name)
    return tuple(other for other in NAMES if other in row.needs or other in row.after)


def before(name: str) -> tuple[str, ...]:
    """Everything that must be done before `name` may start, directly or not, in pipeline order."""
    found = set(upstream(name))
    for other in reversed(NAMES):
        if other in found:
            found |= set(upstream(other))
    return tuple(other for other in NAMES if other in found)


def downstream(name: str) -> tuple[str, ...]:
    """Every stage that depends on `name`, directly or not, in pipeline order."""
    found = {name}
    for other in STAGES:
        if found & set(other.needs):
            found.add(other.name)
    return tuple(other for other in NAMES if other in found and other != name)


def from_stage(name: str) -> tuple[str, ...]:
    """`name` and everything after it."""
    stage(name)
    return NAMES[NAMES.index(name) :]
