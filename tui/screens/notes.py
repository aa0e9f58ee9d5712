"""A dialog for notes of several lines."""

from __future__ import annotations

from typing import Any, ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Label, TextArea

from tui import actions
from tui.screens.steady import Steady


class NotesScreen(Steady, ModalScreen[str | None]):
    """Several lines; kept on leaving with the key that says so. Leaving after a change asks for a second `esc`."""

    BINDINGS: ClassVar[Any] = actions.bindings("dialog")

    def __init__(self, title: str, value: str) -> None:
        super().__init__()
        self._title, self._value = title, value
        self._warned = False

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog") as box:
            box.border_title = self._title
            yield TextArea(self._value, id="notes", soft_wrap=True)
            yield Label("", classes="wrong")
            keep, back = actions.find("keep").first, actions.find("back").first
            yield Label(f"{keep} keeps them · {back} leaves them as they were", classes="keys")

    def on_mount(self) -> None:
        self.query_one(TextArea).focus()

    def action_keep(self) -> None:
        self.dismiss(self.query_one(TextArea).text)

    def action_back(self) -> None:
        if self.query_one(TextArea).text != self._value and not self._warned:
            self._warned = True
            back = actions.find("back").first
            self.query_one(".wrong", Label).update(Text(f"You changed something: {back} again drops it."))
            return
        self.dismiss(None)
