"""A dialog with one line to type: a filter, a name. What is typed is checked as it is typed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from textual import on
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Input, Label

from tui import actions
from tui.screens.steady import Steady


class LineScreen(Steady, ModalScreen[str | None]):
    """`wrong` says what is wrong with a text, or ""; the dialog closes with a text that is right, or with None."""

    BINDINGS: ClassVar[Any] = actions.bindings("dialog")

    def __init__(self, title: str, hint: str, value: str = "", wrong: Callable[[str], str] = lambda text: "") -> None:
        super().__init__()
        self._title, self._hint, self._value, self._wrong = title, hint, value, wrong

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog") as box:
            box.border_title = self._title
            yield Label(self._hint, classes="keys", markup=False)
            yield Input(self._value)
            yield Label("", id="line-wrong", markup=False)
            yield Label("Enter takes it · esc leaves everything as it is", classes="keys")

    def on_mount(self) -> None:
        self.query_one(Input).focus()

    @on(Input.Changed)
    def _check(self, event: Input.Changed) -> None:
        self.query_one("#line-wrong", Label).update(self._wrong(event.value))

    @on(Input.Submitted)
    def _take(self, event: Input.Submitted) -> None:
        if not self._wrong(event.value):
            self.dismiss(event.value)

    def action_confirm(self) -> None:
        self.query_one(Input).insert_text_at_cursor("y")  # the key that agrees elsewhere is a letter here

    def action_back(self) -> None:
        self.dismiss(None)
