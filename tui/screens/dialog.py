"""What all dialogs share: their keys, and that j and k move as the arrows do."""

from __future__ import annotations

from typing import Any, ClassVar, TypeVar

from textual.screen import ModalScreen
from textual.widgets import OptionList

from tui import actions
from tui.screens.steady import Steady
from tui.widgets.lines import LinesView

Result = TypeVar("Result")


class Dialog(Steady, ModalScreen[Result]):
    """Over the screen below; `esc` closes it."""

    BINDINGS: ClassVar[Any] = actions.bindings("dialog")

    def action_line_down(self) -> None:
        self._move(1)

    def action_line_up(self) -> None:
        self._move(-1)

    def _move(self, by: int) -> None:
        """In the list that is there, else through the text."""
        for options in self.query(OptionList):
            options.action_cursor_down() if by > 0 else options.action_cursor_up()
            return
        for view in self.query(LinesView):
            view.scroll_relative(y=by, animate=False)

    def action_back(self) -> None:
        self.dismiss(None)
