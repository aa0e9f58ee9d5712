"""What can be done in Chat; its pane answers with `do_<name>`."""

from __future__ import annotations

from tui.actions.row import Action

ROWS: tuple[Action, ...] = (
    Action("ask", ("enter", "i"), "Write", "Goes to the text box; there Enter sends, Escape leaves it.", short="Write"),
    Action("choose_model", ("f2", "m"), "Choose the model", "Any model or checkpoint of any run, or of an endpoint: "
           "that of OPENAI_BASE_URL, or one whose address is typed.", short="Model"),
    Action("again", ("a",), "Answer again", "Another answer to the same, with the next seed; the earlier one is kept "
           "in the file.", short="Again"),
    Action("edit_last", ("e", "f4"), "Edit and send anew", "Takes the chosen message of yours, or the last, back into "
           "the box; the conversation so far stays on disk.", short="Edit"),
    Action("tokens", ("t",), "Tokens", "How likely each token was, and what else could have stood there.",
           short="Tokens"),
    Action("token_right", ("right", "l"), "Next token", "Moves the cursor of the token view."),
    Action("token_left", ("left", "h"), "Token before", "Moves the cursor of the token view."),
    Action("next_turn", ("n",), "Next message", "Chooses the message below, to copy, edit or look into."),
    Action("previous_turn", ("p",), "Message before", "Chooses the message above."),
    Action("settings", ("f3",), "Sampling", "Temperature, top-k, seed, longest answer, system prompt.",
           short="Sampling"),
    Action("conversations", ("f5",), "Earlier conversations", "Opens one that was kept in the run folder.",
           short="Earlier"),
    Action("new_conversation", ("ctrl+n",), "New conversation", "Starts afresh; the old one stays on disk."),
    Action("copy_turn", ("Y",), "Copy the message", "The chosen message, or the last answer, as it was written."),
    Action("markdown", ("M",), "Markdown or plain", "Shows answers as Markdown, or as the text they are."),
)  # fmt: skip
