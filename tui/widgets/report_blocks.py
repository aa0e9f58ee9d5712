"""The blocks of a report as drawn lines."""

from __future__ import annotations

from collections.abc import Sequence

from rich import table as rich_table
from rich.cells import cell_len
from rich.console import RenderableType
from rich.padding import Padding
from rich.text import Text

from tui.report_text import Block, Fence, Heading, Quote, Table, Words
from tui.widgets.lines import clean, heading, text
from tui.widgets.tones import tone

UP, DOWN = "↑", "↓"
FIRST = 18  # cells of the first column that are not to be wrapped


def drawn(block: Block, width: int, column: int = -1, down: bool = True) -> list[RenderableType]:
    """One block for `width` cells; a table sorted by `column`, where it has that."""
    match block:
        case Heading():
            return [heading(clean(block.text))]
        case Words():
            return [text(*((clean(words), "strong" if bold else "plain") for words, bold in block.runs))]
        case Quote():
            return [Padding(text((clean(block.text), "plain")), (0, 0, 0, 2))]
        case Fence():
            lines = text((clean(block.text), "plain" if block.kind == "text" else "second"))
            lines.no_wrap = block.kind == "text"  # curves
            return [Padding(lines, (0, 0, 0, 2))]
        case Table():
            return table_of(block, width, column, down)


def table_of(table: Table, width: int, column: int = -1, down: bool = True) -> list[RenderableType]:
    """Numbers stand right; the heading of the column that sorts has an arrow. What stands in brackets after a number
    takes a line of its own where the width asks for it, and goes where that is not enough."""
    shown = table.by(column, down) if 0 <= column < len(table.head) else table
    numeric = [number > 0 and table.numeric(number) for number in range(len(table.head))]
    whole = [[clean(cell) for cell in row] for row in shown.rows]
    broken = [[_broken(cell) if is_number else cell for cell, is_number in zip(row, numeric, strict=True)]
              for row in whole]  # fmt: skip
    bare = [[cell.partition("\n")[0] for cell in row] for row in broken]
    rows, note = next(((rows, rows is bare) for rows in (whole, broken) if _width(table.head, rows) <= width),
                      (bare, True))  # fmt: skip
    if bare == whole:
        rows, note = whole, False
    found = rich_table.Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for number, name in enumerate(table.head):
        arrow = (DOWN if down else UP) if number == column else ""
        style = tone("strong") if arrow else tone("faint")
        found.add_column(Text(clean(name).strip() + arrow, style=style), justify="right" if numeric[number] else "left",
                         style=tone("plain"), overflow="fold")  # fmt: skip
    for row in rows:
        found.add_row(*(_cell(cell, number) for number, cell in enumerate(row)))
    return [found, text(("what stands in brackets needs a wider screen", "faint"))] if note else [found]


def _broken(cell: str) -> str:
    return cell.replace(" (", "\n(", 1) if cell.endswith(")") else cell


def _cell(cell: str, number: int) -> Text:
    first, _, rest = cell.partition("\n")
    found = Text(first, style=tone("plain" if number else "strong"))
    return found.append("\n" + rest, tone("faint")) if rest else found


def _width(head: Sequence[str], rows: list[list[str]]) -> int:
    """Cells that a table takes when nothing in it is wrapped, but for its first column: that may be."""
    widths = [max([cell_len(name), *(cell_len(line) for row in rows for line in row[number].split("\n"))]) + 2
              for number, name in enumerate(head)]  # fmt: skip
    return min(widths[0], FIRST) + sum(widths[1:])
