"""F1: what this screen is, and every key."""

from __future__ import annotations

from typing import Any, ClassVar

from rich.console import RenderableType
from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Label

from tui import actions
from tui.widgets.lines import LinesView, heading, rows, text


class HelpScreen(ModalScreen[None]):
    BINDINGS: ClassVar[Any] = actions.bindings("dialog")

    def __init__(self, tab: str) -> None:
        super().__init__()
        self.tab = tab

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog") as box:
            box.border_title = "Help"
            yield LinesView(id="help-lines")
            yield Label("esc closes · PgUp PgDn scroll", classes="keys")

    def on_mount(self) -> None:
        view = self.query_one(LinesView)
        view.focus()
        self.call_after_refresh(lambda: view.show(help_blocks(self.tab)))

    def action_back(self) -> None:
        self.dismiss(None)

    def action_confirm(self) -> None:
        self.dismiss(None)


def help_blocks(tab: str) -> list[RenderableType]:
    """This tab first, then what works everywhere, then the other tabs."""
    current = next(row for row in actions.TABS if row.name == tab)
    found: list[RenderableType] = [heading(current.title), text(current.about), Text("")]
    here = actions.of(tab)
    if here:
        found += [rows([(row.shown, _about(row)) for row in here], 2), Text("")]
    found.append(heading("Everywhere", "in a text box ordinary keys type; esc leaves it"))
    found.append(rows([(row.shown, _about(row)) for row in actions.of("")], 2))
    for other in actions.TABS:
        keys = actions.of(other.name)
        if other.name != tab and keys:
            found += [Text(""), heading(f"In {other.title}"), rows([(row.shown, _about(row)) for row in keys], 2)]
    keys = actions.of("dialog")
    return [*found, Text(""), heading("In dialogs"), rows([(row.shown, _about(row)) for row in keys], 2)]


def _about(row: actions.Action) -> Text:
    return text((f"{row.title}. ", "plain"), (row.help, "faint"))
