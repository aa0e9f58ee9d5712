"""Every key, exactly once. Bindings, footer, help, command palette and jump mode are all read from this table.

Who calls what: the files beside this one hold the rows, one file a tab; `app` turns them into bindings and sends a
press to the pane of the tab (`do_<name>`) or to itself (`action_<name>`); `widgets.frame.Footer` shows the rows that
fit; `screens.help` prints all; `palette` offers all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from textual.binding import Binding

from tui.actions import chat, compare, doctor, everywhere, log, machine, new_run, report, runs, stage, train
from tui.actions.row import NAMED_KEYS, Action, Tab, spelled
from tui.actions.tabs import TAB_NAMES, TABS

__all__ = ["ACTIONS", "FOOTER_LIMIT", "NAMED_KEYS", "TABS", "TAB_NAMES", "Action", "Tab", "bindings", "find", "footer",
           "of", "remap", "row", "spelled", "where"]  # fmt: skip

FOOTER_LIMIT = 8
DIALOG, FORM = "dialog", "form"
MODAL = (DIALOG, FORM)
"""Places of their own: nothing else answers to a key while one of them is open."""

_FILES = {"runs": runs, "stage": stage, "train": train, "machine": machine, "log": log, "doctor": doctor,
          "report": report, "compare": compare, "chat": chat}  # fmt: skip

ACTIONS: tuple[Action, ...] = (
    *everywhere.ROWS,
    *(replace(action, place=tab) for tab in TAB_NAMES for action in _FILES[tab].ROWS),
    *(replace(action, place=DIALOG) for action in everywhere.DIALOG),
    *(replace(action, place=FORM) for action in new_run.ROWS),
)


def remap(keymap: Mapping[str, tuple[str, ...]]) -> None:
    """Give actions other keys, by identity; once, before the app is made."""
    global ACTIONS
    ACTIONS = tuple(replace(action, keys=keymap[action.identity], footer_key="") if action.identity in keymap
                    else action for action in ACTIONS)  # fmt: skip


def find(name: str, tab: str = "") -> Action:
    """The row called `name`: that of `tab`, else the first there is. Raises `StopIteration` when there is none."""
    rows = [action for action in ACTIONS if action.base == name]
    return next((action for action in rows if action.place == tab), None) or next(iter(rows))


def row(identity: str) -> Action:
    """The row with this identity. Raises `StopIteration`."""
    return next(action for action in ACTIONS if action.identity == identity)


def of(place: str) -> list[Action]:
    """The rows of a tab, of "dialog", or with "" those that work everywhere."""
    return [action for action in ACTIONS if action.place == place]


def where(action: Action) -> str:
    """The place in words."""
    titles = {tab.name: f"in {tab.title}" for tab in TABS}
    titles |= {DIALOG: "in dialogs", FORM: "in the form of a new run"}
    return titles.get(action.place, "everywhere")


def bindings(place: str = "") -> list[Binding]:
    """Textual's bindings: those of the app, or those of a place in `MODAL`."""
    rows = of(place) if place in MODAL else [action for action in ACTIONS if action.place not in MODAL]
    return [
        Binding(",".join(action.keys), action.name if place in MODAL else f"press('{action.identity}')", action.title,
                show=False, id=action.identity)
        for action in rows
        if action.base != "command_palette" and action.keys
    ]  # fmt: skip


def footer(tab: str, possible: dict[str, bool] | None = None, readonly: bool = False) -> list[Action]:
    """The rows that the footer shows on `tab`, most useful first; what cannot be done now is left out.

    Help is always there; when there are too many, the last of the others go.
    """
    possible = possible or {}
    shared = [action for action in of("") if action.footer == "*" or tab in action.footer.split()]
    rows = [action for action in shared if action.lead]
    rows += [action for action in of(tab) if action.short]
    rows += [action for action in shared if not action.lead]
    rows = [action for action in rows if possible.get(action.base, True) and not (readonly and action.changes)]
    last = [action for action in rows if action.base == "help"]
    return [action for action in rows if action not in last][: FOOTER_LIMIT - len(last)] + last
