"""Report: the sections of what the run wrote, its samples, wrong answers and votes, and the manifest as a tree."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.strip import Strip
from textual.timer import Timer

from picollm.run.errors import UserError
from tui.report_parts import FailuresPart, ManifestPart, Part, ReportPart, SamplesPart, VotesPart, load
from tui.report_text import sections
from tui.widgets import tones
from tui.widgets.frame import OneLine
from tui.widgets.lines import LinesView, empty_state, text

if TYPE_CHECKING:
    from tui.app import PicollmApp

AGAIN_S = 5.0  # how old what was read from the folder may be
LATER_S = 0.1  # after which what is below the screen is laid out


class _NoReport(Part):
    title = "Report"

    def blocks(self, width: int) -> list[RenderableType]:
        return empty_state(
            "No report yet",
            "The last stage writes it: base, mid, sft and rl side by side, what was predicted and what it took, and "
            "how to make the run again.",
            "What there is already, such as samples, is in the sections to the right.",
        )


class ReportPane(Vertical):
    """Parses only what changed, and reads only what is on the screen, in a thread."""

    app: PicollmApp

    DEFAULT_CSS = """
    ReportPane #report-parts { margin-bottom: 1; }
    ReportPane #report-scroll { height: 1fr; }
    ReportPane #report-hint { height: 1; }
    """

    def __init__(self, id: str | None = None) -> None:
        super().__init__(id=id)
        self._report: str | None = None
        self._manifest: str | None = None
        self._written: list[Part] = []
        self.beside: list[Part] = [SamplesPart(), FailuresPart(), VotesPart()]
        self.manifest = ManifestPart("")
        self.parts: list[Part] = [_NoReport(), *self.beside, self.manifest]
        self.at = 0
        self._read_at: dict[int, float] = {}
        self._reading = asyncio.Lock()  # of two readings at once the older one could be the last to end
        self._kept: dict[object, tuple[list[RenderableType], list[Strip]]] = {}
        self._kept_width = -1
        self._later: Timer | None = None  # lays out what is below the screen

    def compose(self) -> ComposeResult:
        yield OneLine(id="report-parts")
        yield LinesView(id="report-scroll")
        yield OneLine(id="report-hint")

    def on_mount(self) -> None:
        self.lines = self.query_one("#report-scroll", LinesView)
        self.call_after_refresh(self._draw)

    def on_resize(self) -> None:
        self.call_after_refresh(self._draw)

    @property
    def part(self) -> Part:
        return self.parts[self.at]

    async def update_from(self, report: str, manifest: str) -> None:
        async with self._reading:
            if report != self._report:
                self._report = report
                self._kept = {}
                found = await asyncio.to_thread(sections, report)
                self._written = [ReportPart(section) for section in found]
            if manifest != self._manifest:
                self._manifest = manifest
                opened, at = self.manifest.open, self.manifest.at
                self.manifest = await asyncio.to_thread(ManifestPart, manifest)
                self.manifest.open, self.manifest.at = opened, at
        title = self.part.title
        self.parts = [*(self._written or [_NoReport()]), *self.beside, self.manifest]
        self.at = next((n for n, part in enumerate(self.parts) if part.title == title), 0)
        await self._read()

    async def _read(self, now: bool = False) -> None:
        """What the part in front shows of the folder, unless that has just been read."""
        part = self.part
        if part in self.beside and (now or time.monotonic() - self._read_at.get(id(part), -AGAIN_S) >= AGAIN_S):
            self._read_at[id(part)] = time.monotonic()
            async with self._reading:
                problem = await asyncio.to_thread(load, part, self.app.talker().run)
            if problem:
                self.app.complain(problem)
        self._draw()

    # drawing --------------------------------------------------------------------------------------------------------

    def _draw(self) -> None:
        if not self.is_mounted or not hasattr(self, "lines"):
            return
        width = self.lines.scrollable_content_region.width
        self.query_one("#report-parts", OneLine).set_line(self._titles(self.size.width))
        self.query_one("#report-hint", OneLine).set_line(text((f"←/→ section  {self.part.hint}", "faint")))
        self._draw_part(width)
        cursor, view = self.part.cursor, self.lines
        if cursor is not None and not view.scroll_offset.y <= cursor < view.scroll_offset.y + view.size.height:
            view.scroll_to(y=max(0, cursor - view.size.height // 2), animate=False)

    def _draw_part(self, width: int) -> None:
        """What was laid out before is kept; else the screen's part of it first, and the rest a moment later."""
        if self._later is not None:
            self._later.stop()
        if width != self._kept_width:
            self._kept, self._kept_width = {}, width
        part, view = self.part, self.lines
        how = None if part.look is None else (part, part.look, tones.current().name)
        if how in self._kept:
            view.show(*self._kept[how])
            return
        blocks = part.blocks(width)
        at_once = len(blocks) if view.scroll_offset.y else max(1, view.size.height)
        laid = view.laid(blocks[:at_once]) if width > 0 else []
        view.show(blocks, laid)

        def rest() -> None:
            if part is not self.part or width != view.scrollable_content_region.width:
                return
            whole = laid + view.laid(blocks[at_once:])
            if how is not None:
                self._kept[how] = blocks, whole
            view.show(blocks, whole)

        if at_once < len(blocks):
            self._later = self.set_timer(LATER_S, rest)
        elif how is not None:
            self._kept[how] = blocks, laid

    def _titles(self, width: int) -> Text:
        """The sections by name, as many around the chosen one as there is room for."""
        first = last = self.at
        room = width - 8 - len(self.part.title)
        while first > 0 or last + 1 < len(self.parts):
            fits = [
                n for n in (last + 1, first - 1) if 0 <= n < len(self.parts) and len(self.parts[n].title) + 3 <= room
            ]
            if not fits:
                break
            room -= len(self.parts[fits[0]].title) + 3
            first, last = min(first, fits[0]), max(last, fits[0])
        line = text(("‹ " if first else "", "faint"))
        for number in range(first, last + 1):
            if number > first:
                line.append_text(text((" · ", "faint")))
            chosen = number == self.at
            line.append_text(text((f"[{self.parts[number].title}]" if chosen else self.parts[number].title,
                                   "title" if chosen else "plain")))  # fmt: skip
        return line.append_text(text((" ›" if last + 1 < len(self.parts) else "", "faint")))

    # keys (tui/actions/report.py) -----------------------------------------------------------------------------------

    async def do_next_section(self) -> None:
        await self._go(1)

    async def do_previous_section(self) -> None:
        await self._go(-1)

    async def _go(self, by: int) -> None:
        self.at = (self.at + by) % len(self.parts)
        self.lines.scroll_home(animate=False)
        await self._read(now=True)

    def do_next_row(self) -> None:
        self.part.move(1)
        self._draw()

    def do_previous_row(self) -> None:
        self.part.move(-1)
        self._draw()

    async def do_next_group(self) -> None:
        self.part.group(1)
        await self._read(now=True)

    async def do_previous_group(self) -> None:
        self.part.group(-1)
        await self._read(now=True)

    async def do_next_model(self) -> None:
        self.part.model()
        await self._read(now=True)

    def do_open(self) -> None:
        self.part.toggle()
        self._draw()

    def do_sort(self) -> None:
        self.part.sort()
        self._draw()

    def do_reverse(self) -> None:
        self.part.turn()
        self._draw()

    def do_copy_part(self) -> None:
        if not self.part.plain:
            raise UserError("nothing to copy here")
        self.app.copy(self.part.plain, self.part.title.lower())
