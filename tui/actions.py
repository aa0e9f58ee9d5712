"""Every key, exactly once. Bindings, footer, help and the command palette are all read from this table.

Who calls what: `app` turns rows into bindings and answers `action_<name>`; `widgets.frame.Footer` shows the rows that
fit the tab; `screens.help` prints all; `palette` offers all.
"""

from __future__ import annotations

from dataclasses import dataclass

from textual.binding import Binding


@dataclass(frozen=True)
class Tab:
    name: str
    title: str
    short: str
    about: str


TABS: tuple[Tab, ...] = (
    Tab("stage", "Stage", "Stage", "What the selected stage is for, how it stands, and why."),
    Tab("doctor", "Doctor", "Doc", "What was checked on this machine, what was found, and how to mend it."),
    Tab("train", "Train", "Train", "Live curves of the selected training stage."),
    Tab("machine", "Machine", "Mach", "Processor, memory, disk and GPUs while the run goes on."),
    Tab("log", "Log", "Log", "What the selected stage printed; follows the end until you scroll away."),
    Tab("report", "Report", "Rep", "The report that the run wrote, and its manifest."),
    Tab("compare", "Compare", "Comp", "The same prompt and seed to the base and the chat model, side by side."),
    Tab("chat", "Chat", "Chat", "Talk to what the run made."),
)
TAB_NAMES = tuple(tab.name for tab in TABS)


@dataclass(frozen=True)
class Action:
    """One thing a person can do.

    `name` is the method `action_<name>` (with its argument); `scope` "run" works everywhere, a tab's name only there,
    "dialog" only in dialogs. `footer` lists the tabs whose footer shows it ("*": all); `short` is its label there.
    """

    name: str
    keys: tuple[str, ...]
    title: str
    help: str
    scope: tuple[str, ...] = ("run",)
    footer: str = ""
    short: str = ""
    footer_key: str = ""

    @property
    def shown(self) -> str:
        """The keys as a person reads them."""
        return " ".join(_SPELLING.get(key, key) for key in self.keys)

    @property
    def first(self) -> str:
        return self.footer_key or _SPELLING.get(self.keys[0], self.keys[0])


_SPELLING = {
    "question_mark": "?", "slash": "/", "escape": "esc", "pagedown": "PgDn", "pageup": "PgUp", "ctrl+p": "^p",
    "ctrl+q": "^q", "ctrl+c": "^c", "ctrl+n": "^n", "up": "↑", "down": "↓", "f1": "F1", "f2": "F2", "f3": "F3",
    "f4": "F4", "f5": "F5", "home": "Home", "end": "End",
}  # fmt: skip

_WATCH = "stage doctor train machine log report"

ACTIONS: tuple[Action, ...] = (
    Action("launch", ("g",), "Launch the whole pipeline", "Runs every stage that is not done yet, in order.",
           footer=_WATCH, short="Launch"),
    Action("start_stage", ("s",), "Start this stage", "Runs the selected stage alone; asks about what it needs first."),
    Action("start_from", ("f",), "Start from here on", "Runs the selected stage and everything after it."),
    Action("stop", ("x",), "Stop", "Saves and stops what runs. Once more while it is stopping: kills it, after asking.",
           footer=_WATCH, short="Stop"),
    Action("resume", ("r",), "Resume or retry", "Continues the stage that was stopped, failed or crashed, and goes on.",
           footer=_WATCH, short="Resume"),
    Action("redo", ("R",), "Redo", "Makes what is stale, or the selected stage, again from its beginning; asks."),
    Action("stage_down", ("j", "down"), "Next stage", "Selects the stage below.", footer=_WATCH, short="Stage",
           footer_key="j/k"),
    Action("stage_up", ("k", "up"), "Previous stage", "Selects the stage above."),
    Action("page_down", ("pagedown",), "Page down", "Scrolls the open tab."),
    Action("page_up", ("pageup",), "Page up", "Scrolls the open tab."),
    Action("top", ("home",), "To the top", "Scrolls the open tab to its beginning."),
    Action("bottom", ("end",), "To the end", "Scrolls the open tab to its end; the log follows again."),
    *(
        Action(f"show_tab('{tab.name}')", (str(number),), f"Show {tab.title}", tab.about,
               footer="stage doctor train machine report" if number == 0 else "",
               short="Tabs", footer_key="0-7" if number == 0 else "")
        for number, tab in enumerate(TABS)
    ),
    Action("follow", ("t",), "Follow the log", "Stays at the end of the log as it grows, or stops doing so.",
           ("log",), "log", "Follow"),
    Action("search", ("slash",), "Search the log", "Finds the next older line that matches; Enter again goes further.",
           ("log",), "log", "Search"),
    Action("zoom", ("z",), "Zoom a chart", "Shows one chart large, then the next, then all again.",
           ("train",), "train", "Zoom"),
    Action("next_prompt", ("n",), "Next prompt", "Selects the next prompt of the run's list.",
           ("compare",), "compare", "Prompt", footer_key="n/p"),
    Action("previous_prompt", ("p",), "Previous prompt", "Selects the prompt before.", ("compare",)),
    Action("ask", ("enter",), "Ask", "Compare: both models answer the prompt. Chat: sends what you typed.",
           ("compare", "chat"), "compare chat", "Ask"),
    Action("next_model", ("f2",), "Choose the model", "The next chat model of this run.",
           ("compare", "chat"), "compare chat", "Model"),
    Action("carry_on", ("c",), "Carry on in Chat", "Takes the prompt and the chat model's answer into a conversation.",
           ("compare",), "compare", "To chat"),
    Action("type_text", ("i",), "Type", "Goes to the text box of Compare or Chat; Escape leaves it.",
           ("compare", "chat"), "compare", "Type"),
    Action("settings", ("f3",), "Sampling", "Temperature, top-k, seed, longest answer, system prompt.",
           ("compare", "chat"), "compare chat", "Sampling"),
    Action("edit_last", ("f4",), "Edit the last prompt", "Takes your last message back into the box, to send it anew.",
           ("chat",), "chat", "Edit"),
    Action("new_conversation", ("ctrl+n",), "New conversation", "Starts afresh; the old one stays on disk.",
           ("chat",), "chat", "New"),
    Action("conversations", ("f5",), "Earlier conversations", "Opens one that was kept in the run folder.",
           ("chat",), "chat", "Earlier"),
    Action("back", ("escape",), "Stop or leave", "Stops an answer being written, leaves a box, closes a dialog.",
           ("run", "dialog"), "chat", "Stop"),
    Action("confirm", ("y",), "Yes", "Agrees to what a dialog asks.", ("dialog",)),
    Action("open_run", ("o",), "Open another run", "Lists the runs in the runs folder, newest first."),
    Action("help", ("f1", "question_mark"), "Help", "Explains the screen and lists every key.", footer="*",
           short="Help", footer_key="?"),
    Action("command_palette", ("ctrl+p",), "Command palette", "Finds any action, stage or run by name."),
    Action("quit", ("q", "ctrl+q", "ctrl+c"), "Quit", "Closes the app. Training goes on: the run does not need it.",
           footer=_WATCH + " compare", short="Quit"),
)  # fmt: skip

FOOTER_LIMIT = 8


def base(action: Action) -> str:
    """The method's name without its argument."""
    return action.name.partition("(")[0]


def find(name: str) -> Action:
    """The row whose method is `name`."""
    return next(action for action in ACTIONS if base(action) == name)


def bindings(scope: str = "") -> list[Binding]:
    """Textual's bindings: all but the dialog-only ones, or with `scope` that scope's own."""
    rows = [row for row in ACTIONS if (scope in row.scope if scope else row.scope != ("dialog",))]
    return [
        Binding(",".join(row.keys), row.name, row.title, show=False, id=f"{base(row)}.{row.keys[0]}")
        for row in rows
        if row.name != "command_palette"
    ]


def scopes() -> dict[str, tuple[str, ...]]:
    """Method name to where it works."""
    return {base(row): row.scope for row in ACTIONS}


def footer(tab: str, possible: dict[str, bool] | None = None) -> list[Action]:
    """The rows that the footer shows on `tab`, most useful first; what cannot be done now is left out."""
    possible = possible or {}
    rows = [row for row in ACTIONS if row.footer == "*" or tab in row.footer.split()]
    return [row for row in rows if possible.get(base(row), True)][:FOOTER_LIMIT]
