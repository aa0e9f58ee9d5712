"""A screen that is laid out at one size: the terminal's.

Textual lays a screen out at the size that a resize message bears, and each layout sends the screen such a message. Two
resizes in quick succession, as tiling window managers and tmux make them while an app starts, then answer each other
for ever, and nothing is drawn.
"""

from __future__ import annotations

from typing import Any

from textual.geometry import Size
from textual.reactive import Reactive
from textual.widget import Widget


class Steady:
    """Mixed into every screen, before Textual's class."""

    app: Any
    focused: Reactive[Widget | None] = Reactive(None, repaint=False)
    """Moving the focus repaints the two widgets between which it moves, not the whole screen."""

    def _screen_resized(self, size: Size) -> None:
        super()._screen_resized(self.app.size)  # type: ignore[misc]
