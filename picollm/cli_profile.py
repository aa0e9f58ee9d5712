"""`picollm profile`: some steps of a training stage in a copy of its run, and the table of where their time went."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from picollm.run import config as settings
from picollm.run import launch, pipeline, serving
from picollm.run.errors import UserError
from picollm.run.folder import ACTIVE, Run, runs_folder

STEPS_BEFORE = 4
"""Not recorded by the stage: compiling, the first allocations, the start of the recorder."""
HUB_SOURCES = ("climbmix", "fineweb-edu")


def profile(
    run: Annotated[str | None, typer.Option("--run", help="run name (or its folder); default: the newest")] = None,
    profile: Annotated[str | None, typer.Option("--profile", help="no run, but this profile on this machine")] = None,
    set: Annotated[list[str] | None, typer.Option("--set", help="one setting of it, table.key=value")] = None,
    stage: Annotated[str, typer.Option("--stage", help="pretrain, midtrain, sft or rl")] = "pretrain",
    steps: Annotated[int, typer.Option("--steps", min=1, max=1000, help="steps to time, and to record")] = 20,
    trace: Annotated[Path | None, typer.Option("--trace", help="write a Chrome trace of the recorded steps")] = None,
) -> int:
    """Where a training step's time goes: its phases, and the operators that take longest."""
    if profile is None and not set:
        return of_run(_named(run), stage, steps, trace)
    if run is not None or stage != "pretrain":
        raise UserError("--profile and --set make a run of their own, as far as pretrain: leave out --run and --stage")
    with throwaway(profile, set or []) as found:
        return of_run(found, stage, steps, trace)


def of_run(found: Run, stage: str, steps: int, trace: Path | None) -> int:
    """Run the steps and print the table; the run stays as it was. Returns the exit code.

    Raises `UserError` for a stage that does not train, or one whose turn has not come.
    """
    if stage not in pipeline.CHECKPOINT_FOLDERS:
        raise UserError(f"'{stage}' does not train: choose one of {', '.join(pipeline.CHECKPOINT_FOLDERS)}")
    if found.status(stage).state in ACTIVE:
        raise UserError(f"{found.name}: '{stage}' is running and both would be slow; stop it first, or wait")
    if trace is not None and not trace.expanduser().absolute().parent.is_dir():
        raise UserError(f"--trace {trace}: there is no such folder; make it first")
    with copy(found, stage, steps) as scratch:
        out = scratch.dir / "profile.txt"
        words = ["--run", str(scratch.dir), "--stage", stage, "--steps", str(steps), "--out", str(out)]
        words += ["--trace", str(trace.expanduser().absolute())] if trace else []
        nproc = launch.ranks(scratch.config(), stage)
        several = ["torch.distributed.run", "--standalone", f"--nproc-per-node={nproc}", "-m", "--", "stages.profile"]
        argv = [sys.executable, "-m", *(several if nproc > 1 else ["stages.profile"]), *words]
        # What the stage says on its way is not the table; what the recorder says of itself, nobody needs.
        with open(scratch.dir / "profile.log", "w+", encoding="utf-8", errors="replace") as log:
            code = subprocess.run(argv, stdout=2, stderr=log, env=launch.child_environment()).returncode
            log.seek(0)
            said = log.read().splitlines()
        if code == 0:
            print(out.read_text(encoding="utf-8"), end="")
            return 0
        errors = [line.removeprefix("error: ") for line in said if line.startswith("error: ")]
        if errors:
            raise UserError(errors[-1])
        print("\n".join(said[-40:]), file=sys.stderr)
        return 130 if code in (130, -2) else 1


def _named(name: str | None) -> Run:
    """The run of that name, or the newest. Raises `UserError` when there is none."""
    found = [Run.open(name)] if name else Run.all()
    if not found:
        raise UserError(f"no runs in {runs_folder()}; start one with: picollm run, or give --profile")
    return found[0]


@contextlib.contextmanager
def copy(found: Run, stage: str, steps: int) -> Iterator[Run]:
    """The run as it is before `stage`, with links to everything else; what happens in it leaves no trace."""
    folder = found.dir / "jobs" / f"profile-{os.getpid()}"
    own = {pipeline.CHECKPOINT_FOLDERS[stage], "stages", "jobs", "conductor", "log", "config.toml"}
    values = settings.flat(found.wishes()) | {
        f"{stage}.steps": 2 * steps + STEPS_BEFORE + 1,
        f"{stage}.save_every": 1e6,
        "pretrain.eval_every": 1e6,
        "rl.eval_every": 10**6,
        "rl.eval_items": 8,
    }
    folder.mkdir(parents=True)
    try:
        for path in found.dir.iterdir():
            if path.name not in own:
                (folder / path.name).symlink_to(path)
        (folder / "stages").mkdir()
        for path in (found.dir / "stages").glob("*"):
            if path.name != stage:
                (folder / "stages" / path.name).symlink_to(path)
        scratch = Run(folder)
        scratch.save_config(settings.build(values))
        yield scratch
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            folder.parent.rmdir()


@contextlib.contextmanager
def throwaway(profile_name: str | None, sets: list[str]) -> Iterator[Run]:
    """A run of a profile, planned on this machine, as far as pretraining; a Hub profile gets made-up text instead.

    Raises `UserError` with the reason when a stage on the way there fails.
    """
    config = settings.load(profile_name, None, [*sets, "log.wandb=off", "log.tensorboard=false"])
    run = Run.create(f"profile-{os.getpid()}", config)
    try:
        if config.data.source in HUB_SOURCES:
            text = run.dir / "made-up.txt"
            text.write_text(made_up_text(config.tokenizer.vocab_size), encoding="utf-8")
            run.set([f"data.source={text}"])
        for name in ("preflight", "dataset", "tokenizer"):
            print(f"{name} …", file=sys.stderr, flush=True)
            if launch.launch_here(run.dir, name):
                reason = run.status(name).reason or serving.last_line(run.console_file(name, 1))
                raise UserError(f"profile of '{config.run.profile}': {name} failed: {reason}")
        yield run
    finally:
        shutil.rmtree(run.dir, ignore_errors=True)


def made_up_text(vocab_size: int) -> str:
    """Documents of random words, enough different ones for a tokenizer of that size: speed does not depend on sense."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(3, 9))) for _ in range(2 * vocab_size)]
    documents = [" ".join(draw.choices(words, k=400)) for _ in range(max(40, vocab_size // 40))]
    return "\n\n".join(documents) + "\n"
