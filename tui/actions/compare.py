"""What can be done in Compare; its pane answers with `do_<name>`."""

from __future__ import annotations

from tui.actions.row import Action

ROWS: tuple[Action, ...] = (
    Action("next_prompt", ("n",), "Next prompt", "Selects the next prompt of the run's list.", short="Prompt",
           footer_key="n/p"),
    Action("previous_prompt", ("p",), "Previous prompt", "Selects the prompt before."),
    Action("ask", ("enter",), "Ask", "Both models answer the prompt.", short="Ask"),
    Action("next_model", ("f2",), "Choose the model", "The next chat model of this run.", short="Model"),
    Action("carry_on", ("c",), "Carry on in Chat", "Takes the prompt and the chat model's answer into a conversation.",
           short="To chat"),
    Action("type_text", ("i",), "Type", "Goes to the text box; Escape leaves it.", short="Type"),
    Action("settings", ("f3",), "Sampling", "Temperature, top-k, seed, longest answer, system prompt.",
           short="Sampling"),
)  # fmt: skip
