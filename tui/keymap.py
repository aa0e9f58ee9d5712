"""A person's own keys: `$PICOLLM_HOME/keys.toml`, one line an action.

    launch = "L"                # instead of g
    train.zoom = ["z", "f6"]    # several keys
    page_up = []                # none

Names are those of `picollm-tui --keys`, which prints the file with the keys as they are. A mistake is said with its
line before the screen is taken over.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from typing import Any

from textual.keys import Keys

from picollm.run.errors import UserError
from tui import actions, preferences

NEEDED = ("quit", "back", "help", "dialog.back", "dialog.confirm")
_SAME = {"ctrl+i": "Tab", "ctrl+m": "Enter", "ctrl+j": "Enter", "ctrl+h": "Backspace"}
"""What a terminal sends for these."""
_NAMED = {key.value for key in Keys} | set(actions.NAMED_KEYS)


def load() -> dict[str, tuple[str, ...]]:
    """Identity of an action to its keys; empty when there is no such file. Raises `UserError` naming the line."""
    file = preferences.keys_file()
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read: {error}") from None
    return parse(text, str(file))


def parse(text: str, where: str = "keys.toml") -> dict[str, tuple[str, ...]]:
    """The keymap that `text` spells. Raises `UserError` for what is not TOML, an unknown action, a key that a terminal
    cannot be trusted to send, and two actions on one key in one place."""
    try:
        found = _flat(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{where}: not valid TOML: {error}") from None

    known = {row.identity: row for row in actions.ACTIONS}
    keymap: dict[str, tuple[str, ...]] = {}
    for identity, value in found.items():
        line = f"{where} line {_line(text, identity)}: {identity}"
        if identity not in known:
            near = difflib.get_close_matches(identity, known, 1)
            hint = f"did you mean {near[0]}?" if near else "picollm-tui --keys lists the actions"
            raise UserError(f"{line}: no such action; {hint}")
        keys = [value] if isinstance(value, str) else value
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            raise UserError(f'{line}: expected a key or a list of keys, such as "z" or ["z", "f6"]')
        for key in keys:
            if wrong := _wrong(key):
                raise UserError(f"{line}: {key!r} {wrong}")
        if not keys and identity in NEEDED:
            raise UserError(f"{line}: needs a key, else there is no way out")
        keymap[identity] = tuple(_long(key) for key in keys)
    if clash := _clash(keymap):
        first, second, key = clash
        mine = first if first in keymap else second
        raise UserError(f"{where} line {_line(text, mine)}: {actions.spelled(key)} is the key of both {first} and "
                        f"{second}")  # fmt: skip
    return keymap


def listing() -> str:
    """Every action with its keys, in the form of the file."""
    lines = ["# Your own keys: take what you change into " + str(preferences.keys_file())]
    place = None
    for row in actions.ACTIONS:
        if row.place != place:
            place = row.place
            lines += ["", f"# {actions.where(row)}"]
        shown = ", ".join(f'"{key}"' for key in row.keys)
        lines.append(f"{row.identity} = {shown if len(row.keys) == 1 else f'[{shown}]'}".ljust(44) + f"# {row.title}")
    return "\n".join(lines) + "\n"


def _flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found


def _line(text: str, identity: str) -> int:
    """The line that sets `identity`, written out or under its [table]."""
    table = ""
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[([^\]]+)\]", line):
            table = header[1].replace('"', "").strip() + "."
        name = line.partition("=")[0].replace('"', "").replace("'", "").replace(" ", "")
        if table + name == identity:
            return number
    return 1


def _long(key: str) -> str:
    """`?` as Textual calls it, `question_mark`; other names as they are."""
    from textual.keys import _character_to_key

    return _character_to_key(key) if len(key) == 1 else key


def _wrong(key: str) -> str:
    if len(key) == 1:
        return "" if key.isprintable() and key != " " else "is not a key that can be named; write space"
    if key in _SAME:
        return f"is {_SAME[key]} to a terminal"
    modifiers, _, name = key.rpartition("+")
    for modifier in filter(None, modifiers.split("+")):
        if modifier in ("alt", "meta", "option", "super", "cmd", "command", "hyper"):
            return f"needs {modifier}, which many terminals keep for themselves"
        if modifier not in ("ctrl", "shift"):
            return "is not a key"
    if key in _NAMED or (modifiers == "ctrl" and len(name) == 1 and name.isalnum()):
        return ""
    return "is not a key; see picollm-tui --keys"


def _clash(keymap: dict[str, tuple[str, ...]]) -> tuple[str, str, str] | None:
    """Two actions on one key in one place: a tab's own keys and those that work everywhere are one place."""
    for place in (*actions.TAB_NAMES, *actions.MODAL):
        taken: dict[str, str] = {}
        rows = actions.of(place) if place in actions.MODAL else [*actions.of(""), *actions.of(place)]
        for row in rows:
            for key in keymap.get(row.identity, row.keys):
                other = taken.setdefault(key, row.identity)
                if other != row.identity:
                    return other, row.identity, key
    return None
