"""What can be done in Machine; its pane answers with `do_<name>`."""

from __future__ import annotations

from tui.actions.row import Action

ROWS: tuple[Action, ...] = (
    Action("span", ("t",), "Length of the history", "Shows the last 10 minutes, hour, 6 hours, or all.",
           short="History"),
    Action("cards", ("d",), "More or less of each GPU", "One line per GPU, or all that it reports, or as fits.",
           short="Detail"),
    Action("everyone", ("a",), "Whose processes", "Lists everybody's processes, or this run's alone.",
           short="Whose"),
    Action("recorded", ("w",), "Now, or as recorded", "When no run goes on: this machine now, or as the run left it.",
           short="Recorded"),
    Action("copy_machine", ("c", "Y"), "Copy the readings", "Copies what this tab shows, as text."),
)  # fmt: skip
