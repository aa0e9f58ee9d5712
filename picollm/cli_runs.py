"""`picollm runs`: all runs, and what one does with a run as a whole."""

from __future__ import annotations

import sys
import time
from typing import Annotated

import msgspec
import typer

from picollm.cli_follow import duration
from picollm.cli_plan import gib
from picollm.cli_show import table
from picollm.run import config as settings
from picollm.run import pipeline, shelf
from picollm.run.errors import UserError
from picollm.run.folder import Run, runs_folder
from picollm.run.overview import Overview, Summary

runs = typer.Typer(name="runs", help="All runs; rename, copy, archive, restore, delete them, and keep notes.",
                   invoke_without_command=True, rich_markup_mode=None)  # fmt: skip

Name = Annotated[str, typer.Argument(help="the run")]
Sets = Annotated[list[str] | None, typer.Option("--set", help="one setting, table.key=value; may be repeated")]


@runs.callback()
def listed(
    context: typer.Context,
    archived: Annotated[bool, typer.Option("--archived", help="those in the archive, too")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="machine-readable")] = False,
) -> None:
    """All runs, newest first; rename, copy, archive, restore, delete them, and keep notes."""
    if context.invoked_subcommand is not None:
        return
    found, _ = Overview(archived).look(float("inf"))
    if as_json:
        print(msgspec.json.format(msgspec.json.encode(found), indent=1).decode())
    else:
        print(listing(found) if found else f"no runs in {runs_folder()}; start one with: picollm run")


@runs.command()
def rename(run: Name, name: Annotated[str, typer.Argument(help="its new name")]) -> int:
    """Give a run that is not at work another name."""
    print(f"{run} is now {shelf.rename(Run.open(run), name).name}")
    return 0


@runs.command()
def copy(
    run: Name,
    name: Annotated[str, typer.Argument(help="name of the new run")],
    set: Annotated[
        list[str] | None, typer.Option("--set", help="one setting, table.key=value; may be repeated")
    ] = None,
    from_: Annotated[
        str | None, typer.Option("--from", help="take over what was made before this stage; else nothing")
    ] = None,
) -> int:
    """A new run with the settings of another one. It is not started."""
    if from_:
        pipeline.stage(from_)
    new = shelf.copy(Run.open(run), name, settings.parse_sets(set or ()), from_ or "")
    print(f"run {new.name}; start it with: picollm run --run {new.name}")
    return 0


@runs.command()
def archive(run: Name) -> int:
    """Put a run out of sight, with all it made."""
    print(f"archived in {shelf.archive(Run.open(run)).dir}")
    return 0


@runs.command()
def restore(run: Name) -> int:
    """Take a run out of the archive."""
    back = shelf.restore(shelf.find_archived(run))
    print("\n".join(filter(None, (f"restored to {back.dir}", shelf.set_aside(back)))))
    return 0


@runs.command()
def delete(
    run: Name,
    archived: Annotated[bool, typer.Option("--archived", help="the run of that name in the archive")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="do not ask")] = False,
) -> int:
    """Remove a run and all it made, after showing what goes."""
    found = shelf.find_archived(run) if archived else Run.open(run)
    parts = shelf.contents(found)
    print(parts_text(parts))
    if not yes:
        if not sys.stdin.isatty():
            raise UserError(f"nobody to ask: picollm runs delete {run} --yes deletes {found.dir}")
        if input(f"delete {found.dir} for good? type its name: ").strip() != found.name:
            print("nothing deleted")
            return 3
    print(f"deleted {found.dir}; {_amount(shelf.delete(found))} freed")
    return 0


@runs.command()
def note(
    run: Name,
    text: Annotated[str | None, typer.Argument(help="the new notes; '' removes them; left out: print them")] = None,
) -> int:
    """Your own words about a run, in its notes.md and at the head of its report."""
    found = Run.open(run)
    if text is None:
        print(shelf.notes(found) or f"no notes in {found.dir / 'notes.md'}")
    else:
        shelf.write_notes(found, text)
    return 0


def listing(found: list[Summary]) -> str:
    """One row a run; one whose settings are broken says so in its row."""
    rows = [["run", "profile", "done", "now", "loss", "bpb", "left", "queue", "last sign"]]
    for one in found:
        sign = time.strftime("%Y-%m-%d %H:%M", time.localtime(one.touched))
        name = f"{one.name} (archived)" if one.archived else one.name
        if one.problem:
            rows.append([name, "-", "-", one.problem, "", "", "", "", sign])
            continue
        now = "" if one.state in ("done", "ready", "waiting") else f"{one.stage} {one.state}"
        if one.active and one.steps:
            now += f" {one.step}/{one.steps}"
        loss, bpb = (f"{value:.3f}" if value is not None else "" for value in (one.loss, one.bpb))
        left = duration(one.left) if one.active and one.left is not None else ""
        rows.append([name, one.profile, f"{one.done}/{one.stages}", now or "-", loss, bpb, left, one.queue, sign])
    return table(rows, right=(4, 5, 6))


def parts_text(parts: list[shelf.Part]) -> str:
    """What a run's folder holds, with its sum."""
    rows = [[part.name, _amount(part.bytes), f"{_amount(part.shared)} also in other runs" if part.shared else ""]
            for part in parts]  # fmt: skip
    rows.append(["all", _amount(sum(part.bytes for part in parts)), ""])
    return table(rows, right=(1,))


def _amount(size: int) -> str:
    return gib(size) if size >= 1 << 20 else "under 1 MiB"
