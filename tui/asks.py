"""What the app asks of a run: create, launch, redo, stop. Called in threads; nothing here touches a widget."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from pathlib import Path

from picollm.run import config as settings
from picollm.run import pipeline
from picollm.run.errors import UserError
from picollm.run.folder import Run, folder_of, new_name
from picollm.run.status import asked_for

# The conductor is imported where something is asked of it: the first frame does not wait for it.


@dataclass(frozen=True)
class Options:
    """What the command line said."""

    run: str
    profile: str | None = None
    config: Path | None = None
    sets: tuple[str, ...] = ()
    go: bool = False
    readonly: bool = False
    tab: str = "stage"
    stage: str = ""
    problems: tuple[str, ...] = field(default=())


def resolve(name: str | None, profile: str | None, config: Path | None, sets: list[str]) -> Options:
    """Which run is meant, with everything that can be wrong found before the screen is taken over.

    Raises `UserError`.
    """
    if name is None:
        newest = Run.all()[:1]
        name = newest[0].name if newest else "demo"
    folder = folder_of(name)
    if (folder / "config.toml").is_file():
        Run.open(name)
        if profile or config:
            raise UserError(
                f"run '{folder.name}' exists and keeps its profile; change single settings with --set, "
                "or choose another --run NAME"
            )
        settings.parse_sets(sets)
    elif folder.is_dir() and any(folder.iterdir()) and "/" in name:
        raise UserError(f"{folder} is not a run folder (no config.toml)")
    else:
        new_name(name)
        if profile or config or sets:
            settings.load(profile, config, sets)
    return Options(run=name, profile=profile, config=config, sets=tuple(sets))


@functools.cache
def wanted(options: Options) -> settings.Config:
    """The settings of the run that would be made, as its files were when this was first asked, for a preview. Raises
    `UserError`."""
    return settings.load(options.profile, options.config, options.sets)


def open_or_create(options: Options) -> Run:
    """The run, laid out when it is new; `--set` on a run that exists makes a revision of its settings."""
    if (folder_of(options.run) / "config.toml").is_file():
        run = Run.open(options.run)
        run.set(list(options.sets))
        return run
    return Run.create(options.run, settings.load(options.profile, options.config, options.sets))


def launch(options: Options, stages: tuple[str, ...]) -> str:
    """Ask for these stages. Raises `UserError` naming what is stale; the app then asks whether to redo it."""
    from picollm.run import conductor

    run = open_or_create(options)
    conductor.ask(run, conductor.plan_request(run, list(stages)))
    if len(stages) == 1:
        return f"{pipeline.stage(stages[0]).title} asked for"
    return f"{len(stages)} stages asked for; what is done is kept"


def redo(options: Options, again: tuple[str, ...], stages: tuple[str, ...]) -> str:
    """Make `again` anew, ignoring their checkpoints, and then `stages` that are not done."""
    from picollm.run import conductor

    run = open_or_create(options)
    wanted = [name for name in pipeline.NAMES if name in again or name in stages]
    conductor.ask(run, conductor.Request(stages=wanted, redo=list(again), fresh=list(again)))
    return f"{', '.join(pipeline.stage(name).title for name in again)}: made again"


def launch_all(folder: str) -> str:
    """Ask for every stage of a run that is not done. Raises `UserError` when something is stale."""
    from picollm.run import conductor

    run = Run.open(folder)
    conductor.ask(run, conductor.plan_request(run, list(pipeline.NAMES)))
    return f"{run.name}: every stage that is not done is asked for"


def stop(options: Options, kill: bool) -> str:
    """Ask what runs to save and stop; with `kill` end it now."""
    from picollm.run import conductor

    run = Run.open(options.run)
    queue = asked_for(run)
    asked = conductor.stop(run, kill=kill)
    if not asked:
        return "nothing is at work now; what was still to come is called off" if queue else "nothing runs"
    titles = ", ".join(pipeline.stage(name).title for name in asked)
    return f"{titles}: killed" if kill else f"{titles}: saving, then stopping"


def stale_reasons(options: Options) -> list[str]:
    """One line for each stage of a run that exists which waits for a person's word before it is made again."""
    try:
        run = Run.open(options.run)
    except UserError:
        return []
    return [f"{pipeline.stage(s.name).title}: {s.reason}" for s in run.statuses() if s.undecided]
