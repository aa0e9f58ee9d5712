"""Colours, and ASCII only: what is highlighted is shown at once; Enter keeps it, Escape goes back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.widgets import Label, OptionList
from textual.widgets.option_list import Option

from tui.preferences import Preferences
from tui.screens.dialog import Dialog
from tui.widgets import tones

if TYPE_CHECKING:
    from tui.app import PicollmApp

ASCII = "ascii"


class AppearanceScreen(Dialog[None]):
    app: PicollmApp

    def __init__(self, look: Preferences) -> None:
        super().__init__()
        self._before = self._now = look

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog") as box:
            box.border_title = "Appearance"
            yield OptionList(id="appearance")
            yield Label("Enter keeps · esc leaves it as it was", classes="keys")

    def on_mount(self) -> None:
        options = self.query_one(OptionList)
        self._fill(options)
        options.highlighted = tones.NAMES.index(self._now.theme)
        options.focus()

    def _fill(self, options: OptionList) -> None:
        rows = [(name, name, palette.about) for name, palette in tones.PALETTES.items()]
        rows.append((ASCII, f"ASCII only: {'on' if self._now.ascii else 'off'}", "lines, bars and charts as + - | # ."))
        at = options.highlighted
        options.clear_options()
        options.add_options(Option(Text.assemble(label.ljust(18), (note, "dim")), id=key) for key, label, note in rows)
        options.highlighted = at

    @on(OptionList.OptionHighlighted)
    def _preview(self, event: OptionList.OptionHighlighted) -> None:
        if event.option_id in tones.NAMES and event.option_id != self._now.theme:
            self._now = msgspec.structs.replace(self._now, theme=event.option_id)
            self.app.dress(self._now)

    @on(OptionList.OptionSelected)
    def _chosen(self, event: OptionList.OptionSelected) -> None:
        if event.option_id == ASCII:
            self._now = msgspec.structs.replace(self._now, ascii=not self._now.ascii)
            self.app.dress(self._now)
            self._fill(self.query_one(OptionList))
            return
        self.action_confirm()

    def action_confirm(self) -> None:
        self.app.keep(self._now)
        self.dismiss(None)

    def action_back(self) -> None:
        self.app.dress(self._before)
        self.dismiss(None)
