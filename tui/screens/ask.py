"""Dialogs: a question with Yes or Esc, a list to pick from, the sampling form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import msgspec
from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.screen import ModalScreen
from textual.widgets import Input, Label, OptionList
from textual.widgets.option_list import Option

from picollm.run import config as settings
from picollm.run.errors import UserError
from tui import actions
from tui.screens.dialog import Dialog
from tui.screens.steady import Steady
from tui.talk import Sampling
from tui.widgets.lines import LinesView, clean, text


class AskScreen(Dialog[bool]):
    """Something that cannot be taken back: `y` agrees, `esc` does not."""

    def __init__(self, title: str, lines: Sequence[str], yes: str) -> None:
        super().__init__()
        self._title, self._lines, self._yes = title, lines, yes

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog") as box:
            box.border_title = self._title
            yield LinesView()
            confirm, back = actions.find("confirm").first, actions.find("back").first
            yield Label(f"{confirm} {self._yes} · {back} leaves everything as it is", classes="keys")

    def on_mount(self) -> None:
        view = self.query_one(LinesView)
        self.call_after_refresh(lambda: view.show([text(line) for line in self._lines]))

    def action_confirm(self) -> None:
        self.dismiss(True)

    def action_back(self) -> None:
        self.dismiss(False)


class PickScreen(Dialog[str | None]):
    """One of a list of (value, label, note)."""

    def __init__(self, title: str, rows: Sequence[tuple[str, str, str]]) -> None:
        super().__init__()
        self._title, self._rows = title, rows

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog") as box:
            box.border_title = self._title
            options = [Option(Text.assemble(clean(label), ("  " + clean(note), "dim")), id=f"row-{number}")
                       for number, (_, label, note) in enumerate(self._rows)]  # fmt: skip
            yield OptionList(*options)
            yield Label("Enter opens · esc leaves", classes="keys")

    def on_mount(self) -> None:
        self.query_one(OptionList).focus()

    @on(OptionList.OptionSelected)
    def _picked(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(self._rows[event.option_index][0])

    def action_confirm(self) -> None:
        self.query_one(OptionList).action_select()


class SamplingScreen(Steady, ModalScreen[Sampling | None]):
    """How answers are drawn; every value is checked against its knob in `[chat]`."""

    BINDINGS: ClassVar[Any] = actions.bindings("dialog")

    FIELDS = ("temperature", "top_k", "seed", "max_tokens", "system")

    def __init__(self, sampling: Sampling) -> None:
        super().__init__()
        self._sampling = sampling

    def compose(self) -> ComposeResult:
        knobs = settings.knobs()
        with Vertical(classes="dialog") as box:
            box.border_title = "Sampling"
            for name in self.FIELDS:
                knob = knobs[f"chat.{name}"]
                with Horizontal(classes="field"):
                    yield Label(name.replace("_", " "))
                    yield Input(str(getattr(self._sampling, name)), placeholder=knob.description, id=f"field-{name}")
            yield Label("", classes="wrong")
            yield Label("Enter takes these · Tab moves · esc leaves", classes="keys")

    def on_mount(self) -> None:
        self.query_one("#field-temperature").focus()

    @on(Input.Submitted)
    def action_confirm(self) -> None:
        values: dict[str, Any] = {}
        try:
            for name in self.FIELDS:
                written = self.query_one(f"#field-{name}", Input).value
                text_value = f"chat.{name}={written}"
                values |= {name: settings.parse_sets([text_value])[f"chat.{name}"]}
        except UserError as error:
            self.query_one(".wrong", Label).update(Text(str(error).removeprefix("--set ")))
            return
        self.dismiss(msgspec.convert(values, Sampling))

    def action_back(self) -> None:
        self.dismiss(None)
