"""What can be done in Runs; its pane answers with `do_<name>`."""

from __future__ import annotations

from tui.actions.row import Action

ROWS: tuple[Action, ...] = (
    Action("open", ("enter",), "Open the run", "Shows the selected run in all tabs.", short="Open"),
    Action("new", ("n",), "New run", "A form of all settings, with time, memory, disk and cost beside it.",
           short="New", changes=True),
    Action("duplicate", ("d",), "Duplicate with changes", "A new run with the settings of the selected one, and on "
           "what it made if you like.", short="Duplicate", changes=True),
    Action("note", ("e",), "Notes", "Your own words about the run; the report repeats them.", short="Notes",
           changes=True),
    Action("rename", ("m",), "Rename", "Gives the run another name; not while it is at work.", changes=True),
    Action("archive", ("a",), "Archive or restore", "Puts the run out of sight with all it made, or takes it back.",
           changes=True),
    Action("delete", ("D",), "Delete", "Removes the run and all it made, after saying what goes.", changes=True),
    Action("filter", ("slash",), "Filter the runs", "Shows the runs whose name, state, stage or note has these words.",
           short="Filter"),
    Action("sort", ("t",), "Sort the runs", "By activity, name, state, bits per byte or loss, in turn.", short="Sort"),
    Action("show_archived", ("A",), "Show archived runs", "Lists the archived runs below the others, or not."),
)  # fmt: skip
