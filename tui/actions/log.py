"""What can be done in Log; its pane answers with `do_<name>`."""

from __future__ import annotations

from tui.actions.row import Action

ROWS: tuple[Action, ...] = (
    Action("follow", ("t",), "Follow the log", "Stays at the end of the log as it grows, or stops doing so.",
           short="Follow"),
    Action("search", ("slash",), "Search the log", "Finds the next older line that matches; Enter again goes further.",
           short="Search"),
)  # fmt: skip
