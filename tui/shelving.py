"""What the app asks of runs as a whole: make, rename, archive, delete. Called in threads; touches no widget."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from picollm.run import conductor, pipeline, shelf
from picollm.run.errors import UserError
from picollm.run.folder import Run, name_of_new
from tui.figures import size

if TYPE_CHECKING:
    from tui.form import Form


def make(form: Form, go: bool) -> str:
    """The run that the form describes, launched if `go`. Raises `UserError`; then there is no run."""
    if form.base:
        run = shelf.copy(Run.open(form.base_dir), form.name, form.changes, form.stage)
    else:
        run = Run.create(form.name, form.config())
    if not go:
        return f"{run.name} is made; it waits to be launched"
    conductor.ask(run, conductor.plan_request(run, list(pipeline.NAMES)))
    return f"{run.name} is made and launched"


def wrong_name(now: str, name: str) -> str:
    """Why a run called `now` cannot be called `name`; "" when it can."""
    try:
        if name != now:
            name_of_new(name)
    except UserError as error:
        return str(error)
    return ""


def rename(folder: str, name: str) -> str:
    run = Run(Path(folder))
    return f"{run.name} is now {shelf.rename(run, name).name}"


def archive(folder: str, key: str) -> str:
    return f"{shelf.archive(Run(Path(folder))).name} is archived; {key} shows it"


def restore(folder: str) -> str:
    run = shelf.restore(Run(Path(folder)))
    return "; ".join(filter(None, (f"{run.name} is restored", shelf.set_aside(run))))


def delete(folder: str) -> str:
    run = Run(Path(folder))
    return f"{run.name} is deleted; {size(shelf.delete(run))} freed"


def note(folder: str, words: str) -> str:
    run = Run(Path(folder))
    shelf.write_notes(run, words)
    return f"notes on {run.name} kept in {run.dir / 'notes.md'}" if words.strip() else f"{run.name} has no notes now"
