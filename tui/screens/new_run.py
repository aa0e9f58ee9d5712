"""The form of a new run: every setting of the schema, and beside it what the run would take.

The form is drawn, not made of boxes: a hundred settings cost nothing to show, and one box serves whichever is written.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from rich.text import Text
from textual import events, on
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.screen import ModalScreen
from textual.strip import Strip
from textual.widgets import Input

from picollm.run import forecast
from picollm.run.errors import UserError
from picollm.run.folder import Run
from tui import actions, shelving
from tui.form import PLANNED, Field, Form
from tui.screens.help import HelpScreen
from tui.screens.steady import Steady
from tui.widgets import takes, tones
from tui.widgets.frame import OneLine
from tui.widgets.lines import LinesView, heading, text
from tui.widgets.tones import tone

if TYPE_CHECKING:
    from tui.app import PicollmApp

LABEL, WORDY = 19, 110
FIND = "/"


class FormView(LinesView, inherit_bindings=False):
    """The settings as lines; `lines` says which field stands where."""

    def __init__(self, id: str) -> None:
        super().__init__(id=id)
        self.lines: list[str] = []
        self._drawn: dict[str, tuple[object, Strip]] = {}

    def draw(self, form: Form, fields: list[Field], selected: str, wrong: str) -> None:
        """Settings that look as before are taken from before: a key press draws two of a hundred."""
        width, before = max(20, self.scrollable_content_region.width), self._drawn
        look = (width, tones.current().name)
        strips: list[Strip] = []
        self.lines, self._drawn, group = [], {}, ""

        def put(key: str, mark: object, line: Callable[[], Text], of: str = "") -> None:
            known = before.get(key)
            if known is None or known[0] != (mark, look):
                known = (mark, look), Strip(line().render(self.app.console, end="")).simplify()
            self._drawn[key] = known
            self.lines.append(of)
            strips.append(known[1])

        for field in fields:
            if field.group != group:
                group = field.group
                if strips:
                    put(f"above {group}", "", Text)
                put(f"title {group}", group, partial(heading, group))
            marks = form.said(field.key), form.changed(field.key), field.key == selected, field.key == wrong
            put(field.key, (field, marks), partial(_line, field, *marks, width), field.key)
        if not strips:
            put("none", "", partial(text, ("No setting has these words.", "faint")))
        self.put(strips)
        if selected in self.lines:
            at, top = self.lines.index(selected), self.scroll_offset.y
            if not top + 1 <= at < top + self.size.height - 1:
                self.scroll_to(y=max(0, at - self.size.height // 2), animate=False)

    def lay_out(self) -> None:
        """The screen draws anew when its size changes."""

    def on_click(self, event: events.Click) -> None:
        line = event.y + self.scroll_offset.y
        if line < len(self.lines) and self.lines[line] and isinstance(self.screen, NewRunScreen):
            self.screen.select(self.lines[line])
            if event.chain > 1:
                self.screen.action_edit()


def _line(field: Field, value: str, changed: bool, chosen: bool, wrong: bool, width: int) -> Text:
    label = field.label[: LABEL - 1].ljust(LABEL)
    line = text(("▌" if chosen else " ", "accent"), (label, "strong" if chosen else "plain"))
    line.append("‹ " if field.choices and chosen else "  ", tone("accent"))
    line.append(value or "–", tone("bad" if wrong else "second" if changed else "plain" if value else "faint"))
    line.append(" ›" if field.choices and chosen else "", tone("accent"))
    known = value not in ("", PLANNED)
    note = field.unit if known else field.about
    if known and width >= WORDY:
        note = f"{field.unit}  {field.about}" if field.unit else field.about
    line.append(f"  {note}" if note else "", tone("faint"))
    line.append("  * changed" if changed else "", tone("second"))
    line.truncate(width, overflow="ellipsis")
    line.pad_right(max(0, width - line.cell_len))
    if chosen:
        line.stylize(tone("selected"))
    return line


def _wide(row: actions.Action) -> int:
    """Cells that a key and its word take in the last line."""
    return len(row.first) + len(row.short) + 3


class NewRunScreen(Steady, ModalScreen[str | None]):
    """Dismissed with the name of the run that was made; None when none was."""

    app: PicollmApp
    BINDINGS: ClassVar[Any] = actions.bindings("form")

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.form = form
        self.selected = form.fields()[0].key
        self.everything, self.find = False, ""
        self.writing = ""  # the key whose value is in the box, or `FIND`
        self.places: list[forecast.Place] = []
        self.place: int | None = None  # chosen by hand; None: what fits the profile
        self._leaving = False
        self._taken: Form | None = None

    def compose(self) -> ComposeResult:
        yield OneLine(id="form-title")
        with Horizontal(id="form-body"):
            with Vertical(id="form-left"):
                yield FormView(id="form-lines")
                yield Input(id="form-box")
                yield LinesView(id="form-about")
            yield LinesView(id="form-takes")
        yield OneLine(id="form-keys")

    def on_mount(self) -> None:
        self.query_one(Input).display = False
        self.query_one(FormView).focus()
        self.run_worker(self._find_places, thread=True)
        self.call_after_refresh(self.draw)

    def on_resize(self) -> None:
        self.set_class(self.size.width < 90, "-thin")
        self.call_after_refresh(self.draw)

    def _find_places(self) -> None:
        """In a thread: plans of other runs, and which GPUs there are."""
        places = forecast.places(Run.all())
        self.app.call_from_thread(self._take_places, places)

    def _take_places(self, places: list[forecast.Place]) -> None:
        self.places = places
        self._forecast()

    # drawing --------------------------------------------------------------------------------------------------------

    @property
    def fields(self) -> list[Field]:
        return self.form.fields(self.everything, self.find)

    def field(self) -> Field | None:
        return next((one for one in self.fields if one.key == self.selected), None)

    def draw(self) -> None:
        fields = self.fields
        if self.field() is None and fields:
            self.selected = fields[0].key
        self.query_one(FormView).draw(self.form, fields, self.selected, self.writing if self._problem() else "")
        what = f"Duplicate of {self.form.base}" if self.form.base else "New run"
        line = text((f" {what} ", "title"), (f" {self.form.name}", "strong"))
        count = len(self.form.changes)
        line.append(f"  {count} setting{'s' * (count != 1)} changed" if count else "", tone("second"))
        line.append(f"  “{self.find}”" if self.find else "  all settings" if self.everything else "", tone("faint"))
        self.query_one("#form-title", OneLine).set_line(line)
        self._draw_about()
        keys = text((" ", "plain"))
        *others, help_key = sorted((row for row in actions.of("form") if row.short), key=lambda row: row.base == "help")
        room = self.size.width - _wide(help_key)
        for row in [*others, help_key]:
            if row is help_key or keys.cell_len + _wide(row) <= room:
                keys.append(row.first, tone("accent"))
                keys.append(f" {row.short}  ", tone("faint"))
        keys.rstrip()
        self.query_one("#form-keys", OneLine).set_line(keys)

    def _draw_about(self) -> None:
        """What the selected setting is, or what is wrong with what is being written."""
        field, problem = self.field(), self._problem()
        blocks: list[Text] = []
        if problem:
            blocks.append(text(("! ", "bad"), (problem, "bad")))
        elif self._leaving:
            back = actions.find("back").first
            blocks.append(text((f"! You changed something: {back} again drops it.", "warn")))
        elif field is not None:
            notes = [note for note in (field.unit, field.bounds) if note]
            blocks.append(text((field.about, "plain"), (f"  [{'; '.join(notes)}]" if notes else "", "faint")))
            where = field.key if "." in field.key and field.key != "run.profile" else ""
            if self.form.changed(field.key):
                origin = self.form.base or f"profile {self.form.profile}"
                before = self.form.said(field.key, before=True)
                blocks.append(text((f"{where}  {origin} has ", "faint"), (before, "faint")))
            elif where:
                kind = {"result": "decides what is made", "how": "decides how it is made, not what",
                        "display": "changes nothing that is made"}  # fmt: skip
                blocks.append(text((f"{where}  {kind.get(field.affects, '')}", "faint")))
        self.query_one("#form-about", LinesView).show(blocks)

    def _forecast(self, form: Form | None = None) -> None:
        """What the run would take, worked out in a thread: the newest request counts."""
        if self.places:
            place = self.places[self._place()]
            work = partial(self._work_out, form or self.form, place)
            self.run_worker(work, thread=True, exclusive=True, group="takes")

    def _place(self) -> int:
        found = forecast.first_place(self.places, self.form.profile) if self.place is None else self.place
        return found % len(self.places)

    def _work_out(self, form: Form, place: forecast.Place) -> None:
        try:
            found: Any = forecast.forecast(form.config(), place, form.stage)
        except UserError as error:
            found = str(error)
        except (ArithmeticError, ValueError) as error:
            found = f"these values do not go together: {error}"
        blocks = takes.blocks(found, place, forecast.free_disk() if place.here else None)
        self.app.call_from_thread(self._show_takes, blocks)

    def _show_takes(self, blocks: list[Any]) -> None:
        if self.is_attached:
            self.query_one("#form-takes", LinesView).show(blocks)

    # the box --------------------------------------------------------------------------------------------------------

    def _problem(self) -> str:
        """What is wrong with what is in the box; "" when nothing is."""
        if not self.writing or self.writing == FIND:
            return ""
        try:
            self.form.check(self.writing, self.query_one(Input).value)
        except UserError as error:
            return str(error)
        return ""

    def _write(self, key: str, value: str, placeholder: str) -> None:
        box = self.query_one(Input)
        self.writing = key
        box.value, box.placeholder, box.display = value, placeholder, True
        box.cursor_position = len(value)
        box.focus()

    def _close_box(self) -> None:
        self.writing = ""
        self.query_one(Input).display = False
        self.query_one(FormView).focus()
        self.draw()

    @on(Input.Changed)
    def _written(self, event: Input.Changed) -> None:
        if self.writing == FIND:
            self.find = event.value.strip()
            self.draw()
        elif self.writing:
            self._draw_about()
            if not self._problem():
                self._forecast(self.form.tried(self.writing, event.value))

    @on(Input.Submitted)
    def _submitted(self, event: Input.Submitted) -> None:
        if self.writing and self.writing != FIND:
            if self._problem():
                return
            self.form.set(self.writing, event.value)
        self._close_box()
        self._forecast()

    # actions --------------------------------------------------------------------------------------------------------

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """While something is written, keys write; only leaving and help work."""
        return action in ("back", "help") or not self.writing

    def select(self, key: str) -> None:
        self._leaving = False
        self.selected = key
        self.draw()

    def _move(self, by: int) -> None:
        keys = [one.key for one in self.fields]
        if keys:
            at = keys.index(self.selected) if self.selected in keys else 0
            self.select(keys[max(0, min(len(keys) - 1, at + by))])

    def action_next_field(self) -> None:
        self._move(1)

    def action_previous_field(self) -> None:
        self._move(-1)

    def action_page_fields_down(self) -> None:
        self._move(max(1, self.query_one(FormView).size.height - 2))

    def action_page_fields_up(self) -> None:
        self._move(-max(1, self.query_one(FormView).size.height - 2))

    def action_first_field(self) -> None:
        self._move(-10_000)

    def action_last_field(self) -> None:
        self._move(10_000)

    def action_edit(self) -> None:
        field = self.field()
        if field is None:
            return
        if field.choices:
            self._cycle(1)
        else:
            self._write(field.key, self.form.shown(field.key), field.about)

    def _cycle(self, by: int) -> None:
        field = self.field()
        if field is not None and field.choices:
            self.form.cycle(field, by)
            self.draw()
            self._forecast()

    def action_next_choice(self) -> None:
        self._cycle(1)

    def action_previous_choice(self) -> None:
        self._cycle(-1)

    def action_reset(self) -> None:
        self.form.reset(self.selected)
        self.draw()
        self._forecast()

    def action_everything(self) -> None:
        self.everything, self.find = not self.everything, ""
        self.draw()

    def action_find_field(self) -> None:
        self._write(FIND, self.find, "words of a setting's name or description")

    def action_next_place(self) -> None:
        self._next_place(1)

    def action_previous_place(self) -> None:
        self._next_place(-1)

    def _next_place(self, by: int) -> None:
        if self.places:
            self.place = self._place() + by
            self._forecast()

    def action_make(self) -> None:
        self._make(False)

    def action_make_and_launch(self) -> None:
        self._make(True)

    def _make(self, go: bool) -> None:
        if self.app.readonly:
            self.app.complain("read-only: no run is made, since the app was started with --readonly")
            return
        self.app.work(partial(shelving.make, self.form, go), lambda: self.dismiss(self.form.name))

    def action_help(self) -> None:
        self.app.push_screen(HelpScreen("form"))

    def action_back(self) -> None:
        if self.writing:
            if self.writing == FIND:
                self.find = ""
            self._close_box()
            self._forecast()
        elif self.find:
            self.find = ""
            self.draw()
        elif self.form.touched and not self._leaving:
            self._leaving = True
            self._draw_about()
        else:
            self.dismiss(None)
