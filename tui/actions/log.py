"""What can be done in Log; its pane answers with `do_<name>`."""

from __future__ import annotations

from tui.actions.row import Action

ROWS: tuple[Action, ...] = (
    Action("follow", ("t",), "Follow or hold", "Stays at the end of the log as it grows, or stays where it is.",
           short="Follow"),
    Action("search", ("slash",), "Search", "A regular expression; capitals count if there are any. The nearest match "
           "above is found, else below.",
           short="Search"),
    Action("match_up", ("n",), "Next match above", "The match before the current one, with its number and how many.",
           short="Match", footer_key="n/N"),
    Action("match_down", ("N",), "Next match below", "The match after the current one."),
    Action("only", ("ampersand",), "Only matching lines", "Shows the lines that match, or all; the place stays."),
    Action("level", ("v",), "Level", "Everything, warnings and errors, or errors alone with their tracebacks.",
           short="Level"),
    Action("logs", ("m",), "All logs", "Lists every log of the run: attempts, machines, ranks, conductor, jobs.",
           short="Logs"),
    Action("log_next", ("right_square_bracket",), "Next log", "The next one of that list."),
    Action("log_previous", ("left_square_bracket",), "Previous log", "The one before."),
    Action("wrap", ("w",), "Wrap long lines", "Breaks lines at the edge, or cuts them there."),
    Action("shift_left", ("h", "left"), "Shift left", "Shows more of the beginning of long lines."),
    Action("shift_right", ("l", "right"), "Shift right", "Shows more of the end of long lines."),
    Action("line_down", ("J", "shift+down"), "Mark the line below", "Moves the marked line; a click does too."),
    Action("line_up", ("K", "shift+up"), "Mark the line above", "Moves the marked line up."),
    Action("select", ("space",), "Select lines", "Begins a selection at the marked line, or drops it."),
    Action("copy", ("c", "Y"), "Copy", "Copies the marked line or the selection, long lines whole."),
    Action("pager", ("p",), "Open in the pager", "Opens the log at this line in $PAGER, else in less."),
    Action("editor", ("e",), "Open in the editor", "Opens the log in $VISUAL, $EDITOR, nano or vi at this line."),
)  # fmt: skip
