"""A new run that begins with what another one made: `picollm run --from sft --base runs/x`.

The new folder holds everything itself, so that the other run can be changed, renamed or deleted: events and small
files are copied, checkpoints are hard links to the same bytes (copies on another disk), which nobody ever rewrites.
What comes from where, with the hashes, is kept in `base.json`. The states need no second rule: the copied events say
what each stage was made from, so a setting that differs makes it stale like any other, and then there is no new run.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import time
from pathlib import Path
from typing import Any

import msgspec

from picollm.run import config as settings
from picollm.run import failures, pipeline
from picollm.run.errors import UserError
from picollm.run.folder import FORMAT, Run, name_of_new, write_atomic
from picollm.run.planned import Inherited, Origin, plan_inputs

KEPT = re.compile(r"attempt-(\d+)\.(events\.jsonl|console\.log|config\.toml|ready\.json)")
ALWAYS_MADE = ("doctor",)  # it looks at the machine as it is now


def branch(base: Run, name: str, stage: str, changes: dict[str, Any]) -> Run:
    """Lay out run `name`, where everything before `stage` is what `base` made; `changes` are settings by dotted key.

    What is not done in `base`, though `stage` is not made from it, is left to be made.

    Preflight's plan is taken over as long as the settings that it was made from are the same. If they are not, it is
    left to be made, and the sizes of what is taken over are written down as settings.

    Raises `UserError` when what `stage` is made from is not done in `base`, a setting would make it stale, its weights
    are not those that it finished with, or the new run exists; nothing is left behind then.
    """
    before = pipeline.NAMES[: pipeline.NAMES.index(pipeline.stage(stage).name)]
    final = name_of_new(name)
    states = {status.name: status for status in base.statuses()}
    done = [other for other in before if states[other].state == "done" or states[other].lost]
    for other in made_from(stage):
        if other not in done:
            why = f" ({states[other].reason})" if states[other].reason else ""
            raise UserError(
                f"{base.dir}: '{other}' is {states[other].state}{why}, and '{stage}' is made from what it makes; "
                f"make it first: picollm run --run {base.dir} --from {other}"
            )
    wishes = settings.flat(base.wishes())
    if changes.get("run.profile", wishes["run.profile"]) != wishes["run.profile"]:
        raise UserError(
            f"{base.name} was made with profile '{wishes['run.profile']}', and what is taken from it decides the "
            "profile; leave out run.profile and change single settings with --set"
        )
    values = wishes | changes
    taken = [other for other in done if other not in ALWAYS_MADE]
    if "preflight" in taken and plan_inputs(settings.build(values)) != plan_inputs(base.wishes()):
        taken.remove("preflight")
    if "preflight" not in taken:
        values |= {key: value for key, value in _planned(base, taken).items() if not values[key]}
    draft = Run(final.parent / f".{final.name}-{os.getpid()}")
    try:
        origin = Origin(run=base.name, dir=str(base.dir), stage=stage, made=time.strftime("%Y-%m-%dT%H:%M:%S%z"))
        for other in taken:
            origin.stages[other] = _take_over(base, draft, other)
        write_atomic(draft.dir / "format", f"{FORMAT}\n")
        for file in ("prompts.txt", *(["plan.json"] if "preflight" in taken else [])):
            if (base.dir / file).exists():
                _copy(base.dir / file, draft.dir / file)
        write_atomic(draft.dir / "base.json", msgspec.json.format(msgspec.json.encode(origin)))
        draft.save_config(settings.build(values))
        _refuse_stale(draft, base, stage, taken)
        os.rename(draft.dir, final)
    except FileNotFoundError as error:
        raise UserError(f"{base.dir}: {error.filename} is gone, and the new run needs it") from None
    except OSError as error:
        if final.exists():
            raise UserError(f"run '{final.name}' exists already in {final.parent}; choose another name") from None
        raise UserError(f"cannot write {final}: {error.strerror}; choose another folder") from None
    finally:
        shutil.rmtree(draft.dir, ignore_errors=True)
    return Run(final)


def made_from(stage: str) -> tuple[str, ...]:
    """The stages whose artifacts go into this one, directly or not, in pipeline order."""
    found = set(pipeline.stage(stage).needs)
    for other in reversed(pipeline.NAMES):
        if other in found:
            found |= set(pipeline.stage(other).needs)
    return tuple(other for other in pipeline.NAMES if other in found)


def beginnings(base: Run) -> tuple[str, ...]:
    """The stages with which a new run on `base` may begin: all that they are made from is done there."""
    done = {status.name for status in base.statuses() if status.state == "done" or status.lost}
    return tuple(name for name in pipeline.NAMES if made_from(name) and done.issuperset(made_from(name)))


def _planned(base: Run, taken: list[str]) -> dict[str, Any]:
    """What the plan filled in for the model and for the stages that are taken over."""
    tables = {"model", *(table for name in taken for table in pipeline.stage(name).tables)}
    resolved = settings.flat(base.config())
    return {
        key: resolved[key] for key, knob in settings.knobs().items() if knob.auto and key.partition(".")[0] in tables
    }


def _take_over(base: Run, new: Run, name: str) -> Inherited:
    """One stage: its attempts up to the one that finished, its own files, what it made and what it shows of it."""
    number, finished = base.finished_attempt(name), base.finished(name)
    assert number is not None and finished is not None  # it is done
    for file in sorted(base.stage_dir(name).iterdir()):
        attempt = KEPT.fullmatch(file.name)
        other = file.name in ("lock", "stop") or file.name.startswith(("attempt-", "."))
        if (attempt and int(attempt[1]) <= number) or not (attempt or other):
            _copy(file, new.stage_dir(name) / file.name)
    for path in finished.paths.values():
        if not os.path.isabs(path):
            fixed = Path(path).parts[0] in pipeline.CHECKPOINT_FOLDERS.values()
            _copy(base.dir / path, new.dir / path, link=fixed)
    for path in (f"samples/{name}", *([f"eval/{failures.FOLDER}"] if name == "chat_eval" else [])):
        if (base.dir / path).exists():
            _copy(base.dir / path, new.dir / path)
    if "checkpoint" in finished.paths:
        _check_weights(base, name, new.dir / finished.paths["checkpoint"], finished.artifacts)
    return base.inherited(name) or Inherited(
        run=base.name,
        dir=str(base.dir),
        attempt=number,
        fingerprint=base.started_with(name, number),
        artifacts=dict(finished.artifacts),
    )


def _copy(source: Path, target: Path, link: bool = False) -> None:
    """A file or a folder; `link`: the same bytes where the disk allows it."""
    if source.is_dir():
        for file in source.iterdir():
            _copy(file, target / file.name, link)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if link:
        with contextlib.suppress(OSError):
            os.link(source, target)
            return
    if not target.exists():
        shutil.copy2(source, target)


def _check_weights(base: Run, name: str, checkpoint: Path, artifacts: dict[str, str]) -> None:
    """Raises `UserError` when the weights are not those that the stage finished with, or of another tokenizer."""
    weights = checkpoint / "model.safetensors"
    if not weights.exists():
        return
    with open(weights, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != artifacts.get("checkpoint"):
        raise UserError(
            f"{base.dir}: the weights of '{name}' have sha256 {digest[:12]} and were saved with "
            f"{str(artifacts.get('checkpoint'))[:12]}; make that stage again"
        )
    made = base.made("tokenizer")
    theirs = msgspec.json.decode((checkpoint / "meta.json").read_bytes()).get("tokenizer")
    if made is not None and theirs != made.artifacts.get("tokenizer"):
        raise UserError(
            f"{base.dir}: '{name}' was trained with another tokenizer ({str(theirs)[:12]}) than the run has now "
            f"({str(made.artifacts.get('tokenizer'))[:12]}); make that stage again"
        )


def _refuse_stale(draft: Run, base: Run, stage: str, taken: list[str]) -> None:
    stale = [s for s in draft.statuses() if s.name in taken and s.state != "done" and not s.lost]
    if stale:
        first = stale[0]
        raise UserError(
            f"--from {stage} keeps what {base.name} made before, but {first.name} would be {first.state}: "
            f"{first.reason}; leave that as it is, or use --from {first.name}"
        )
