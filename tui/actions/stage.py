"""What can be done in Pipeline; its pane answers with `do_<name>`."""

from __future__ import annotations

from tui.actions.row import Action

ROWS: tuple[Action, ...] = (
    Action("kill", ("X",), "Kill", "Ends what runs at once, without saving, after asking.", changes=True),
    Action("explain", ("e",), "More or less about the stage", "Shows or hides the idea behind the stage, typical "
           "figures, and what to do when something looks wrong.", short="Explain"),
)  # fmt: skip
