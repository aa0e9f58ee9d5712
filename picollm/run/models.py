"""The models of a run: of each training stage the one that finished, and every earlier checkpoint that is still there.

The finished ones are called base, mid, sft and rl. A checkpoint is called after its model and its step, `sft@310`.
"""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from picollm.run import pipeline
from picollm.run.errors import UserError
from picollm.run.folder import Run
from picollm.run.structs import complete

_STEP = re.compile(r"step-(\d+)")


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """`step` is 0 and `context` (tokens) None where the checkpoint does not say; `score` is bits per byte, if any.

    `written` (nanoseconds) tells a checkpoint from an earlier one of the same name.
    """

    name: str
    stage: str
    folder: Path
    step: int = 0
    context: int | None = None
    score: float | None = None
    written: int = 0

    @property
    def finished(self) -> bool:
        """What its stage ended with, not a checkpoint on the way."""
        return "@" not in self.name


class _Shape(msgspec.Struct):
    seq_len: int | None = None


@complete
class _Meta(msgspec.Struct):
    shape: _Shape = msgspec.field(default_factory=_Shape)
    score: float | None = None


def models(run: Run) -> list[Model]:
    """Everything of a run that can answer, in the order it was made: checkpoints by step, then what they led to."""
    found: list[Model] = []
    for name, stage in pipeline.MODEL_STAGES.items():
        try:
            last = run.output(stage, "checkpoint")
        except UserError:  # not finished, or gone
            last = None
        folder = last.parent if last else run.dir / pipeline.CHECKPOINT_FOLDERS[stage]
        found += [
            _model(f"{name}@{step_of(each)}", stage, each)
            for each in sorted(folder.glob("step-*"), key=step_of)
            if (last is None or each.name != last.name) and step_of(each) and (each / "manifest.json").is_file()
        ]
        if last is not None:
            found.append(_model(name, stage, last))
    return found


def step_of(folder: Path) -> int:
    """The step in a checkpoint's name; 0 when it has none."""
    match = _STEP.fullmatch(folder.name)
    return int(match[1]) if match else 0


def family(name: str) -> str:
    """The stage's model behind a name: `sft@310`, `demo/sft` and `sft` are sft."""
    return name.rpartition("/")[2].partition("@")[0]


def is_base(name: str) -> bool:
    """Whether it only continues text."""
    return family(name) == "base"


def _model(name: str, stage: str, folder: Path) -> Model:
    try:
        meta = msgspec.json.decode((folder / "meta.json").read_bytes(), type=_Meta)
    except (OSError, msgspec.DecodeError):  # the name is enough; loading it says what is wrong
        meta = _Meta()
    try:
        written = (folder / "manifest.json").stat().st_mtime_ns
    except OSError:
        written = 0
    return Model(name=name, stage=stage, folder=folder, step=step_of(folder), context=meta.shape.seq_len,
                 score=meta.score, written=written)  # fmt: skip
