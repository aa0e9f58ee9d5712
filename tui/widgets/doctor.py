"""The doctor's checks: what was found, what was wanted, how to mend it; all of them, or one, can be made again."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from picollm.run import recheck
from picollm.run.checks import CHECKS
from picollm.run.errors import UserError
from picollm.run.recheck import Found
from tui import actions, state
from tui.figures import roughly
from tui.widgets.lines import LinesView, empty_state, heading, text
from tui.widgets.tones import tone

if TYPE_CHECKING:
    from tui.app import PicollmApp

_MARKS = {"ok": ("✓ ok  ", "good"), "warn": ("! warn", "warn"), "fail": ("✗ fail", "bad")}
_ORDER = {"fail": 0, "warn": 1, "ok": 2}
CURSOR = "▌"
NARROW = 50


class DoctorPane(LinesView):
    app: PicollmApp

    def __init__(self, id: str | None = None) -> None:
        super().__init__(id=id)
        self._view = state.empty("", known=False)
        self._found = Found()
        self.selected = ""
        self._asked = self._moved = False

    def update_from(self, view: state.RunView, found: Found | None) -> None:
        self.app.reader.doctor_wanted = True
        self._asked = self._asked and found == self._found
        self._view, self._found = view, found or Found()
        if not self._moved and self._found.checks:
            self.selected = ordered(self._found)[0].name
        self._draw()

    def now(self) -> float:
        return self.app.player.now() if self.app.player is not None else time.time()

    def _draw(self) -> None:
        width = self.scrollable_content_region.width or self.size.width
        readonly = self.app.readonly
        self.show(blocks(self._view, self._found, self.selected, self.now(), self._asked, width, readonly))

    def on_resize(self, event: Any) -> None:
        self._draw()

    def _move(self, by: int) -> None:
        names = [check.name for check in ordered(self._found)]
        if not names:
            return
        at = names.index(self.selected) if self.selected in names else -by
        self._moved = True
        self.selected = names[max(0, min(len(names) - 1, at + by))]
        self._draw()
        place = next((y for y, line in enumerate(self.plain.splitlines()) if line.startswith(CURSOR)), 0)
        top = 0 if by < 0 and self.selected == names[0] else place
        if not self.scroll_offset.y <= top <= self.scroll_offset.y + self.size.height - 4:
            self.scroll_to(y=max(0, top - self.size.height // 2) if top else 0, animate=False)

    def _check(self, names: tuple[str, ...]) -> None:
        if self._found.awaited:
            raise UserError(f"still looking at {', '.join(self._found.awaited)}")
        if self.app.player is not None:
            raise UserError("a replay shows what was found then; nothing can be checked in it")

        def job() -> None:
            recheck.start(self.app.reader.run_folder.dir, names, self._view.profile)

        self._asked = True
        self.app.work(job)
        self._draw()

    def do_check_one(self) -> None:
        if not self.selected:
            self.do_check_all()
        else:
            self._check((self.selected,))

    def do_check_all(self) -> None:
        self._check(())

    def do_check_down(self) -> None:
        self._move(1)

    def do_check_up(self) -> None:
        self._move(-1)

    def do_copy_fix(self) -> None:
        check = next((check for check in self._found.checks if check.name == self.selected), None)
        if check is None:
            raise UserError("nothing to copy yet: nothing was checked")
        self.app.copy(check.fix or check.found, "the fix" if check.fix else "what was found")


def ordered(found: Found) -> list[Any]:
    """What is wrong first."""
    return sorted(found.checks, key=lambda check: _ORDER.get(check.status, 3))


def blocks(
    view: state.RunView,
    found: Found,
    selected: str,
    now: float,
    asked: bool = False,
    width: int = 100,
    readonly: bool = False,
) -> list[RenderableType]:
    """What is wrong first, with its cure; then the rest. The selected check says what it is for."""
    checks, stage = ordered(found), view.stage("doctor")
    if not checks and not found.awaited:
        if stage.state == "running" or asked:
            return empty_state("Checking this machine …")
        why = [f"The doctor {state.LOOKS[stage.state].word}: {stage.reason}"] if stage.state in state.BROKEN else []
        why += [found.problem] if found.problem else []
        every, launch = actions.find("check_all", "doctor").first, actions.find("launch").first
        how = [] if readonly else [f"{every} checks this machine now; {launch} begins the whole pipeline with it."]
        looks = "The doctor looks at Python, packages, memory, disk, network and GPUs."
        return empty_state("Nothing checked yet", *why, looks, *how)
    counts = {status: sum(check.status == status for check in checks) for status in ("fail", "warn", "ok")}
    note = ", ".join(f"{number} {status}" for status, number in counts.items() if number)
    title = heading("Doctor", note)
    if found.awaited:
        title.append(f"  looking at {found.awaited[0]} …", tone("accent"))
        if len(found.awaited) > 1:
            title.append(f" {len(found.awaited) - 1} more to come", tone("faint"))
    elif asked:
        title.append("  beginning to look …", tone("accent"))
    elif checks:
        title.append(f"  {_ago(now - max(check.time for check in checks))}", tone("faint"))
    lines: list[RenderableType] = [title]
    if found.problem:
        lines.append(text((f"! {found.problem}", "bad")))
    if stage.state in (*state.BROKEN, "stale") and stage.reason:
        look = state.LOOKS[stage.state]
        lines.append(text((f"{look.symbol} the doctor's stage is {look.word}: {stage.reason}", look.tone)))
    table = Table.grid(padding=(0, 1, 0, 0))
    for _ in range(1 if width < NARROW else 3):
        table.add_column(no_wrap=True)
    table.add_column(ratio=1)
    for check in checks:
        row = _row(check, check.name == selected, check.name in found.awaited, now)
        table.add_row(*(row if width >= NARROW else (row[0], Text(" ").join(row[1:3]))))
        if width < NARROW:
            table.add_row("", row[3])
    known = {check.name for check in checks}
    for name in found.awaited:
        if name not in known:
            words = [text(("·     ", "faint")), text((name, "faint")), text(("not looked at yet", "faint"))]
            table.add_row(text(" "), *(words if width >= NARROW else [Text(" ").join(words)]))
    return [*lines, Text(""), table]


def _row(check: Any, chosen: bool, again: bool, now: float) -> tuple[Text, Text, Text, Text]:
    words, mood = ("… look", "accent") if again else _MARKS.get(check.status, (check.status, "plain"))
    cell = text((check.found, "faint" if again else "plain"))
    wrong = check.status != "ok"
    if chosen and check.name in CHECKS:
        cell.append(f"\n{CHECKS[check.name].about}", tone("second"))
    if check.wanted and (wrong or chosen):
        cell.append("\nwanted  ", tone("faint"))
        cell.append(check.wanted, tone("plain"))
    elif check.wanted:
        cell.append(f"  wanted {check.wanted}", tone("faint"))
    if check.fix and wrong:
        cell.append("\nfix: ", tone("faint"))
        cell.append(check.fix, tone("accent"))
    if chosen and check.time:
        cell.append(f"\n{_ago(now - check.time)}", tone("faint"))
    name = text((check.name, "strong" if wrong or chosen else "plain"))
    return text((CURSOR if chosen else " ", "accent")), text((words, mood)), name, cell


def _ago(seconds: float) -> str:
    return "looked at just now" if seconds < 10 else f"looked at {roughly(seconds)} ago"
