"""The actions that belong to the frame and to no tab: help, jump, appearance, tour, redraw, copy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from textual import events
from textual.filter import LineFilter, Monochrome, NoColor

from tui import filters, preferences
from tui.palette import open_palette
from tui.widgets import tones
from tui.widgets.lines import clean

if TYPE_CHECKING:
    from textual.app import App
    from textual.driver import Driver

    from tui.screens.main import MainScreen

    class _App(App[None]):
        """What the app has that these actions use."""

        main: MainScreen

        def work(self, job: Callable[[], str | None]) -> None: ...
else:
    _App = object


class FrameActions(_App):
    """Mixed into the app; `look` is what a person chose about it."""

    look: preferences.Preferences
    _passed: tuple[object, list[LineFilter]] | None = None

    def notify(self, message: str, **how: Any) -> None:
        """A message in the corner; it may hold words of servers and files."""
        super().notify(clean(message), **how)

    # how it looks ---------------------------------------------------------------------------------------------------

    def dress(self, look: preferences.Preferences) -> None:
        """Draw with this theme and these characters from now on."""
        self.look = look
        tones.use(look.theme)
        self.register_theme(tones.theme(tones.current()))
        self.theme = look.theme
        if self.is_running:
            for pane in self.main.panes.values():
                redress = getattr(pane, "redress", None)  # those that draw themselves when something happens only
                if redress is not None and pane.is_mounted:
                    redress()
            self.main.redraw()
            for screen in self.screen_stack:
                for widget in screen.walk_children(with_self=True):
                    widget.refresh()

    def get_line_filters(self) -> Sequence[LineFilter]:
        """What every line passes through before it is sent: no colour under NO_COLOR, ASCII only where wanted."""
        key = (self.no_color, self.look.theme, self.look.ascii)
        if self._passed is None or self._passed[0] != key:
            found = [one for one in self._filters if not isinstance(one, Monochrome | NoColor)]
            if tones.current().name == tones.PLAIN:
                found.append(filters.Bare())
            else:
                found += [NoColor()] if self.no_color else [] if tones.current().own else [filters.Ground()]
            found += [filters.Ascii()] if self.look.ascii else []
            self._passed = (key, found)
        return [one for one in self._passed[1] if one.enabled]

    def get_driver_class(self) -> type[Driver]:
        """Textual's choice; where that is the terminal driver, ours with fewer bytes."""
        found = super().get_driver_class()
        if found.__name__ != "LinuxDriver":
            return found
        from tui.driver import LeanDriver

        return LeanDriver

    def on_resize(self, event: events.Resize) -> None:
        """The driver's picture of the terminal is of another size."""
        self._draw_all(event.size.width)

    def _draw_all(self, width: int) -> None:
        """Nothing that the terminal shows is taken for known."""
        resized = getattr(self._driver, "resized", None)
        if resized is not None:
            resized(width)

    def action_appearance(self) -> None:
        from tui.screens.appearance import AppearanceScreen

        self.push_screen(AppearanceScreen(self.look))

    def keep(self, look: preferences.Preferences) -> None:
        """Use these, and keep them for the next time."""
        self.dress(look)
        self.work(lambda: preferences.keep(look))

    # finding one's way ----------------------------------------------------------------------------------------------

    def action_help(self) -> None:
        from tui.screens.help import HelpScreen

        self.push_screen(HelpScreen(self.main.tab))

    def action_command_palette(self) -> None:
        open_palette(self)

    def action_tour(self) -> None:
        from tui.screens.tour import TourScreen

        self.push_screen(TourScreen())

    def action_jump(self) -> None:
        from tui.screens.jump import JumpScreen, targets

        self.push_screen(JumpScreen(targets(self.main)), self._jump)

    async def _jump(self, goal: Any) -> None:
        """To the tab, the stage or the widget that was pressed."""
        if isinstance(goal, tuple):
            await self.run_action(f"{goal[0]}('{goal[1]}')", self)
        elif goal is not None:
            self.main.set_focus(goal)

    async def action_redraw(self) -> None:
        """Everything again, and the open tab anew when it had failed."""
        await self.main.build_anew()
        self._draw_all(self.size.width)
        self.main.redraw()
        self.refresh(repaint=True, layout=True)

    # copying --------------------------------------------------------------------------------------------------------

    def copy(self, text: str, what: str) -> None:
        """Copy `text` by the best route there is here, and say which; `what` names it on the screen."""
        from tui import clipboard

        def send(words: str) -> None:
            self.call_from_thread(self.copy_to_clipboard, words)

        self.work(lambda: clipboard.copy(text, what, send))
