"""The way to the terminal, with fewer bytes: only cells that change are sent, and of styles only what differs.

Textual sends a widget's lines whole, each piece of text with its full style and a reset behind it. `Pen` reads that
stream as a terminal would, remembers the picture, and writes what leads from the old picture to the new one. Sequences
it does not know go through as they are, and it then assumes nothing about what is on the screen.
"""

from __future__ import annotations

import re
from typing import Any

from rich.cells import cell_len
from textual.drivers.linux_driver import LinuxDriver

from tui.sgr import PLAIN, Style, after, change

_PIECE = re.compile(
    r"\x1b\[(?P<style>[0-9;]*)m"
    r"|\x1b\[(?P<row>\d*);?(?P<column>\d*)H"
    r"|(?P<sync>\x1b\[\?2026[hl])"
    r"|(?P<silent>\x07|\x1b\[[?>=<]?(?!1049|1047|47\b)[0-9;]*[ $]?[hlnctupq])"  # modes, questions: no cell changes
    r"|(?P<link>\x1b\]8;[^\x07\x1b]*(?:\x07|\x1b\\))"
    r"|(?P<clipboard>\x1b\](?:52|[0-2]);[^\x07\x1b]*(?:\x07|\x1b\\))"
    r"|(?P<other>\x1b(?:\[[0-?]*[ -/]*[@-~]|[\]P_^X][^\x07\x1b]*(?:\x07|\x1b\\)|[ -/]*[0-~])?"
    r"|[\x00-\x09\x0b\x0c\x0e-\x1a])"
    r"|(?P<line>[\r\n]+)"
    r"|(?P<text>[^\x00-\x1b]+)"
)
_SHORT = 4
"""As many unchanged cells are cheaper written again than stepped over."""

Cell = tuple[str, Style]


class Pen:
    """`lean(data)` is what to send for `data` to a terminal that has been sent everything before it."""

    def __init__(self) -> None:
        self._rows: dict[int, list[Cell | None]] = {}
        self._style: Style | None = None
        self._wanted_style = PLAIN
        self._at: tuple[int, int] | None = None
        self._wanted = (0, 0)
        self._linked = False
        self._held = ""
        self._sent: list[str] = []

    def forget(self) -> None:
        """Something else wrote to the terminal, or its size changed: nothing is known of what it shows."""
        self._rows.clear()
        self._style = self._at = None

    def lean(self, data: str) -> str:
        self._sent = []
        parked = False
        for found in _PIECE.finditer(data):
            kind, piece = found.lastgroup, found[0]
            parked = False
            if kind == "text":
                self._text(piece)
            elif kind == "style":
                self._wanted_style = after(self._wanted_style, found["style"])
            elif kind == "row" or kind == "column":
                self._wanted = (max(1, int(found["row"] or 1)) - 1, max(1, int(found["column"] or 1)) - 1)
                parked = True
            elif kind == "line":
                for character in piece:
                    self._wanted = (self._wanted[0] + (character == "\n"), 0)
            elif kind == "sync":
                self._sync(piece)
            elif kind in ("silent", "clipboard"):
                self._say(piece)
            elif kind == "link":
                self._say(piece)
                self._linked = not re.fullmatch(r"\x1b\]8;[^;]*;(?:\x07|\x1b\\)", piece)
            else:
                self._prepare()
                self._say(piece)
                self.forget()
        if parked and self._wanted != (0, 0):  # where the person types: input methods open their window there
            self._move()
        return "".join(self._sent)

    def _say(self, piece: str) -> None:
        if self._held:
            self._sent.append(self._held)
            self._held = ""
        self._sent.append(piece)

    def _sync(self, piece: str) -> None:
        """A frame's beginning is held back until there is something in it; an empty frame is not sent."""
        if piece.endswith("h"):
            self._held = piece
        elif self._held:
            self._held = ""
        else:
            self._say(piece)

    def _move(self) -> None:
        if self._at == self._wanted:
            return
        row, column = self._wanted
        if self._at is not None and self._at[0] == row and column > self._at[1]:
            self._say(f"\x1b[{column - self._at[1]}C")
        else:
            self._say(f"\x1b[{row + 1};{column + 1}H")
        self._at = self._wanted

    def _prepare(self) -> None:
        """The terminal's cursor and style as the stream has them."""
        self._move()
        if self._style != self._wanted_style:
            self._say(change(self._style, self._wanted_style))
            self._style = self._wanted_style

    def _text(self, text: str) -> None:
        row, column = self._wanted
        cells = self._rows.setdefault(row, [])
        if len(cells) < column + 2 * len(text):
            cells.extend([None] * (column + 2 * len(text) - len(cells)))
        style = self._wanted_style
        if self._linked or not _simple(text):
            self._raw(text, cells)
            return
        wanted: list[Cell | None] = [(character, style) for character in text]
        end = column + len(text)
        if cells[column:end] == wanted:
            self._wanted = (row, end)
            return
        start = column
        while start < end:
            while start < end and cells[start] == wanted[start - column]:
                start += 1
            if start == end:
                break
            stop = last = start
            while stop < end and stop - last <= _SHORT:
                stop += 1
                if cells[stop - 1] != wanted[stop - 1 - column]:
                    last = stop
            self._split(cells, start, last)
            self._wanted = (row, start)
            self._write(text[start - column : last - column], last)
            cells[start:last] = wanted[start - column : last - column]
            start = last
        self._wanted = (row, end)

    def _write(self, text: str, end: int) -> None:
        """Text at the wanted place, in the wanted style; past the last column nobody knows where the cursor is."""
        self._prepare()
        self._say(text)
        self._at = (self._wanted[0], end) if end < self.width else None

    width = 0
    """Columns of the terminal; 0 where that is not known: then every move is spelled out."""

    def _split(self, cells: list[Cell | None], start: int, end: int) -> None:
        """A wide character of which one half is written over loses the other."""
        if start and cells[start] is not None and cells[start][0] == "":  # type: ignore[index]
            cells[start - 1] = None
        if end < len(cells) and cells[end] is not None and cells[end][0] == "":  # type: ignore[index]
            cells[end] = None

    def _raw(self, text: str, cells: list[Cell | None]) -> None:
        """Wide characters, combining ones and links: written as they are. Wide ones are known again afterwards."""
        row, column = self._wanted
        sizes = [cell_len(character) for character in text]
        end = column + sum(sizes)
        wanted: list[Cell | None] = []
        known = not self._linked and 0 not in sizes
        for character, size in zip(text, sizes, strict=True):
            wanted += [(character, self._wanted_style), *[("", self._wanted_style)] * (size - 1)] if size else []
        if known and cells[column:end] == wanted:
            self._wanted = (row, end)
            return
        self._split(cells, column, end)
        self._write(text, end)
        cells[column:end] = wanted if known else [None] * (end - column)
        if not known:
            self._at = None
        self._wanted = (row, end)


def _simple(text: str) -> bool:
    """Every character is one cell wide."""
    return text.isascii() or all(character.isascii() or cell_len(character) == 1 for character in text)


class LeanDriver(LinuxDriver):
    """Textual's own driver, with a pen."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        self._left = False
        super().__init__(*arguments, **more)
        self._pen = Pen()

    def _sigtstp_application(self, *_: object) -> None:
        self._left = True
        super()._sigtstp_application()

    def _sigcont_application(self, *_: object) -> None:
        """Who was stopped without being asked (SIGSTOP) has never left the terminal, and goes on as if nothing was:
        entered a second time, it could not be left any more."""
        if self._left:
            self._left = False
            super()._sigcont_application()

    def write(self, data: str) -> None:
        lean = self._pen.lean(data)
        if lean:
            super().write(lean)

    def resized(self, width: int) -> None:
        """The terminal has another size: all of it is drawn again."""
        self._pen.width = width
        self._pen.forget()

    def start_application_mode(self) -> None:
        self._pen.forget()
        super().start_application_mode()
