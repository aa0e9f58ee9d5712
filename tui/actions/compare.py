"""What can be done in Compare; its pane answers with `do_<name>`."""

from __future__ import annotations

from tui.actions.row import Action

ROWS: tuple[Action, ...] = (
    Action("ask", ("enter",), "Ask", "Both answer the prompt, with the same seed.", short="Ask"),
    Action("next_prompt", ("n",), "Next prompt", "Selects the next prompt of the run's list.", short="Prompt",
           footer_key="n/p"),
    Action("previous_prompt", ("p",), "Previous prompt", "Selects the prompt before."),
    Action("type_text", ("i",), "Type a prompt", "Goes to the text box; Enter asks it, Escape leaves the box.",
           short="Type"),
    Action("choose_b", ("b", "f2"), "Choose B", "Any model or checkpoint of any run, or of an endpoint: that of "
           "OPENAI_BASE_URL, or one whose address is typed.", short="Models", footer_key="a/b"),
    Action("choose_a", ("a",), "Choose A", "The same for the other side."),
    Action("later_b", ("right_square_bracket",), "B: later checkpoint", "The next one of its run answers the same "
           "prompt.", short="Step", footer_key="[ ]"),
    Action("earlier_b", ("left_square_bracket",), "B: earlier checkpoint", "The one before answers the same prompt."),
    Action("later_a", ("right_curly_bracket",), "A: later checkpoint", "The same for the other side."),
    Action("earlier_a", ("left_curly_bracket",), "A: earlier checkpoint", "The same for the other side."),
    Action("watch", ("w",), "Watch it learn", "Every checkpoint of B's run, from the first on, answers the prompt."),
    Action("vote", ("v",), "Vote", "Which answer is better, and points by three criteria; kept in the run's "
           "votes.jsonl.", short="Vote", changes=True),
    Action("carry_on", ("c",), "Carry on in Chat", "Takes the prompt and B's answer into a conversation.",
           short="To chat"),
    Action("diff", ("d",), "What differs", "The settings in which the two differ; once more: the answers again."),
    Action("settings", ("f3",), "Sampling", "Temperature, top-k, seed, longest answer, system prompt."),
    Action("copy_answers", ("Y",), "Copy both answers", "The prompt and both answers, as text."),
)  # fmt: skip
