"""The command palette: every action, every stage, every tab, by name."""

from __future__ import annotations

from functools import partial
from typing import Any

from textual.command import DiscoveryHit, Hit, Hits, Provider

from picollm.run import pipeline
from tui import actions


def entries() -> list[tuple[str, str, str]]:
    """(name, help, action) of everything that can be found."""
    found = [(row.title, f"{row.shown}   {row.help}", f"press('{row.identity}')")
             for row in actions.ACTIONS if row.place not in actions.MODAL]  # fmt: skip
    found += [(f"Go to {row.title}", row.purpose, f"select_stage('{row.name}')") for row in pipeline.STAGES]
    return found


class ActionCommands(Provider):
    """Feeds Textual's palette from `actions.ACTIONS` and the pipeline."""

    def _run(self, action: str) -> Any:
        return partial(self.app.run_action, action, self.app)

    async def discover(self) -> Hits:
        for name, words, action in entries():
            if "command_palette" not in action:
                yield DiscoveryHit(name, self._run(action), help=words)

    async def search(self, query: str) -> Hits:
        matcher = self.matcher(query)
        for name, words, action in entries():
            score = matcher.match(name)
            if score > 0:
                yield Hit(score, matcher.highlight(name), self._run(action), help=words)
