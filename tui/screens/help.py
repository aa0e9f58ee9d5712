"""F1: what this screen shows and how to read it, and every key."""

from __future__ import annotations

from typing import Any, ClassVar

from rich.console import RenderableType
from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Vertical
from textual.widgets import Label

from tui import actions, state
from tui.screens.dialog import Dialog
from tui.screens.guides import GUIDES
from tui.widgets.lines import LinesView, heading, rows, text
from tui.widgets.tones import tone


class HelpScreen(Dialog[None]):
    BINDINGS: ClassVar[Any] = [Binding("q,f1,question_mark", "back", show=False)]

    def __init__(self, tab: str) -> None:
        super().__init__()
        self.tab = tab

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog") as box:
            box.border_title = "Help"
            yield LinesView(id="help-lines")
            yield Label("esc closes · j/k PgUp PgDn scroll", classes="keys")

    def on_mount(self) -> None:
        view = self.query_one(LinesView)
        view.focus()
        self.call_after_refresh(lambda: view.show(help_blocks(self.tab)))

    def action_confirm(self) -> None:
        self.dismiss(None)


def help_blocks(tab: str) -> list[RenderableType]:
    """This tab first, then what works everywhere, what the symbols mean, and the other tabs.

    Of a place in `MODAL`, where nothing else works, its keys alone.
    """
    if tab in actions.MODAL:
        here = actions.of(tab)
        title = actions.where(here[0])
        return [heading(title[0].upper() + title[1:], "while something is written, keys write; esc ends that"),
                _keys(here)]  # fmt: skip
    current = next(row for row in actions.TABS if row.name == tab)
    found: list[RenderableType] = [heading(current.title), text(current.about), Text("")]
    for paragraph in GUIDES[tab]:
        found += [text((paragraph, "plain")), Text("")]
    here = actions.of(tab)
    if here:
        found += [_keys(here), Text("")]
    found += [heading("Everywhere", "in a text box ordinary keys type; esc leaves it"), _keys(actions.of("")), Text("")]
    found += [heading("How a stage stands"), *_states()]
    for other in actions.TABS:
        keys = actions.of(other.name)
        if other.name != tab and keys:
            found += [Text(""), heading(f"In {other.title}"), _keys(keys)]
    for place in actions.MODAL:
        keys = actions.of(place)
        title = actions.where(keys[0])
        found += [Text(""), heading(title[0].upper() + title[1:]), _keys(keys)]
    return found


def _keys(found: list[actions.Action]) -> RenderableType:
    return rows([(row.shown or "in ^p", text((f"{row.title}. ", "plain"), (row.help, "faint"))) for row in found], 2)


def _states() -> list[RenderableType]:
    """Symbol, word and meaning of every state, in columns that wrap."""
    meanings = {
        "waiting": "needs a stage that is not done", "ready": "can start now", "running": "at work",
        "stalled": "alive, but silent for too long", "stopping": "saving what it has", "stopped": "saved; can go on",
        "failed": "ended with an error, which is said", "crashed": "the process is gone without a word",
        "done": "made what it should", "stale": "made with other settings", "skipped": "not wanted in this run",
    }  # fmt: skip
    pairs: list[tuple[str, RenderableType | str]] = []
    for name, look in state.LOOKS.items():
        line = Text(f"{look.word}  ", style=tone(look.tone))
        line.append(meanings.get(name, ""), tone("faint"))
        pairs.append((look.symbol, line))
    return [rows(pairs, 2)]
