"""The actions that belong to one tab: log, train, compare, chat."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from picollm.run.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from textual.app import App

    from tui.screens.main import MainScreen
    from tui.talk import Sampling

    class _App(App[None]):
        """What the app has that these actions use."""

        main: MainScreen

        @property
        def sampling(self) -> Sampling: ...
        def conversations_folder(self) -> Path: ...
        def work(self, job: Callable[[], str | None]) -> None: ...
        def complain(self, words: str) -> None: ...
else:
    _App = object


class PaneActions(_App):
    """Mixed into the app; `check_action` keeps each to its tab."""

    def _pane(self, tab: str = "") -> Any:
        return self.main.panes[tab or self.main.tab]

    def action_follow(self) -> None:
        self._pane().toggle_follow()

    def action_search(self) -> None:
        self._pane().search()

    def action_zoom(self) -> None:
        self._pane().zoom()

    def action_next_prompt(self) -> None:
        self._pane().step(1)

    def action_previous_prompt(self) -> None:
        self._pane().step(-1)

    def action_ask(self) -> None:
        """Compare asks; in Chat the box sends by itself, so that Enter elsewhere leads to the box."""
        try:
            if self.main.tab == "compare":
                self._pane().ask()
            else:
                self.action_type_text()
        except UserError as error:
            self.complain(str(error))

    def action_next_model(self) -> None:
        self._pane().next_model()

    async def action_carry_on(self) -> None:
        compare = self._pane()
        model, prompt, pane = compare.carry()
        if not model or not prompt:
            self.notify("nothing to carry on yet: ask first", timeout=4)
            return
        compare.cancel()
        finish = pane.finish if pane.answer else None
        await self.main.show_tab("chat")
        chat = self._pane("chat")
        chat.update_from(self.main.view)
        chat.carry_on(model, prompt, pane.answer if pane.model == model else "", finish, pane.tok_s)

    def action_type_text(self) -> None:
        self._pane().query_one("PromptBox").focus()

    def action_settings(self) -> None:
        from tui.screens.ask import SamplingScreen

        self.push_screen(SamplingScreen(self.sampling), self._take_sampling)

    def _take_sampling(self, sampling: Sampling | None) -> None:
        if sampling is None:
            return
        for name in sampling.__struct_fields__:
            msgspec.structs.force_setattr(self.sampling, name, getattr(sampling, name))
        self.call_after_refresh(self.main.redraw)
        for tab in ("compare", "chat"):
            if tab in self.main.panes:
                self._pane(tab)._draw()

    def action_new_conversation(self) -> None:
        self._pane().start_new()

    def action_edit_last(self) -> None:
        self._pane().edit_last()

    def action_conversations(self) -> None:
        self.work(self._find_conversations)

    def _find_conversations(self) -> None:
        """In a thread: read the folder, then offer the list."""
        from tui import conversations
        from tui.figures import clock

        found = conversations.kept(self.conversations_folder())
        if not found:
            self.call_from_thread(self.notify, "no conversation kept yet", timeout=4)
            return
        import time

        now = time.time()
        rows = [(one.id, one.title, f"{one.model}, {clock(now - one.created)} ago") for one in found]
        self.call_from_thread(self._offer_conversations, rows)

    def _offer_conversations(self, rows: list[tuple[str, str, str]]) -> None:
        from tui.screens.ask import PickScreen

        self.push_screen(PickScreen("Earlier conversations", rows), self._open_conversation)

    def _open_conversation(self, identity: str | None) -> None:
        if identity is None:
            return
        from tui import conversations

        def read() -> None:
            found = conversations.load(self.conversations_folder() / f"{identity}.json")
            self.call_from_thread(self._pane("chat").open, found)

        self.work(read)
