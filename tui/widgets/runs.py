"""Every run in the runs folder; Enter shows one in all tabs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual import on
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from picollm.run.folder import Run
from tui import state

if TYPE_CHECKING:
    from tui.app import PicollmApp


class RunsPane(Vertical):
    app: PicollmApp

    def compose(self) -> ComposeResult:
        yield OptionList(id="runs-list")

    def on_mount(self) -> None:
        self._names: list[str] = []

    def update_from(self, view: state.RunView) -> None:
        self.app.work(self._read)

    def _read(self) -> None:
        """In a thread."""
        self.app.call_from_thread(self._show, [run.name for run in Run.all()])

    def _show(self, names: list[str]) -> None:
        if names != self._names:
            self._names = names
            options = self.query_one(OptionList)
            options.clear_options()
            options.add_options([Option(name) for name in names])

    async def do_open(self) -> None:
        """Show the selected run."""
        index = self.query_one(OptionList).highlighted
        if index is not None:
            await self.app.open_run(self._names[index])

    @on(OptionList.OptionSelected)
    async def _selected(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        await self.do_open()
