"""The messages of a conversation, one below the other; which of them is chosen, and where the token cursor is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import RenderableType
from textual.containers import VerticalScroll

from tui.conversations import Turn
from tui.widgets.answer import Answer
from tui.widgets.lines import LinesView
from tui.widgets.turn import TurnView

MOST_SHOWN = 40  # messages; the others are in the file


class Turns(VerticalScroll):
    """`token` is the place in the token view of the chosen message; None: its words are shown."""

    DEFAULT_CSS = """
    Turns { height: 1fr; width: 1fr; scrollbar-size-vertical: 1; scrollbar-gutter: stable; }
    Turns #chat-empty { height: auto; }
    """

    def __init__(self, id: str) -> None:
        super().__init__(id=id, can_focus=True)
        self.shown: Sequence[Turn] = ()
        self.chosen: Turn | None = None
        self.token: int | None = None
        self.as_markdown = True
        self.following = True

    async def fill(self, turns: Sequence[Turn], answers: Mapping[int, Answer]) -> None:
        """Show these from now on, the newest ones where there are very many. `answers` by id of their message."""
        self.shown = turns[-MOST_SHOWN:]
        if self.chosen not in self.shown:
            self.chosen, self.token = None, None
        with self.app.batch_update():
            await self.remove_children()
            if not self.shown:
                await self.mount(LinesView(id="chat-empty"))
            else:
                await self.mount_all([self._view(turn, answers.get(id(turn))) for turn in self.shown])
        self.to_end()

    def _view(self, turn: Turn, answer: Answer | None) -> TurnView:
        view = TurnView(turn, answer, self.as_markdown)
        view.chosen = turn is self.chosen
        view.tokens = self.token if view.chosen else None
        return view

    def say_empty(self, blocks: list[RenderableType]) -> None:
        """What is shown where there is no message."""
        for empty in self.query("#chat-empty").results(LinesView):
            self.call_after_refresh(empty.show, blocks)

    @property
    def views(self) -> list[TurnView]:
        return list(self.query(TurnView))

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        super().watch_scroll_y(old_value, new_value)
        self.following = new_value >= self.max_scroll_y - 1

    def follow(self) -> None:
        """Keep what is written at the end in view, unless the person scrolled up."""
        if self.following:
            self.to_end()

    def to_end(self) -> None:
        """When what was drawn has its height: after one refresh it is laid out, after two it has its place."""
        self.call_after_refresh(self.call_after_refresh, self.scroll_end, animate=False)

    def forget(self) -> None:
        """Nothing is chosen any more; to be followed by `fill`."""
        self.chosen, self.token = None, None

    async def step(self, by: int) -> None:
        """Choose the message above or below."""
        if self.shown:
            at = next((n for n, turn in enumerate(self.shown) if turn is self.chosen),
                      len(self.shown) if by < 0 else -1)  # fmt: skip
            await self.mark(self.shown[min(len(self.shown) - 1, max(0, at + by))], None)

    async def mark(self, turn: Turn | None, token: int | None) -> None:
        """Choose a message, with the token view or without."""
        self.chosen, self.token = turn, token
        for view in self.views:
            was, view.chosen = view.chosen, view.turn is turn
            want = token if view.chosen else None
            if view.tokens != want:
                await view.show_tokens(want)
            elif was != view.chosen:
                view.draw()
            if view.chosen and (not was or token is not None):
                self.call_after_refresh(self.call_after_refresh, self.scroll_to_widget, view, animate=False)

    async def move_token(self, by: int) -> None:
        """Move the token cursor, where there is one."""
        if self.token is None or self.chosen is None:
            return
        answer = next((view.answer for view in self.views if view.chosen), None)
        last = len(answer.seen) - 1 if answer else 0
        await self.mark(self.chosen, min(max(0, last), max(0, self.token + by)))
