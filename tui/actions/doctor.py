"""What can be done in Doctor; its pane answers with `do_<name>`."""

from __future__ import annotations

from tui.actions.row import Action

ROWS: tuple[Action, ...] = (
    Action("check_all", ("a",), "Check everything again", "Makes every check now, beside the run; no stage is touched.",
           short="Check all", changes=True),
    Action("check_one", ("enter",), "Check this again", "Makes the selected check now.", short="This one",
           changes=True),
    Action("check_down", ("J", "shift+down"), "Next check", "Selects the check below and says what it is for.",
           short="Select", footer_key="J/K"),
    Action("check_up", ("K", "shift+up"), "Previous check", "Selects the check above."),
    Action("copy_fix", ("c", "Y"), "Copy the fix", "Copies how the selected check is mended, or what it found.",
           short="Copy"),
)  # fmt: skip
