"""The app's few colours: named tones in several themes, for Textual's widgets and for drawn lines.

Colour never carries meaning alone: every state also has a symbol and a word. `tone("bad")` is asked for while drawing,
never kept, because the theme may be changed while the app is open.
"""

from __future__ import annotations

from dataclasses import dataclass

from rich.style import Style
from textual.theme import Theme


@dataclass(frozen=True)
class Palette:
    """One theme. Colours are #rrggbb, or names of the terminal's own sixteen; "" leaves the terminal's default."""

    name: str
    about: str
    ink: str
    faint: str
    ground: str
    panel: str
    line: str
    selected: str
    accent: str
    second: str
    good: str
    warn: str
    bad: str
    raw: str
    dark: bool = True

    @property
    def own(self) -> bool:
        """Whether the colours are the terminal's own."""
        return not self.ink.startswith("#")


PALETTES: dict[str, Palette] = {
    palette.name: palette
    for palette in (
        Palette("dark", "soft colours on a dark ground",
                ink="#d7dae0", faint="#868e9d", ground="#15181e", panel="#1b1f27", line="#323946", selected="#263145",
                accent="#7cb7ff", second="#c4a7f5", good="#8fce8b", warn="#e6c07b", bad="#ef7d85", raw="#46566f"),
        Palette("light", "dark ink on a light ground",
                ink="#22262e", faint="#5f6774", ground="#fbfbf9", panel="#eef0f3", line="#c6cbd3", selected="#d6e4f7",
                accent="#1458a8", second="#6f3aa8", good="#1d6b33", warn="#7a4f00", bad="#ab1f2b", raw="#a9bcd6",
                dark=False),
        Palette("contrast", "white on black, every colour bright",
                ink="#ffffff", faint="#cfcfcf", ground="#000000", panel="#000000", line="#9a9a9a", selected="#004a8f",
                accent="#6fd0ff", second="#ffb3ff", good="#6dff8b", warn="#ffee5c", bad="#ff9a9a", raw="#7f8fa8"),
        Palette("colour-blind", "hues that all eyes tell apart (Okabe and Ito)",
                ink="#e4e6ea", faint="#8d95a3", ground="#15181e", panel="#1b1f27", line="#39414f", selected="#24364a",
                accent="#56b4e9", second="#d998be", good="#3fc7a2", warn="#f0e442", bad="#f28a3c", raw="#4a5a70"),
        Palette("ansi", "the terminal's own sixteen colours",
                ink="", faint="", ground="", panel="", line="", selected="",
                accent="cyan", second="magenta", good="green", warn="yellow", bad="red", raw="blue"),
        Palette("plain", "bold, dim and reversed; the theme under NO_COLOR",
                ink="", faint="", ground="", panel="", line="", selected="",
                accent="", second="", good="", warn="", bad="", raw=""),
    )
}  # fmt: skip
NAMES = tuple(PALETTES)
DEFAULT = "dark"
PLAIN = "plain"


def _styles(palette: Palette) -> dict[str, Style]:
    """Every tone of a palette. Where there is no colour, weight tells tones apart.

    Of the terminal's own colours faint is the ink, dimmed: many a scheme makes "bright black" its ground.
    """
    bare, own = palette.name == PLAIN, palette.own

    def style(colour: str, bold: bool = False, dim: bool = False, ground: str = "") -> Style:
        return Style(color=colour or None, bgcolor=ground or None, bold=bold or None, dim=dim or None)

    return {
        "plain": style(palette.ink),
        "faint": style(palette.faint, dim=own),
        "strong": style(palette.ink, bold=True),
        "accent": style(palette.accent, bold=bare),
        "title": style(palette.accent, bold=True),
        "good": style(palette.good),
        "warn": style(palette.warn, bold=bare),
        "bad": style(palette.bad, bold=bare),
        "second": Style(color=palette.second or None, italic=bare or None),
        "line": style(palette.line, dim=own),
        "raw": style(palette.raw, dim=bare),
        "selected": Style(color=None if bare else "default", dim=False, reverse=True)
        if own
        else style("", ground=palette.selected),
        "panel": style("", ground=palette.panel),
    }


TONES: dict[str, Style] = _styles(PALETTES[DEFAULT])
_now = PALETTES[DEFAULT]


def use(name: str) -> None:
    """Draw with this theme from now on. Raises `KeyError` for a name that is not in `NAMES`."""
    global _now
    _now = PALETTES[name]
    TONES.update(_styles(_now))


def current() -> Palette:
    """The theme that is drawn with; what keeps drawn lines keeps this with them, to know when they are out of date."""
    return _now


def tone(name: str) -> Style:
    """The Rich style of a tone."""
    return TONES[name]


_TERMINAL = {
    "ansi-background": "ansi_black",
    "ansi-foreground": "ansi_white",
    "border-blurred": "ansi_bright_black",
    "input-cursor-background": "ansi_white",
    "input-cursor-foreground": "ansi_black",
    "input-cursor-text-style": "reverse",
    "input-selection-foreground": "ansi_black",
    "screen-selection-background": "ansi_bright_blue",
    "screen-selection-foreground": "ansi_black",
    **{f"scrollbar{part}": "ansi_default" for part in ("", "-hover", "-active", "-background", "-background-hover",
                                                       "-background-active", "-corner-color")},
}  # fmt: skip


def theme(palette: Palette) -> Theme:
    """The same colours for Textual's own widgets."""

    def known(colour: str) -> str:
        return colour if colour.startswith("#") else f"ansi_{colour}" if colour else "ansi_default"

    highlight = palette.selected or "ansi_bright_black"
    return Theme(
        name=palette.name,
        primary=known(palette.accent),
        secondary=known(palette.second),
        accent=known(palette.accent),
        foreground=known(palette.ink),
        background=known(palette.ground),
        surface=known(palette.ground),
        panel=known(palette.panel),
        success=known(palette.good),
        warning=known(palette.warn),
        error=known(palette.bad),
        dark=palette.dark,
        ansi=palette.own,
        variables={
            "footer-background": known(palette.panel),
            "border": known(palette.line),
            "selected": highlight,
            "input-selection-background": highlight,
            **{f"block-cursor-{where}{what}": value
               for where in (("", "blurred-") if palette.own else ("",))
               for what, value in (("background", known(palette.accent or "white")),
                                   ("foreground", "ansi_black" if palette.own else palette.ground))},
            **(_TERMINAL if palette.own else {}),
        },
    )  # fmt: skip
