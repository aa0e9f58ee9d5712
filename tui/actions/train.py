"""What can be done in Train; its pane answers with `do_<name>`."""

from __future__ import annotations

from tui.actions.row import Action

ROWS: tuple[Action, ...] = (
    Action("next_chart", ("n",), "Next chart", "Moves the focus to the next chart.", short="Chart", footer_key="n/p"),
    Action("previous_chart", ("p",), "Previous chart", "Moves the focus to the chart before."),
    Action("full_screen", ("enter", "z"), "One chart alone",
           "The focused chart over the whole screen; again: all of them.", short="Large"),
    Action("zoom_in", ("plus", "equals_sign"), "Zoom in",
           "Half as much of X, around the crosshair or the newest step.", short="Zoom", footer_key="+/-"),
    Action("zoom_out", ("minus",), "Zoom out", "Twice as much of X."),
    Action("left", ("left", "h"), "To the left",
           "Moves the crosshair by a cell; without one, the window by a quarter."),
    Action("right", ("right", "l"), "To the right", "The same to the right."),
    Action("crosshair", ("c",), "Crosshair", "A line through all charts, and what they read there; ← and → move it, "
           "and so does a click.",
           short="Cross"),
    Action("whole", ("a",), "Show all",
           "Ends zooming; once more: X spans what there is so far, or the whole plan again."),
    Action("unit", ("m",), "What X counts", "Steps, tokens, time at work, FLOPs: the next one."),
    Action("taller", ("right_square_bracket",), "Zoom in on Y", "Half as much of Y in the focused chart."),
    Action("flatter", ("left_square_bracket",), "Zoom out on Y", "Twice as much of Y."),
    Action("up", ("u",), "Look higher", "Moves the focused chart's Y up by a quarter."),
    Action("down", ("d",), "Look lower", "Moves it down by a quarter."),
    Action("log", ("L",), "Log scale", "Y of the focused chart as powers of ten, or plain again."),
    Action("smoother", ("e",), "Smoother", "A stronger moving average over the noisy curves."),
    Action("rougher", ("E",), "Rougher", "A weaker one; at the end none."),
    Action("filter", ("slash",), "Filter charts", "Shows only charts that match a regular expression."),
    Action("overlay", ("v",), "Lay runs over", "Draws the same stage of other runs into the charts."),
    Action("export_data", ("w",), "Write the data",
           "Writes the points of all charts as CSV into the run's exports/ folder.", changes=True),
    Action("export_picture", ("W",), "Write the picture",
           "Writes the charts as SVG into the run's exports/ folder.", changes=True),
)  # fmt: skip
