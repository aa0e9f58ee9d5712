"""What can be done in Train; its pane answers with `do_<name>`."""

from __future__ import annotations

from tui.actions.row import Action

ROWS: tuple[Action, ...] = (
    Action("zoom", ("z",), "Zoom a chart", "Shows one chart large, then the next, then all again.", short="Zoom"),
)
