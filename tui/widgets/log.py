"""Any log of the run: opens at its end and follows it; search, levels, wrapping, copying, a pager or an editor."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import TYPE_CHECKING

from textual import on
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.widgets import Input

from picollm.run import pipeline
from picollm.run.errors import UserError
from tui import actions, outside
from tui.figures import counted, roughly, size
from tui.log_reader import LogReader, LogSources, LogText, LogWindow
from tui.log_sources import Source
from tui.matches import LEVELS
from tui.search import query
from tui.widgets.frame import OneLine
from tui.widgets.lines import text
from tui.widgets.log_lines import SHIFT, LogLines

if TYPE_CHECKING:
    from tui.app import PicollmApp


class LogPane(Vertical):
    """Title, lines, and a search box that is only there while it is used."""

    app: PicollmApp

    DEFAULT_CSS = """
    LogPane #log-search { display: none; height: 1; border: none; padding: 0; background: $panel; }
    LogPane.searching #log-search { display: block; }
    """

    def __init__(self, id: str | None = None) -> None:
        super().__init__(id=id)
        self._stage = ""
        self._chosen: Path | None = None
        self._sources: list[Source] | None = None  # nobody has looked yet
        self._later: tuple[str, asyncio.Event] | None = None  # the action that waits for them
        self._shown: Source | None = None
        self._note = self._busy = ""
        self._total = self._answers = 0
        self._level, self._words, self._only = 0, "", False

    def compose(self) -> ComposeResult:
        yield OneLine(id="log-title")
        yield OneLine(id="log-note")
        yield LogLines()
        yield Input(placeholder="regular expression; Enter finds the nearest above, else below", id="log-search")

    def on_mount(self) -> None:
        self.lines = self.query_one(LogLines)
        self.reader = LogReader(self.post_message)
        self.lines.reader = self.reader
        self.reader.start()
        self._title()

    def on_unmount(self) -> None:
        self.reader.close()

    def open(self) -> None:
        """Show the selected stage's newest log."""
        stage = self.app.main.stage
        if self.is_mounted and stage != self._stage:
            self._stage, self._chosen = stage, None
            self._show()

    def _show(self) -> None:
        self.reader.open(self.app.reader.run_folder.dir, self._stage, self._chosen)
        self.lines.request()

    # what the reader says -------------------------------------------------------------------------------------------

    @on(LogSources)
    def _listed(self, message: LogSources) -> None:
        message.stop()
        if message.stage != self._stage:
            return
        before, self._sources, self._shown = self._shown, message.sources, message.shown
        if self._later is not None:
            self.app.call_later(self._again, *self._later)
            self._later = None
        if (before.path if before else None) != (self._shown.path if self._shown else None):
            self._note, self._busy, self._total = "", "", 0
            self.lines.clear()
            self.lines.request()
        self._hint()
        self.lines.repaint()
        self._title()

    @on(LogWindow)
    def _window(self, message: LogWindow) -> None:
        message.stop()
        if message.path and (self._shown is None or message.path != str(self._shown.path)):
            return
        self._total, self._busy = message.total, message.busy
        self._answers = max(self._answers, message.answers)
        if message.given_up and self._only:
            self._only = False
            self.reader.choose(self._level, self._words, False, -1)
        if message.found >= 0:
            self._note = message.note
            self.lines.jump(message)
        elif message.rows < 0 or message.note:
            self._note = message.note
        else:
            self._hint()
            self.lines.take(message)
        self._title()

    @on(LogText)
    def _copied(self, message: LogText) -> None:
        message.stop()
        number = len(message.lines)
        what = f"the first {number:,} lines" if message.cut else counted(number, "line")
        self.app.copy("\n".join(message.lines) + ("\n" if number > 1 else ""), what)

    @on(LogLines.Moved)
    def _moved(self, message: LogLines.Moved) -> None:
        message.stop()
        self._title()

    # words ----------------------------------------------------------------------------------------------------------

    def _hint(self) -> None:
        """What stands where lines would be."""
        if self._shown is None:
            title = pipeline.stage(self._stage).title if self._stage in pipeline.NAMES else "This stage"
            start = "" if self.app.readonly else f"{actions.find('start_stage').first} starts it; "
            menu = actions.find("logs", "log").first
            words = [f"{title} has printed nothing yet", f"{start}{menu} lists the logs that there are."]
        elif self._busy:
            words = ["Searching …", ""]
        elif self._only or self._level:
            words = ["No line is of that kind", "The title says which are shown, and the keys below change it."]
        else:
            words = ["Nothing printed so far", "What it prints while it runs appears here."]
        self.lines.hint = [text(""), text(("  " + words[0], "strong")), text(""), text(("  " + words[1], "faint"))]

    def _title(self) -> None:
        """Which log, how long, what is shown of it; the note of the last search."""
        if self._shown is None:
            line = text(("No log", "strong"))
        else:
            line = text((self._shown.title, "strong"), (f"  {counted(self._total, 'line')}", "faint"))
            if self.lines.following:
                line.append_text(text(("  following", "accent")))
            else:
                line.append_text(text((f"  held{self._where()}", "warn")))
        self.query_one("#log-title", OneLine).set_line(line)
        note = text("")
        if self.lines.mark >= 0:
            number, key = abs(self.lines.cursor - self.lines.mark) + 1, actions.find("copy", "log").first
            note.append_text(text((f"{counted(number, 'line')} selected, {key} copies  ", "accent")))
        if self._level:
            note.append_text(text((f"{LEVELS[self._level][0]} only  ", "accent")))
        if self._words:
            note.append_text(text((f"{'only ' if self._only else ''}/{self._words}/  ", "accent")))
        if self._level or self._only:
            note.append_text(text((f"{counted(self.lines.rows, 'line')}  ", "faint")))
        note.append_text(text((f"{self._busy} …", "warn") if self._busy else (self._note, "plain")))
        self.query_one("#log-note", OneLine).set_line(note)

    def redress(self) -> None:
        """In the colours of another theme."""
        if self.is_mounted:
            self._hint()
            self.lines.repaint()
            self._title()

    def _where(self) -> str:
        found = self.lines.text_of(self.lines.cursor) if self.lines.cursor >= 0 else None
        return f" at line {found[0] + 1:,}" if found and found[0] >= 0 else ""

    # search and levels ----------------------------------------------------------------------------------------------

    def do_search(self) -> None:
        """Open the search box."""
        self.add_class("searching")
        self.query_one("#log-search", Input).focus()

    @on(Input.Submitted, "#log-search")
    def _search(self, event: Input.Submitted) -> None:
        event.stop()
        line = self._line()
        if event.value != self._words:
            other_rows = self._only
            self._words, self._only = event.value, self._only and bool(event.value)
            self._choose(other_rows)
        if self._words:
            self.reader.find(0, line, self._answers)
        self.leave_search()

    @on(Input.Changed, "#log-search")
    def _typing(self, event: Input.Changed) -> None:
        event.stop()
        self.lines.pattern = query(event.value)
        self.lines.repaint()

    def leave_search(self) -> bool:
        """Close the search box; False when it was not open."""
        if not self.has_class("searching"):
            return False
        self.remove_class("searching")
        self.query_one("#log-search", Input).value = self._words
        self.lines.focus()
        return True

    def _line(self) -> int:
        """The line to look from: the cursor's, else the one after the last that is shown."""
        found = self.lines.text_of(self.lines.cursor) if self.lines.cursor >= 0 else None
        if found is None:
            last = self.lines.text_of(self.lines.bottom())
            return last[0] + 1 if last and last[0] >= 0 else self._total
        return found[0]

    def _choose(self, other_rows: bool = True) -> None:
        """Tell the reader what is looked for; where that changes which lines are rows, stay near where we are."""
        looking = self._shown is not None and (self._words or self._level)
        self._note, self._busy, anchor = "", "searching" if looking else "", -1
        self.lines.pattern = query(self._words)
        if other_rows:
            anchor = -1 if self.lines.following else max(0, self._line())
            self.lines.cursor = self.lines.mark = -1
        self.reader.choose(self._level, self._words, self._only, anchor)
        self.lines.request()
        self.lines.repaint()
        self._title()

    def _step(self, direction: int) -> None:
        if not self._words:
            self.do_search()
        else:
            self.reader.find(direction, self._line(), self._answers)

    def do_match_up(self) -> None:
        self._step(-1)

    def do_match_down(self) -> None:
        self._step(1)

    def do_only(self) -> None:
        if not self._words:
            self.do_search()
            return
        self._only = not self._only
        self._choose()

    def do_level(self) -> None:
        self._level = (self._level + 1) % len(LEVELS)
        self._choose()

    # moving about ---------------------------------------------------------------------------------------------------

    def do_follow(self) -> None:
        self.lines.cursor = self.lines.mark = -1
        self.lines.follow(not self.lines.following)
        self.lines.repaint()

    def do_wrap(self) -> None:
        self.lines.wrap, self.lines.shift = not self.lines.wrap, 0
        self.lines.on_resize()

    def do_shift_left(self) -> None:
        self.lines.shift = max(0, self.lines.shift - SHIFT)
        self.lines.repaint()

    def do_shift_right(self) -> None:
        if not self.lines.wrap:
            self.lines.shift += SHIFT
            self.lines.repaint()

    def do_line_down(self) -> None:
        self.lines.move(1)

    def do_line_up(self) -> None:
        self.lines.move(-1)

    def do_select(self) -> None:
        """Begin a selection at the cursor, or end it."""
        if self.lines.mark >= 0:
            self.lines.mark = -1
        else:
            if self.lines.cursor < 0:
                self.lines.move(0)
            self.lines.mark = self.lines.cursor
        self.lines.repaint()
        self._title()

    def do_copy(self) -> None:
        """The selection, else the cursor's line."""
        if self.lines.cursor < 0:
            down, select = actions.find("line_down", "log"), actions.find("select", "log")
            raise UserError(
                f"nothing is marked: {down.shown} or a click marks a line, {select.first} or dragging several"
            )
        other = self.lines.mark if self.lines.mark >= 0 else self.lines.cursor
        first, last = sorted((self.lines.cursor, other))
        self.reader.copy(first, last + 1)

    # other logs, other programs -------------------------------------------------------------------------------------

    def _open(self, path: Path | None) -> None:
        if path is not None:
            self._chosen = path
            self._show()

    async def _again(self, action: str, done: asyncio.Event) -> None:
        if self.app.main.tab == "log":
            await self.app.action_press(action)
        done.set()

    def _all(self, action: str) -> list[Source]:
        """The logs there are; none as long as nobody has looked, and then the action comes again by itself."""
        if self._sources is None:
            self._later = actions.find(action, "log").identity, self.app.begin()
            return []
        if not self._sources:
            raise UserError("this run has no logs yet")
        return self._sources

    def _neighbour(self, by: int, action: str) -> None:
        if paths := [source.path for source in self._all(action)]:
            at = paths.index(self._shown.path) if self._shown and self._shown.path in paths else -by
            self._open(paths[(at + by) % len(paths)])

    def do_log_next(self) -> None:
        self._neighbour(1, "log_next")

    def do_log_previous(self) -> None:
        self._neighbour(-1, "log_previous")

    def do_logs(self) -> None:
        """The list of all logs."""
        from tui.screens.ask import PickScreen

        now = time.time()
        rows = [(str(source.path), source.title, f"{size(source.size)}, {roughly(now - source.changed)} ago")
                for source in self._all("logs")]  # fmt: skip
        if rows:
            self.app.push_screen(PickScreen("Logs", rows), lambda path: self._open(Path(path) if path else None))

    def _file(self) -> tuple[Path, int]:
        if self._shown is None:
            raise UserError("there is no log to open")
        line = self._line() + 1 if not self.lines.following else self._total
        return self._shown.path, line

    def do_pager(self) -> None:
        """The line is in the middle of the screen there, too."""
        file, line = self._file()
        outside.run(self.app, outside.pager(file, max(1, line - self.app.size.height // 2)))

    def do_editor(self) -> None:
        if self.app.readonly:
            raise UserError(f"read-only: an editor could change the log; {actions.find('pager', 'log').first} shows it")
        outside.run(self.app, outside.editor(*self._file()))
