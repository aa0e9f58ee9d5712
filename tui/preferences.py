"""What a person chose about the app itself, kept in `$PICOLLM_HOME/tui.toml`: the theme, ASCII only, the tour seen."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

from picollm.run.errors import UserError
from picollm.run.folder import picollm_home
from picollm.run.structs import complete
from tui.widgets import tones

VARIABLE = "PICOLLM_TUI_THEME"
_BARE_TERMS = ("linux", "vt100", "vt102", "vt220", "dumb")  # fonts without braille


@complete
class Preferences(msgspec.Struct):
    """`theme` is one of `tones.NAMES`; `ascii` sends nothing but ASCII; `toured`: the first-run tour was seen."""

    theme: str = ""
    ascii: bool = False
    toured: bool = False


def path() -> Path:
    return picollm_home() / "tui.toml"


def keys_file() -> Path:
    """A person's own keys, which `keymap` reads."""
    return picollm_home() / "keys.toml"


def load() -> Preferences:
    """What was kept; the defaults when nothing was, or when it cannot be read: then choosing again writes it anew."""
    try:
        kept = msgspec.toml.decode(path().read_bytes(), type=Preferences)
    except (OSError, msgspec.MsgspecError, ValueError):
        return Preferences()
    return kept if kept.theme in ("", *tones.NAMES) else msgspec.structs.replace(kept, theme="")


def keep(preferences: Preferences) -> None:
    """Write them, whole or not at all. Raises `OSError`."""
    file = path()
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f"{file.name}.{os.getpid()}")
    part.write_bytes(msgspec.toml.encode(preferences))
    part.replace(file)


def seen_tour() -> None:
    """Keep that the tour was seen, and nothing of what only flags or this terminal asked for. Raises `OSError`."""
    keep(msgspec.structs.replace(load(), toured=True))


def few_colours(environ: Mapping[str, str]) -> bool:
    """Whether a theme's own colours would all come out as greys here: the terminal has sixteen, or none."""
    from rich.console import Console

    return bool(environ.get("TERM")) and Console(force_terminal=True, _environ=environ).color_system in (
        None, "standard"
    )  # fmt: skip


def chosen(theme: str | None = None, only_ascii: bool = False, environ: Mapping[str, str] = os.environ) -> Preferences:
    """What to draw with: the flags, else `PICOLLM_TUI_THEME` (a theme, `ascii`, or both with a comma), else NO_COLOR,
    else the terminal's own colours where it has few, else what was kept. Raises `UserError` for a theme that does not
    exist."""
    kept = load()
    words = [word.strip() for word in environ.get(VARIABLE, "").split(",") if word.strip()]
    for name, where in ((theme, "--theme"), *((word, VARIABLE) for word in words if word != "ascii")):
        if name and name not in tones.NAMES:
            raise UserError(f"{where} {name}: expected one of {', '.join(tones.NAMES)}")
    found = theme or next((word for word in words if word != "ascii"), "")
    if not found and environ.get("NO_COLOR"):
        found = tones.PLAIN
    if not found and few_colours(environ):
        found = kept.theme if kept.theme == tones.PLAIN else "ansi"
    bare = environ.get("TERM", "") in _BARE_TERMS
    return Preferences(found or kept.theme or tones.DEFAULT, only_ascii or "ascii" in words or kept.ascii or bare,
                       kept.toured)  # fmt: skip
