"""The command palette: every action, every stage, every run, by name."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from textual.app import App
from textual.command import CommandPalette, DiscoveryHit, Hit, Hits, Provider, SearchIcon

from picollm.run import pipeline
from picollm.run.folder import Run
from tui import actions


def entries() -> list[tuple[str, str, str]]:
    """(name, help, action) of everything that can be found but runs."""
    titles = {tab.name: tab.title for tab in actions.TABS}
    found = [
        (f"{row.title} ({titles[row.place]})" if row.place else row.title,
         f"{row.shown}   {row.help}" if row.keys else row.help, f"press('{row.identity}')")
        for row in actions.ACTIONS if row.place not in actions.MODAL
    ]  # fmt: skip
    found += [(f"Go to {row.title}", row.purpose, f"select_stage('{row.name}')") for row in pipeline.STAGES]
    return found


async def _do(app: Any, action: str) -> None:
    """As if its key were pressed in its own tab: what is chosen by name goes there first."""
    if action.startswith("press("):
        await app.action_press(action.removeprefix("press('").removesuffix("')"))
    else:
        await app.run_action(action, app)


class ActionCommands(Provider):
    """Feeds Textual's palette from the registry, the pipeline and the runs folder."""

    _runs: tuple[str, ...] = ()

    async def startup(self) -> None:
        self._runs = tuple(await asyncio.to_thread(lambda: [run.name for run in Run.all()]))

    def _all(self) -> list[tuple[str, str, Any]]:
        app: Any = self.app
        found: list[tuple[str, str, Any]] = [
            (name, words, partial(_do, app, action))
            for name, words, action in entries()
            if "command_palette" not in action
        ]
        return found + [(f"Open run {name}", "Shows it in every tab.", partial(app.open_run, name))
                        for name in self._runs]  # fmt: skip

    async def discover(self) -> Hits:
        for name, words, command in self._all():
            yield DiscoveryHit(name, command, help=words)

    async def search(self, query: str) -> Hits:
        matcher = self.matcher(query)
        for name, words, command in self._all():
            score = matcher.match(name)
            if score > 0:
                yield Hit(score, matcher.highlight(name), command, help=words)


class Palette(CommandPalette):
    """Textual's, with a sign that every terminal has."""

    def on_mount(self) -> None:
        self.query_one(SearchIcon).icon = ">"


def open_palette(app: App[Any]) -> None:
    if not CommandPalette.is_open(app):
        app.push_screen(Palette(id="--command-palette"))
