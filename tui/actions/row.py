"""What a tab and an action are; the rows themselves are in the files beside this one."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tab:
    name: str
    title: str
    short: str
    about: str


@dataclass(frozen=True)
class Action:
    """One thing a person can do.

    `name` is what answers it: the pane's method `do_<name>` where the row belongs to a tab, the app's `action_<name>`
    (with its argument) where it works everywhere. `changes`: it acts on a run, so `--readonly` refuses it.
    `short` is its label in the footer; without one it is not there. `footer` lists the tabs whose footer shows a row
    that works everywhere ("*": all), `lead` puts it before the tab's own. `place` is filled in by the package: a
    tab's name, "dialog", or "" for everywhere.
    """

    name: str
    keys: tuple[str, ...]
    title: str
    help: str
    short: str = ""
    footer: str = ""
    footer_key: str = ""
    lead: bool = False
    changes: bool = False
    place: str = ""

    @property
    def base(self) -> str:
        """The method's name without its argument."""
        return self.name.partition("(")[0]

    @property
    def identity(self) -> str:
        """What a keymap calls it: `launch`, `show_tab.train`, `train.zoom`."""
        argument = self.name.partition("(")[2].strip("')")
        return ".".join(part for part in (self.place, self.base, argument) if part)

    @property
    def shown(self) -> str:
        """The keys as a person reads them."""
        return " ".join(spelled(key) for key in self.keys)

    @property
    def first(self) -> str:
        """The key that the footer and sentences on the screen name."""
        return self.footer_key or (spelled(self.keys[0]) if self.keys else "^p")


_SPELLING = {
    "question_mark": "?", "slash": "/", "comma": ",", "full_stop": ".", "apostrophe": "'", "escape": "esc",
    "left_square_bracket": "[", "right_square_bracket": "]", "plus": "+", "minus": "-", "equals_sign": "=",
    "less_than_sign": "<", "greater_than_sign": ">", "colon": ":", "semicolon": ";", "asterisk": "*",
    "pagedown": "PgDn", "pageup": "PgUp", "up": "Up", "down": "Down", "left": "Left", "right": "Right", "home": "Home",
    "end": "End", "enter": "Enter", "space": "Space", "tab": "Tab", "shift+tab": "Shift+Tab", "delete": "Del",
    "backspace": "Backspace", "vertical_line": "|", "number_sign": "#", "exclamation_mark": "!", "at": "@",
    "left_curly_bracket": "{", "right_curly_bracket": "}", "underscore": "_", "tilde": "~", "percent_sign": "%",
    "dollar_sign": "$", "ampersand": "&", "circumflex_accent": "^", "backslash": "\\", "grave_accent": "`",
}  # fmt: skip


NAMED_KEYS = tuple(_SPELLING)


def spelled(key: str) -> str:
    """A key as it is printed on the screen: `ctrl+p` is `^p`, `f1` is `F1`."""
    if key in _SPELLING:
        return _SPELLING[key]
    if key.startswith("ctrl+"):
        return "^" + spelled(key.removeprefix("ctrl+"))
    if key.startswith("shift+"):
        return "Shift+" + spelled(key.removeprefix("shift+"))
    return key.upper() if key[:1] == "f" and key[1:].isdigit() else key
