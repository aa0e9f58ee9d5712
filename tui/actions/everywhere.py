"""What works in every tab, and in dialogs. `app` answers with `action_<name>`."""

from __future__ import annotations

from tui.actions.row import Action
from tui.actions.tabs import TABS

_WATCH = "stage train machine log doctor report"
_ALL = _WATCH + " runs compare"

ROWS: tuple[Action, ...] = (
    Action("launch", ("g",), "Launch the whole pipeline", "Runs every stage that is not done yet, in order.",
           short="Launch", footer=_WATCH, lead=True, changes=True),
    Action("start_stage", ("s",), "Start this stage", "Runs the selected stage alone; asks about what it needs first.",
           changes=True),
    Action("start_from", ("f",), "Start from here on", "Runs the selected stage and everything after it.",
           changes=True),
    Action("stop", ("x",), "Stop", "Saves and stops what runs. Once more while it is stopping: kills it, after asking.",
           short="Stop", footer=_WATCH, lead=True, changes=True),
    Action("resume", ("r",), "Resume or retry", "Continues the stage that was stopped, failed or crashed, and goes on.",
           short="Resume", footer=_WATCH, lead=True, changes=True),
    Action("redo", ("R",), "Redo", "Makes what is stale, or the selected stage, again from its beginning; asks.",
           changes=True),
    Action("stage_down", ("j", "down"), "Next stage", "Selects the stage below.", short="Stage", footer=_WATCH,
           footer_key="j/k"),
    Action("stage_up", ("k", "up"), "Previous stage", "Selects the stage above."),
    Action("page_down", ("pagedown", "ctrl+d"), "Page down", "Scrolls the open tab."),
    Action("page_up", ("pageup", "ctrl+u"), "Page up", "Scrolls the open tab."),
    Action("top", ("home",), "To the top", "Scrolls the open tab to its beginning."),
    Action("bottom", ("end",), "To the end", "Scrolls the open tab to its end; the log follows again."),
    *(
        Action(f"show_tab('{tab.name}')", (str(number),), f"Show {tab.title}", tab.about,
               short="Tabs" if number == 0 else "", footer=_WATCH if number == 0 else "",
               footer_key=f"0-{len(TABS) - 1}" if number == 0 else "")
        for number, tab in enumerate(TABS)
    ),
    Action("back", ("escape",), "Stop or leave", "Stops an answer being written, leaves a box, closes a dialog.",
           short="Stop", footer="chat"),
    Action("jump", ("apostrophe",), "Jump", "Puts a letter on every place, stage and tab; press it to be there."),
    Action("appearance", ("comma",), "Appearance",
           "Colours, and ASCII only: chosen here and kept; a terminal of sixteen colours or fewer has its own."),
    Action("redraw", ("ctrl+l",), "Redraw", "Draws everything again; builds a tab anew that hit a bug."),
    Action("tour", (), "Tour of the app", "The four things to know, again."),
    Action("open_run", ("o",), "Open another run", "Lists the runs in the runs folder, newest first."),
    Action("help", ("f1", "question_mark"), "Help", "Explains the screen and lists every key.", short="Help",
           footer="*", footer_key="?"),
    Action("command_palette", ("ctrl+p",), "Command palette", "Finds any action, stage or run by name."),
    Action("replay_pause", ("f8",), "Pause the replay", "In a replay: holds it, or lets it go on.", short="Pause",
           footer=_WATCH),
    Action("replay_back", ("f7",), "Replay: back", "In a replay: ten seconds back, times its speed."),
    Action("replay_on", ("f9",), "Replay: forward", "In a replay: ten seconds on, times its speed."),
    Action("quit", ("q", "ctrl+q", "ctrl+c"), "Quit", "Closes the app. Training goes on: the run does not need it.",
           short="Quit", footer=_ALL),
)  # fmt: skip

DIALOG: tuple[Action, ...] = (
    Action("confirm", ("y",), "Yes", "Agrees to what a dialog asks."),
    Action("back", ("escape",), "Close", "Closes the dialog; nothing is changed."),
    Action("line_down", ("j",), "Next line", "In a list or a text, as the arrow does."),
    Action("line_up", ("k",), "Previous line", "In a list or a text, as the arrow does."),
    Action("keep", ("ctrl+s",), "Keep", "Keeps the notes that were written."),
)
