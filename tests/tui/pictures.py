"""Pictures of screens as text: every cell's character, and below them every cell's style, so that a change shows in a
diff and many of them stay small.

A picture file holds the rows, then `styles:` with a letter for each style that occurs, then for each row its runs of
them: `a12 b3 a`. The last run goes to the end of the row.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from string import ascii_letters
from typing import Any

from rich.cells import cell_len
from rich.style import Style

FOLDER = Path(__file__).parent / "pictures"


@dataclass(frozen=True)
class Picture:
    rows: tuple[str, ...]
    styles: tuple[str, ...]

    def dump(self) -> str:
        return "\n".join((*self.rows, "styles:", *self.styles)) + "\n"

    def blank(self) -> bool:
        """Whether there is next to nothing between the first and the last line."""
        return sum(bool(row.strip(" ▕|")) for row in self.rows[2:-1]) < 3

    def differences(self, golden: str) -> str:
        """The lines that differ; "" when none does."""
        lines = difflib.unified_diff(golden.splitlines(), self.dump().splitlines(), "kept", "drawn", "", "", 0, "")
        return "\n".join(lines)


def take(app: Any, mask: dict[str, str]) -> Picture:
    """What is on the screen now; `mask` replaces words that differ from time to time by others of their length."""
    rows, drawn = [], []
    names: dict[str, str] = {}
    width, height = app.size
    for strip in app.screen._compositor.render_strips()[:height]:
        text = strip.crop(0, width).text
        for word, other in mask.items():
            assert len(word) == len(other)
            text = text.replace(word, other)
        rows.append(text.rstrip())
        runs = []
        cells = [
            (said(segment.style, character == " "), cell_len(character))
            for segment in strip.crop(0, width)
            for character in segment.text
        ]
        for style, group in groupby(cells, key=lambda cell: cell[0]):
            letter = names.setdefault(style, ascii_letters[len(names)] if len(names) < 52 else f"<{len(names)}>")
            runs.append(f"{letter}{sum(length for _, length in group)}")
        runs[-1:] = [run.rstrip("0123456789") for run in runs[-1:]]
        drawn.append(" ".join(runs))
    legend = [f"{letter} = {style}" for style, letter in names.items()]
    return Picture(tuple(rows), (*legend, *drawn))


def said(style: Style | None, blank: bool = False) -> str:
    """`bold #d8d8d8 on #101010`; of a blank cell its ground alone, which is all there is to see."""
    if style is None:
        return "plain"
    if blank and not (style.reverse or style.underline or style.strike):
        return f"on {style.bgcolor.name}" if style.bgcolor else "plain"
    words = [word for word in ("bold", "dim", "italic", "underline", "reverse", "strike") if getattr(style, word)]
    words.append(style.color.name if style.color else "default")
    if style.bgcolor:
        words.append(f"on {style.bgcolor.name}")
    return " ".join(words)
