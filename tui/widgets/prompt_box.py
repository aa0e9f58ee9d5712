"""A text box for prompts: Enter sends, Ctrl+J starts a new line, a paste keeps its lines."""

from __future__ import annotations

from textual import events
from textual.message import Message
from textual.widgets import TextArea


class PromptBox(TextArea):
    """Grows to five lines."""

    DEFAULT_CSS = """
    PromptBox { height: auto; max-height: 5; border: none; padding: 0 1; background: $panel;
        scrollbar-size-vertical: 1; }
    PromptBox:focus { border: none; }
    """

    class Sent(Message):
        def __init__(self, box: PromptBox, value: str) -> None:
            super().__init__()
            self.box, self.value = box, value

        @property
        def control(self) -> PromptBox:
            return self.box

    def __init__(self, placeholder: str, id: str | None = None) -> None:
        super().__init__(id=id, soft_wrap=True, show_line_numbers=False, compact=True, placeholder=placeholder,
                         highlight_cursor_line=False, tab_behavior="focus")  # fmt: skip
        self.cursor_blink = False  # over SSH a blink is traffic

    async def _on_key(self, event: events.Key) -> None:
        if event.key == "enter":
            event.stop()
            event.prevent_default()
            if self.text.strip():
                self.post_message(self.Sent(self, self.text.strip()))
        elif event.key == "ctrl+j":
            event.stop()
            event.prevent_default()
            self.insert("\n")
        elif event.key == "escape":
            event.prevent_default()
        else:
            await super()._on_key(event)
