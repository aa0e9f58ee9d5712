"""What a tab shows when its own code failed: the error, and how to go on."""

from __future__ import annotations

import traceback
from typing import Any

from tui import actions, guard
from tui.widgets.lines import LinesView, heading, text

FRAMES = 4


class FailedPane(LinesView):
    """Stands in for a pane until it is built anew."""

    failing = True

    def __init__(self, title: str, error: Exception, id: str | None = None) -> None:
        super().__init__(id=id)
        self.error = error
        key = actions.find("redraw").first
        frames = traceback.extract_tb(error.__traceback__)[-FRAMES:]
        self._said = [
            text((f"! {title} hit a bug of its own", "bad")),
            text(""),
            text((guard.summary(error), "strong")),
            text(""),
            text("The run is not touched, and the other tabs work."),
            text((key, "accent"), " builds this tab anew."),
            text(""),
            heading("Where", f"all of it is in {guard.crash_file()}"),
            *(text((f"  {frame.filename}:{frame.lineno}  {frame.name}", "faint")) for frame in frames),
        ]

    def on_mount(self) -> None:
        self.call_after_refresh(self.show, self._said)

    def update_from(self, *anything: Any) -> None:
        """Nothing: what was found stays until the tab is built anew."""

    open = update_from
