"""What can be done in the form of a new run; `screens.new_run` answers with `action_<name>`."""

from __future__ import annotations

from tui.actions.row import Action

ROWS: tuple[Action, ...] = (
    Action("edit", ("enter", "i"), "Change", "Writes a new value; Enter takes it, esc does not.", short="Change"),
    Action("next_choice", ("right", "l", "space"), "Next choice", "Where the values are a list: the next one.",
           short="Choose", footer_key="←/→"),
    Action("make_and_launch", ("g",), "Make and launch the run", "Makes the run and launches the whole pipeline.",
           short="Launch", changes=True),
    Action("make", ("w",), "Make the run", "Makes the run and leaves it to be launched later.", short="Make",
           changes=True),
    Action("back", ("escape",), "Leave", "Stops writing a value or finding; else leaves the form, after asking when "
           "something was changed.", short="Leave"),
    Action("next_place", ("p",), "Plan for another machine", "The time, memory and cost beside the form: for the next "
           "machine of the table.", footer_key="p/P"),
    Action("find_field", ("slash",), "Find a setting", "Shows the settings whose name or description has these words.",
           short="Find"),
    Action("everything", ("a",), "All settings or the important ones", "Shows every setting there is, or those that "
           "most people change.", short="All"),
    Action("reset", ("u", "delete"), "Undo", "Back to what the profile, or the run that was copied, says."),
    Action("next_field", ("j", "down"), "Next setting", "Goes to the setting below."),
    Action("help", ("f1", "question_mark"), "Help", "Lists these keys; where something is written, ? is a letter.",
           short="Help", footer_key="?"),
    Action("previous_field", ("k", "up"), "Previous setting", "Goes to the setting above."),
    Action("previous_choice", ("left", "h"), "Previous choice", "Where the values are a list: the one before."),
    Action("previous_place", ("P",), "Plan for the machine before", "The same, the other way round."),
    Action("page_fields_down", ("pagedown",), "Settings further down", "A page further down."),
    Action("page_fields_up", ("pageup",), "Settings further up", "A page further up."),
    Action("first_field", ("home",), "First setting", "Goes to the top."),
    Action("last_field", ("end",), "Last setting", "Goes to the end."),
)  # fmt: skip
