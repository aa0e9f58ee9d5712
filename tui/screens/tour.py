"""The tour of the first start: four things to know, each with its place on the screen marked. Kept as seen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Vertical
from textual.widgets import Label

from tui import actions, preferences
from tui.screens.dialog import Dialog
from tui.widgets.lines import LinesView, text

if TYPE_CHECKING:
    from tui.app import PicollmApp

MARKED = "-marked"


def steps() -> list[tuple[str, str, list[str]]]:
    """(title, selector of what it is about, lines)."""

    def key(name: str) -> str:
        return actions.find(name).first

    return [
        ("The stages", "#rail", [
            "On the left is the whole way from raw text to a chatbot, top to bottom.",
            f"{key('stage_down')} or the arrows select a stage; every tab then shows that stage.",
            f"{key('launch')} launches all of them, {actions.find('start_stage').first} the selected one alone."]),
        ("The tabs", "#tabs", [
            f"Number keys open the tabs: {', '.join(f'{n} {tab.title}' for n, tab in enumerate(actions.TABS))}.",
            "Train draws the curves, Log shows what is printed, Chat talks to what you made."]),
        ("Nothing is lost", "#title", [
            "The run goes on without the app: close it, or lose the connection, and come back.",
            f"{key('stop')} saves and stops; {key('resume')} goes on from there, also after a crash."]),
        ("Finding things", "#footer", [
            "The last line shows the keys that make sense now.",
            f"{key('help')} explains the screen, {key('command_palette')} finds any action by name,",
            f"{key('jump')} puts a letter on everything, {key('appearance')} changes the colours."]),
    ]  # fmt: skip


class TourScreen(Dialog[None]):
    app: PicollmApp

    BINDINGS: ClassVar[Any] = [
        Binding("enter,space,right,down,n", "confirm", "Next", show=False),
        Binding("left,up,p", "previous", "Back", show=False),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.step = 0
        self._steps = steps()

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog"):
            yield LinesView()
            yield Label("", classes="keys")

    def on_mount(self) -> None:
        self._show()

    def _show(self) -> None:
        title, selector, lines = self._steps[self.step]
        last = self.step == len(self._steps) - 1
        box = self.query_one(Vertical)
        box.border_title = f"{self.step + 1} of {len(self._steps)}: {title}"
        view = self.query_one(LinesView)
        self.call_after_refresh(lambda: view.show([text(line) for line in lines]))
        self.query_one(Label).update("Enter begins · k back" if last else "Enter next · k back · esc ends the tour")
        self._mark(selector)

    def _mark(self, selector: str = "") -> None:
        for _, other, _ in self._steps:
            self.app.main.query_one(other).set_class(other == selector, MARKED)

    def on_key(self, event: events.Key) -> None:
        """A key that means nothing here ends the tour, and does what it does otherwise."""
        known = {key for _, binding in self._bindings for key in binding.key.split(",")}
        if event.key not in known:
            event.stop()
            self.action_back()
            self.app.call_later(self.app._check_bindings, event.key)

    def action_confirm(self) -> None:
        if self.step == len(self._steps) - 1:
            self.action_back()
            return
        self.step += 1
        self._show()

    def action_line_down(self) -> None:
        self.action_confirm()

    def action_line_up(self) -> None:
        self.action_previous()

    def action_previous(self) -> None:
        self.step = max(0, self.step - 1)
        self._show()

    def action_back(self) -> None:
        """Leave; it is not shown again by itself."""
        self._mark()
        if not self.app.look.toured:
            self.app.look.toured = True
            self.app.work(preferences.seen_tour)
        self.dismiss(None)
