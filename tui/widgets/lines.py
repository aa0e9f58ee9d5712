"""Drawn lines: the base of most panes, and the small blocks that panes are made of.

`LinesView.show(blocks)` lays blocks out at the current width and sends only the lines that differ from what is on the
screen: a chart or table that changes in one place costs a few hundred bytes over SSH, not a screenful.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.padding import Padding
from rich.segment import Segment
from rich.text import Text
from textual.events import Blur, DescendantBlur, DescendantFocus, Focus, Resize
from textual.geometry import Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip
from textual.widget import Widget

from tui.widgets.tones import tone

_STEERING = dict.fromkeys(
    (*range(9), *range(11, 32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A),
     *range(0xD800, 0xE000)), "\ufffd",
) | {13: ""}  # fmt: skip


def clean(words: str) -> str:
    """Without what would steer the terminal, or could not be sent to it: controls, marks that turn the direction of
    writing, halves of characters."""
    return words if words.isprintable() else words.translate(_STEERING)


def text(*parts: str | tuple[str, str]) -> Text:
    """`text("plain ", ("words", "bad"))`: strings in the plain tone, pairs in a named one."""
    line = Text()
    for part in parts:
        words, name = (part, "plain") if isinstance(part, str) else part
        line.append(clean(words), tone(name))
    return line


def heading(words: str, note: str = "") -> Text:
    return text((words, "title"), (f"  {note}" if note else "", "faint"))


class Rows:
    """Two columns: a faint label, and its value, wrapped under itself. What a table of rich would draw, many times as
    quickly: nothing is measured but the labels."""

    def __init__(self, pairs: Iterable[tuple[str, RenderableType | str]], indent: int = 0) -> None:
        self.pairs = [(clean(label), text(value) if isinstance(value, str) else value) for label, value in pairs]
        self.indent = indent
        self.labels = max((cell_len(label) for label, _ in self.pairs), default=0)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        indent = self.indent + GUTTER if self.indent else 0
        labels = min(self.labels, max(1, (options.max_width - indent) // 2))
        left = indent + labels + GUTTER
        inner = options.update(width=max(1, options.max_width - left), height=None)
        under, newline = Segment(" " * left), Segment.line()
        for label, value in self.pairs:
            name = Segment(" " * indent + set_cell_size(label, labels) + " " * GUTTER, tone("faint"))
            for number, line in enumerate(console.render_lines(value, inner, style=tone("plain"), pad=False)):
                yield under if number else name
                yield from line
                yield newline


def rows(pairs: Iterable[tuple[str, RenderableType | str]], indent: int = 0) -> Rows:
    return Rows(pairs, indent)


def empty_state(title: str, *lines: str) -> list[RenderableType]:
    """What a pane says when it has nothing to show yet."""
    said = [Text(""), text((title, "strong")), Text(""), *(text((line, "faint")) for line in lines)]
    return [Padding(line, (0, 0, 0, 2)) for line in said]


GUTTER = 2  # cells between columns
NEAR = 12  # cells: moving the cursor over fewer of them saves nothing


def changed(before: Strip | None, after: Strip | None, width: int) -> tuple[int, int]:
    """The cells from the first to past the last that differ; (0, 0) where none does."""
    found = stretches(before, after, width)
    return (found[0][0], found[-1][1]) if found else (0, 0)


def stretches(before: Strip | None, after: Strip | None, width: int) -> list[tuple[int, int]]:
    """The stretches of cells that differ, as (first, past the last); all where a cell is not a character."""
    if before is None or after is None:
        return [(0, width)]
    old, new = _cells(before), _cells(after)
    if len(old) != before.cell_length or len(new) != after.cell_length or len(old) != len(new):
        return [(0, width)]
    found: list[tuple[int, int]] = []
    for x, (a, b) in enumerate(zip(old, new, strict=True)):
        if a != b and x < width:
            if found and x - found[-1][1] < NEAR:
                found[-1] = found[-1][0], x + 1
            else:
                found.append((x, x + 1))
    return found


def _cells(strip: Strip) -> list[tuple[str, object]]:
    return [(character, segment.style) for segment in strip for character in segment.text]


def contain(view: ScrollView, size: Size) -> None:
    """The size of what is scrolled over, without a layout of the whole screen: the scrollbar's place is kept free. A
    view that is as high as its content needs that layout."""
    if view.styles.auto_dimensions:
        view.virtual_size = size
    elif size != view.virtual_size:
        view.set_reactive(Widget.virtual_size, size)
        view._scroll_update(size)


class Unmoved(Widget):
    """A widget whose lines do not tell whether it has the focus, or which draws those that do itself: it is not drawn
    again for getting or losing it."""

    def on_focus(self, event: Focus) -> None:
        self._turn(event, True, DescendantFocus(self))

    def on_blur(self, event: Blur) -> None:
        self._turn(event, False, DescendantBlur(self))

    def _turn(self, event: Focus | Blur, focused: bool, word: Message) -> None:
        event.prevent_default()  # which draws everything
        self.has_focus = focused
        if self.parent is not None:
            self.parent.post_message(word)


class LinesView(Unmoved, ScrollView, can_focus=True):
    """Shows laid-out lines; scrolls; repaints what changed and nothing else."""

    DEFAULT_CSS = """
    LinesView { overflow-x: hidden; overflow-y: auto; scrollbar-size-vertical: 1; scrollbar-gutter: stable; }
    """

    def __init__(self, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes)
        self._blocks: Sequence[RenderableType] = ()
        self._strips: list[Strip] = []
        self._laid_width = -1

    def show(self, blocks: Sequence[RenderableType], laid: list[Strip] | None = None) -> None:
        """Replace what is shown; `laid`: its lines, where they are known already."""
        self._blocks = blocks
        if laid is None:
            self.lay_out()
        else:
            self._laid_width = self.scrollable_content_region.width
            self.put(laid)

    def lay_out(self) -> None:
        """Blocks to strips at the width there is now."""
        width = self.scrollable_content_region.width
        if width <= 0 or not self.is_attached:
            return
        self._laid_width = width
        self.put(self.laid(self._blocks))

    def laid(self, blocks: Sequence[RenderableType]) -> list[Strip]:
        """The lines that blocks make at the width there is now."""
        console = self.app.console
        options = console.options.update(width=self.scrollable_content_region.width, height=None, highlight=False)
        lines = console.render_lines(Group(*blocks), options, pad=False) if blocks else []
        return [Strip(line).simplify() for line in lines]

    def put(self, strips: list[Strip]) -> None:
        """Show these lines; repaint only where they differ."""
        old, self._strips = self._strips, strips
        contain(self, Size(self.scrollable_content_region.width, len(strips)))
        top, height = self.scroll_offset.y, self.size.height
        for y in range(top, top + height):
            before = old[y] if y < len(old) else None
            after = strips[y] if y < len(strips) else None
            if before is not after and before != after:
                for start, end in stretches(before, after, self.size.width):
                    self.refresh(Region(start, y - top, end - start, 1))

    def on_resize(self, event: Resize) -> None:
        if self.scrollable_content_region.width != self._laid_width:
            self.lay_out()

    def render_line(self, y: int) -> Strip:
        line = y + self.scroll_offset.y
        width = self.size.width
        if 0 <= line < len(self._strips):
            return self._strips[line].extend_cell_length(width).crop(0, width)
        return Strip.blank(width)

    @property
    def plain(self) -> str:
        """What is shown, as text: for tests and for copying."""
        return "\n".join(strip.text.rstrip() for strip in self._strips)
