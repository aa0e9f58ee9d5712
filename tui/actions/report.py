"""What can be done in Report; its pane answers with `do_<name>`."""

from __future__ import annotations

from tui.actions.row import Action

ROWS: tuple[Action, ...] = (
    Action("next_section", ("right", "l"), "Next section", "Of the report, then samples, failures, votes, manifest.",
           short="Section", footer_key="h/l"),
    Action("previous_section", ("left", "h"), "Section before", "Goes back one section."),
    Action("next_row", ("n",), "Next row", "The next prompt, wrong answer, or line of the manifest.", short="Row",
           footer_key="n/p"),
    Action("previous_row", ("p",), "Row before", "The one above."),
    Action("next_group", ("right_square_bracket",), "Next task or stage", "In Failures the next task, in Samples the "
           "next stage, in Manifest the next entry of the first level.", short="Task", footer_key="[ ]"),
    Action("previous_group", ("left_square_bracket",), "Task or stage before", "The one before."),
    Action("next_model", ("m",), "Next model", "Whose wrong answers Failures shows.", short="Model"),
    Action("open", ("enter",), "Open or close", "The chosen line of the manifest.", short="Open"),
    Action("sort", ("t",), "Sort tables", "By the next column; after the last one as they were written.",
           short="Sort"),
    Action("reverse", ("T",), "Sort the other way", "Largest or smallest first."),
    Action("copy_part", ("Y",), "Copy", "What the section shows: its tables as tab-separated lines."),
)  # fmt: skip
