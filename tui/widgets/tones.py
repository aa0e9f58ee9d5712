"""The app's few colours, once: a Textual theme for widgets and Rich styles for drawn lines.

Colour never carries meaning alone; with NO_COLOR everything below becomes plain.
"""

from __future__ import annotations

from rich.style import Style
from textual.theme import Theme

INK, FAINT, GROUND, PANEL, LINE = "#d7dae0", "#7f8796", "#15181e", "#1b1f27", "#323946"
ACCENT, GOOD, WARN, BAD, SECOND = "#7cb7ff", "#8fce8b", "#e6c07b", "#ef7d85", "#c4a7f5"

TONES: dict[str, Style] = {
    "plain": Style(color=INK),
    "faint": Style(color=FAINT),
    "strong": Style(color=INK, bold=True),
    "accent": Style(color=ACCENT),
    "title": Style(color=ACCENT, bold=True),
    "good": Style(color=GOOD),
    "warn": Style(color=WARN),
    "bad": Style(color=BAD),
    "second": Style(color=SECOND),
    "line": Style(color=LINE),
}

THEME = Theme(
    name="picollm",
    primary=ACCENT,
    secondary=SECOND,
    accent=ACCENT,
    foreground=INK,
    background=GROUND,
    surface=GROUND,
    panel=PANEL,
    success=GOOD,
    warning=WARN,
    error=BAD,
    dark=True,
    variables={"footer-background": PANEL, "input-selection-background": "#7cb7ff 35%", "border": LINE},
)


def tone(name: str) -> Style:
    """The Rich style of a tone."""
    return TONES[name]
