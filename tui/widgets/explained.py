"""What a person should know about a stage, beside what it does: idea, typical figures, trouble, settings. Pure."""

from __future__ import annotations

from rich.console import RenderableType
from rich.text import Text

from picollm.run import config as settings
from picollm.run import pipeline
from picollm.run.knowledge import knowledge
from tui import state
from tui.widgets.lines import heading, rows, text
from tui.widgets.tones import tone

LONGEST = 200
"""Characters of a setting's value; a mixture can have more."""


def explanation(view: state.RunView, name: str) -> list[RenderableType]:
    """The idea, what is typical (the run's own profile first), and what to do when it looks wrong."""
    known = knowledge(name)
    typical = sorted(known.typical.items(), key=lambda pair: pair[0] != view.profile)
    pairs: list[tuple[str, RenderableType | str]] = [
        (profile, text((words, "plain" if profile == view.profile else "faint"))) for profile, words in typical
    ]
    return [
        heading("The idea"),
        text(known.insight),
        Text(""),
        heading("Typical"),
        text(("  " + pipeline.stage(name).expect, "plain")),
        rows(pairs, 2),
        Text(""),
        heading("When it looks wrong"),
        *(rows([("?", text((f"{seen}: ", "warn"), cure))], 2) for seen, cure in known.trouble),
    ]


def knobs(view: state.RunView, row: pipeline.Stage) -> list[RenderableType]:
    """The stage's settings, those first that are not as in the profile."""
    if not view.settings or not row.tables:
        return []
    schema = settings.knobs()
    keys = [key for key in view.settings if key.partition(".")[0] in row.tables and key in schema]
    keys.sort(key=lambda key: key not in view.differs)
    pairs: list[tuple[str, RenderableType | str]] = []
    for key in keys:
        value, knob = view.settings[key], schema[key]
        if value in ("", {}) and key not in view.differs:
            continue
        notes = [knob.unit]
        if key in view.planned:
            notes.append("planned")
        elif knob.auto and not value:
            notes.append("0: planned by preflight")
        line = text(_shown(value), ("  " + ", ".join(note for note in notes if note), "faint"))
        if key in view.differs:
            line.append(f"  * {view.profile} has {_shown(view.differs[key])}", tone("second"))
        pairs.append((key, line))
    if not pairs:
        return []
    count = sum(key in view.differs for key in keys)
    note = f"{count} not as in" if count else "as in"
    note = f"{note} profile {view.profile}" if view.profile else ""
    return [Text(""), heading("Settings that matter", note), rows(pairs, 2)]


def _shown(value: object) -> str:
    if isinstance(value, dict):
        words = ", ".join(f"{key} {number:,}" for key, number in value.items()) or "nothing"
    else:
        words = str(value) if value != "" else "nothing"
    return words if len(words) <= LONGEST else words[: LONGEST - 1] + "…"
