"""The last step before the terminal: what every line passes through, so that no widget needs to know of it.

`Ground` puts the widget's background behind drawn text, which names no background of its own. `Bare` is the theme
without colours. `Ascii` is for screens and fonts that have nothing else: lines and frames become `+ - |`, bars `#`,
braille dots `. : #`, accents are dropped, and what has no likeness becomes `?`. A character keeps its width in cells.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache

from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style
from textual.color import Color
from textual.filter import LineFilter

_ALIKE = {
    **dict.fromkeys("─━═╌╍┄┅┈┉╴╶╸╺╼╾▔‐‑‒–—―−", "-"),
    **dict.fromkeys("│┃║╎╏┆┇┊┋╵╷╹╻╽╿▏▎▕▐❘", "|"),
    **dict.fromkeys("▍▌▋▶▸►›»→", ">"), **dict.fromkeys("◀◂‹«←", "<"), **dict.fromkeys("▲△↑⌃", "^"),
    **dict.fromkeys("▼▽↓", "v"), **dict.fromkeys("█▉▊▓■◼▮", "#"), **dict.fromkeys("▒░▯□", ":"),
    **dict.fromkeys("…·∙", "."), **dict.fromkeys("•●◆◉", "*"), **dict.fromkeys("○◌◇◦", "o"),
    **dict.fromkeys("✗×✕✘", "x"), **dict.fromkeys("✓✔", "+"), **dict.fromkeys("≈∼", "~"),
    **dict.fromkeys("“”„", '"'), **dict.fromkeys("‘’‚′", "'"),
    "▁": "_", "▂": ".", "▃": ":", "▄": "-", "▅": "=", "▆": "+", "▇": "*",
    "≤": "<", "≥": ">", "±": "~", "µ": "u", "°": "'", "¶": "P", "§": "S", "⏎": "<", "↵": "<", "⇥": ">",
}  # fmt: skip


@lru_cache(4096)
def plain(text: str) -> str:
    """`text` in ASCII, cell for cell: `plain("✓ 40 % ▇▇ café")` is `"+ 40 % ** cafe"`."""
    return text if text.isascii() else "".join(character if character.isascii() else _one(character)
                                               for character in text)  # fmt: skip


@lru_cache(4096)
def _one(character: str) -> str:
    width = cell_len(character)
    if character in _ALIKE:
        return _ALIKE[character] * width
    code = ord(character)
    if 0x2800 <= code <= 0x28FF:  # braille: as dark as it has dots
        return " ..:::#####"[(code - 0x2800).bit_count()]
    if 0x2500 <= code <= 0x257F:
        return "+"
    if 0x2580 <= code <= 0x259F:
        return "#"
    base = unicodedata.normalize("NFKD", character)[0]
    if base.isascii() and base.isprintable():
        return base.ljust(width)
    return "?" * width


_NO_STYLE = Style()


@lru_cache(4096)
def _grounded(style: Style, background: Color) -> Style:
    return Style(bgcolor=background.rich_color) + style


class Ground(LineFilter):
    """Draws on the theme's ground, not on the terminal's."""

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        found = []
        for segment in segments:
            text, style, control = segment
            if not control and (style is None or style.bgcolor is None):
                segment = Segment(text, _grounded(style or _NO_STYLE, background))
            found.append(segment)
        return found


@lru_cache(4096)
def _bare(style: Style) -> Style:
    marked = style.bgcolor is not None and not style.bgcolor.is_default
    return style.without_color + Style(reverse=not style.reverse) if marked else style.without_color


class Bare(LineFilter):
    """No colour leaves; what has a ground of its own, such as the chosen line of a list, is reversed."""

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        return [segment if segment.style is None or segment.control else Segment(segment.text, _bare(segment.style))
                for segment in segments]  # fmt: skip


class Ascii(LineFilter):
    """Nothing but ASCII leaves."""

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        return [segment if segment.control or segment.text.isascii() else Segment(plain(segment.text), segment.style)
                for segment in segments]  # fmt: skip
