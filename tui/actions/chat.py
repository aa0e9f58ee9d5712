"""What can be done in Chat; its pane answers with `do_<name>`."""

from __future__ import annotations

from tui.actions.row import Action

ROWS: tuple[Action, ...] = (
    Action("ask", ("enter",), "Send", "Goes to the text box; in it, sends what you typed.", short="Ask"),
    Action("next_model", ("f2",), "Choose the model", "The next chat model of this run.", short="Model"),
    Action("settings", ("f3",), "Sampling", "Temperature, top-k, seed, longest answer, system prompt.",
           short="Sampling"),
    Action("edit_last", ("f4",), "Edit the last prompt", "Takes your last message back into the box, to send it anew.",
           short="Edit"),
    Action("new_conversation", ("ctrl+n",), "New conversation", "Starts afresh; the old one stays on disk.",
           short="New"),
    Action("conversations", ("f5",), "Earlier conversations", "Opens one that was kept in the run folder.",
           short="Earlier"),
    Action("type_text", ("i",), "Type", "Goes to the text box; Escape leaves it."),
)  # fmt: skip
