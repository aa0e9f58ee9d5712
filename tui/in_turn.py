"""One key after another: what is typed ahead, or comes in one piece, goes where the keys before it led.

Textual hands a key to the widget that has the focus at the moment the key comes in. "i" followed at once by a question
would have the question's letters act as commands while "i" is still on its way to the text box.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from textual import events
from textual.app import ScreenStackError
from textual.message import Message
from textual.message_pump import MessagePump

PASSES = 3
"""What a key sets off goes on setting things off: a box says that Enter was pressed, its dialog closes, who had opened
it acts. Each comes up the tree once more."""
HELD_S = 10.0
"""No key waits longer for the one before it, whatever hangs."""
ASKED_S = 2.0
"""Nor this long for what that one asked of a thread: files are looked at before a dialog opens or a tab has lines."""


class KeysInTurn:
    """Mixed into the app, to which the driver brings every key."""

    focused: Any
    screen: Any
    screen_stack: Any
    asked: asyncio.Event | None = None
    """Set when what was asked of a thread last is done."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._turn = asyncio.Lock()
        self._came = self._void = 0

    @property
    def at_rest(self) -> bool:
        """Whether nothing is under way that a thread was asked for."""
        return self.asked is None or self.asked.is_set()

    def begin(self) -> asyncio.Event:
        """What is begun now ends when the event that this gives is set; keys wait for it."""
        self.asked = asyncio.Event()
        return self.asked

    def forget_typed_ahead(self) -> None:
        """A key could not do what it is for: what was typed behind it was meant for what it would have led to."""
        self._void = self._came

    async def _post_message(self, message: Message) -> bool:
        if not isinstance(message, events.Key | events.Paste):
            return await super()._post_message(message)  # type: ignore[misc, no-any-return]
        self._came += 1
        number = self._came
        async with self._turn:
            if number <= self._void or not self.screen_stack:  # before the first screen, after the last
                return False
            before, written = self.asked, self._is_written(message)
            posted: bool = await super()._post_message(message)  # type: ignore[misc]
            with contextlib.suppress(TimeoutError, ScreenStackError):  # it may have ended the app
                if not written:
                    await asyncio.wait_for(self._acted_on(), HELD_S)
                while self.asked is not None and self.asked is not before:
                    before = self.asked
                    await asyncio.wait_for(before.wait(), ASKED_S)
                    await asyncio.wait_for(self._acted_on(), HELD_S)
            return posted

    def _is_written(self, event: events.Key | events.Paste) -> bool:
        """Whether it is a letter for the text box that has the focus: no other key has to wait for it."""
        box = self.focused
        return isinstance(event, events.Key) and box is not None and box.check_consume_key(event.key, event.character)

    async def _acted_on(self) -> None:
        """Until the app, and every widget from the one that has the focus upward, has done what it was asked so far."""
        this: Any = self
        for _ in range(PASSES):
            for node in (this, *(self.focused or self.screen).ancestors_with_self):
                await _done(node)


async def _done(node: MessagePump) -> None:
    done = asyncio.Event()
    if node.call_later(done.set):
        await done.wait()
