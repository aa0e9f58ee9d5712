"""Jump mode: a letter on every stage and every place of the open tab, the number on every tab; one press goes there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from textual import events
from textual.app import ComposeResult
from textual.screen import ModalScreen
from textual.widget import Widget
from textual.widgets import Static

from picollm.run import pipeline
from tui.screens.steady import Steady

if TYPE_CHECKING:
    from tui.screens.main import MainScreen

LETTERS = "asdfghjklqwertyuiopzxcvbnm"


@dataclass(frozen=True)
class Target:
    """A label, where it is drawn, and what it leads to: ("press", action), ("select_stage", name), or a widget."""

    label: str
    x: int
    y: int
    goal: Any


def targets(main: MainScreen) -> list[Target]:
    """Everything that one can jump to on the screen as it is."""
    bar = main.tab_bar.region
    found = [Target(str(number), bar.x + start, bar.y, ("press", identity))
             for number, (start, _, identity) in enumerate(main.tab_bar.spots)]  # fmt: skip
    letters = iter(LETTERS)
    rail = main.rail.region
    if main.rail.display:
        found += [Target(label, rail.x + 1, rail.y + row, ("select_stage", name))
                  for row, name in enumerate(pipeline.NAMES) if row < rail.height
                  for label in [next(letters)]]  # fmt: skip
    for place in places(main):
        label = next(letters, "")
        if not label:
            break
        found.append(Target(label, place.region.x, place.region.y, place))
    return found


def places(main: MainScreen) -> list[Widget]:
    """What can take the keys in the open tab, top to bottom."""
    pane = main.panes[main.tab]
    widgets = [widget for widget in pane.walk_children(Widget, with_self=True)
               if widget.focusable and widget.region.area and widget.is_on_screen]  # fmt: skip
    return sorted(widgets, key=lambda widget: (widget.region.y, widget.region.x))


class JumpScreen(Steady, ModalScreen[Any]):
    """Labels over the screen below; any other key leaves."""

    def __init__(self, found: list[Target]) -> None:
        super().__init__()
        self.targets = found

    def compose(self) -> ComposeResult:
        for target in self.targets:
            label = Static(target.label, classes="jump-label")
            label.styles.offset = (target.x, target.y)
            yield label

    def on_key(self, event: events.Key) -> None:
        event.stop()
        event.prevent_default()
        self.dismiss(next((target.goal for target in self.targets if target.label == event.character), None))

    def on_resize(self, event: events.Resize) -> None:
        if self.app.size != event.size:  # places move: labels would be wrong
            self.dismiss(None)
