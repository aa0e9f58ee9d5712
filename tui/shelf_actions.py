"""What Runs does to runs: open, make, duplicate, rename, note, archive, delete; `shelving` does what is asked here."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from picollm.run import branch, shelf
from picollm.run import config as settings
from picollm.run.errors import UserError
from picollm.run.folder import Run, runs_folder
from picollm.run.overview import Summary
from tui import actions, shelving
from tui.figures import size

if TYPE_CHECKING:
    from tui.app import PicollmApp

LARGEST = 6
"""Parts of a run that are named one by one before it is deleted."""


async def open_run(app: PicollmApp, one: Summary) -> None:
    """Show it in all tabs; an archived one is restored first, after asking."""
    if one.archived:
        app.ask(f"{one.name} is archived", ["Restored, it is among the runs again and can be opened."], "restores it",
                partial(shelving.restore, one.dir))  # fmt: skip
        return
    if Path(one.dir) == app.reader.run_folder.dir:
        await app.main.show_tab("stage")
        return
    await app.open_run(one.name if Path(one.dir).parent == runs_folder() else one.dir)


def free_name(wanted: str, taken: Sequence[str]) -> str:
    """`wanted`, or with the first number that makes it new."""
    stem, _, number = wanted.rpartition("-")
    stem = stem if stem and number.isdigit() else wanted
    return next(name for name in (wanted, *(f"{stem}-{n}" for n in range(2, 10_000))) if name not in taken)


def new_run(app: PicollmApp, taken: Sequence[str]) -> None:
    """The form, from the profile that was asked for or pocket."""
    from tui.form import Form
    from tui.screens.new_run import NewRunScreen

    form = Form(free_name("demo", taken), app.options.profile or "pocket", taken=taken)
    app.push_screen(NewRunScreen(form), partial(_made, app))


def duplicate(app: PicollmApp, one: Summary, taken: Sequence[str]) -> None:
    """The form, filled in with the settings of a run."""

    def read() -> None:
        from tui.form import Form

        run = Run(Path(one.dir))
        values = settings.flat(run.wishes())
        begin = branch.beginnings(run)
        form = Form(free_name(one.name, taken), values["run.profile"], one.name, values, taken, one.dir, begin)
        app.call_from_thread(show, form)

    def show(form: object) -> None:
        from tui.screens.new_run import NewRunScreen

        app.push_screen(NewRunScreen(form), partial(_made, app))  # type: ignore[arg-type]

    app.work(read)


async def _made(app: PicollmApp, name: str | None) -> None:
    if name is not None:
        await app.open_run(name)
        await app.main.show_tab("stage")


def note(app: PicollmApp, one: Summary) -> None:
    """The notes in a box."""

    def read() -> None:
        words = shelf.notes(Run(Path(one.dir)))
        app.call_from_thread(show, words)

    def show(words: str) -> None:
        from tui.screens.notes import NotesScreen

        app.push_screen(NotesScreen(f"Notes on {one.name}", words), take)

    def take(words: str | None) -> None:
        if words is not None:
            app.work(partial(shelving.note, one.dir, words))

    app.work(read)


def rename(app: PicollmApp, one: Summary) -> None:
    from tui.screens.line import LineScreen

    async def follow(name: str) -> None:
        runs = app.main.list_of_runs()
        if runs is not None:
            runs.renamed(one, name)
        if Path(one.dir) == app.reader.run_folder.dir:
            await app.open_run(name)
            await app.main.show_tab("runs")

    def take(name: str | None) -> None:
        if name is not None and name != one.name:
            app.work(partial(shelving.rename, one.dir, name), lambda: app.call_later(follow, name))

    def write() -> None:
        hint = "letters, digits, dot, dash, underscore"
        app.push_screen(LineScreen(f"Rename {one.name}", hint, one.name, partial(shelving.wrong_name, one.name)), take)

    app.work(partial(_refuse_at_work, Run(Path(one.dir))), write)


def _refuse_at_work(run: Run) -> None:
    """Before anybody writes or reads a word. Raises `UserError`."""
    busy = shelf.at_work(run)
    if busy:
        stop = actions.find("stop").first
        raise UserError(f"{run.name} is at work ({busy}); {stop} stops it")


def archive(app: PicollmApp, one: Summary) -> None:
    """Nothing is lost, so nothing is asked; the same key takes it back."""
    if one.archived:
        app.work(partial(shelving.restore, one.dir))
    else:
        key = actions.find("show_archived", "runs").first
        app.work(partial(shelving.archive, one.dir, key), partial(_gone, app, one.dir))


def _gone(app: PicollmApp, folder: str) -> None:
    """When it was the run that the other tabs show, they show the newest of the others."""
    if Path(folder) == app.reader.run_folder.dir:
        app.call_later(_open_newest, app)


async def _open_newest(app: PicollmApp) -> None:
    newest = next((run.name for run in Run.all()), "demo")
    await app.begin_with(newest)
    await app.main.show_tab("runs")


def delete(app: PicollmApp, one: Summary) -> None:
    """Look what is there, say it, ask."""

    def look() -> None:
        run = Run(Path(one.dir))
        _refuse_at_work(run)
        parts = shelf.contents(run)
        shared = sum(part.shared for part in parts)
        lines = [f"{one.dir} goes for good:", ""]
        lines += [f"  {part.name:<22} {size(part.bytes):>10}" for part in parts[:LARGEST]]
        rest = parts[LARGEST:]
        if rest:
            lines.append(f"  {f'{len(rest)} more':<22} {size(sum(part.bytes for part in rest)):>10}")
        lines += ["", f"{size(sum(part.bytes for part in parts) - shared)} are freed."]
        if shared:
            lines.append(f"{size(shared)} are also in other runs and stay there.")
        lines.append("Texts and token shards in PICOLLM_HOME stay.")
        job, then = partial(shelving.delete, one.dir), partial(_gone, app, one.dir)
        app.call_from_thread(app.ask, f"Delete {one.name}?", lines, "deletes it", job, then)

    app.work(look)
