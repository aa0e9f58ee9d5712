"""What can be done in Runs; its pane answers with `do_<name>`."""

from __future__ import annotations

from tui.actions.row import Action

ROWS: tuple[Action, ...] = (
    Action("open", ("enter",), "Open", "Shows the selected run in all tabs.", short="Open"),
)  # fmt: skip
