"""Who should answer: every model and checkpoint there is, with a line to narrow them down."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from rich.text import Text
from textual import events, on
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.widgets import Input, Label, OptionList
from textual.widgets.option_list import Option

from picollm.run import endpoint
from tui import voices
from tui.screens.dialog import Dialog
from tui.voices import Known, Voice
from tui.widgets.lines import clean

if TYPE_CHECKING:
    from tui.app import PicollmApp

KEYS = "Enter takes it · ↑ ↓ choose · esc leaves"
NONE = "nothing of that name · an address such as http://localhost:8080/v1 is asked for its models"
ADDRESS = "Enter asks that address for its models · esc leaves"


def _address(words: str) -> bool:
    return words.strip().startswith(("http://", "https://"))


def offer(app: PicollmApp, title: str, chosen: Voice | None, then: Callable[[Known], object]) -> None:
    """Let a person choose among everybody who can answer; the list is made in a thread."""
    here, finished = app.talker().run, app.main.view.models

    def show(found: list[Known]) -> None:
        screen = VoiceScreen(title, found, str(here.dir), chosen)
        app.push_screen(screen, take)

    def take(known: Known | None) -> None:
        if known is not None:
            then(known)

    def look() -> str | None:
        found, problem = voices.catalogue(here, finished)
        if found:
            app.call_from_thread(show, found)
        return problem or (None if found else "nobody can answer yet: no run here has a checkpoint")

    app.work(look)


class VoiceScreen(Dialog[Known | None]):
    """Typing narrows the list, and an address asks the endpoint there for its models; the arrows choose, also while
    typing."""

    app: PicollmApp

    def __init__(self, title: str, found: Sequence[Known], here: str, chosen: Voice | None = None) -> None:
        super().__init__()
        self._title, self._here, self._chosen = title, here, chosen
        self._all = [self._row(one) for one in found]
        self._shown = self._all

    def _row(self, one: Known) -> tuple[str, Known]:
        return f"{one.voice.title(self._here)}  {one.voice.title()}  {one.about}".lower(), one

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog") as box:
            box.border_title = self._title
            yield Input(placeholder="part of a name, or the address of an endpoint")
            yield OptionList()
            yield Label(KEYS, classes="keys")

    def on_mount(self) -> None:
        self._fill("")
        self.query_one(Input).focus()

    @on(Input.Changed)
    def _narrow(self, event: Input.Changed) -> None:
        self._fill(event.value)

    def _fill(self, words: str) -> None:
        """Those in whose line every word occurs."""
        self._shown = [row for row in self._all if all(word in row[0] for word in words.lower().split())]
        self.query_one(".keys", Label).update(KEYS if self._shown else ADDRESS if _address(words) else NONE)
        options = self.query_one(OptionList)
        options.clear_options()
        options.add_options(
            Option(Text.assemble(clean(one.voice.title(self._here)), ("  " + clean(one.about), "dim")))
            for _, one in self._shown
        )
        if self._shown:
            at = next((n for n, (_, one) in enumerate(self._shown) if one.voice == self._chosen), 0)
            options.highlighted = at

    def on_key(self, event: events.Key) -> None:
        options = self.query_one(OptionList)
        moves = {"down": options.action_cursor_down, "up": options.action_cursor_up,
                 "pagedown": options.action_page_down, "pageup": options.action_page_up}  # fmt: skip
        if event.key in moves and isinstance(self.focused, Input):
            event.stop()
            moves[event.key]()

    @on(Input.Submitted)
    def _submitted(self) -> None:
        self.action_take()

    @on(OptionList.OptionSelected)
    def _picked(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(self._shown[event.option_index][1])

    def action_take(self) -> None:
        at, typed = self.query_one(OptionList).highlighted, self.query_one(Input).value
        if at is not None and at < len(self._shown):
            self.dismiss(self._shown[at][1])
        elif _address(typed):
            self.app.work(lambda: self._ask(typed))

    def _ask(self, address: str) -> str | None:
        """In a thread: what answers at an address that was typed."""
        server = endpoint.at(address)
        found = voices.of_endpoint(server)
        self.app.call_from_thread(self._add, found, server.host)
        return None if found else f"{server.host} has no models"

    def _add(self, found: Sequence[Known], host: str) -> None:
        if found and self.is_mounted:
            self._all += [self._row(one) for one in found]
            self.query_one(Input).value = host

    def action_confirm(self) -> None:
        self.action_take()
