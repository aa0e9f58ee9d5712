"""The doctor's checks: what was found, what was wanted, how to mend it."""

from __future__ import annotations

from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from tui import actions, state
from tui.widgets.lines import LinesView, empty_state, heading, text
from tui.widgets.tones import tone

_MARKS = {"ok": ("✓ ok  ", "good"), "warn": ("! warn", "warn"), "fail": ("✗ fail", "bad")}


class DoctorPane(LinesView):
    def update_from(self, view: state.RunView, checks: tuple[Any, ...]) -> None:
        self.show(blocks(view, checks))


def blocks(view: state.RunView, checks: tuple[Any, ...]) -> list[RenderableType]:
    """What is wrong first, with its cure; then the rest."""
    if not checks:
        if view.stage("doctor").state == "running":
            return empty_state("Checking this machine …")
        start, launch = actions.find("start_stage").first, actions.find("launch").first
        return empty_state(
            "Nothing checked yet",
            "The doctor looks at Python, packages, memory, disk, network and GPUs.",
            f"Select Doctor on the left and press {start}, or {launch} for the whole pipeline.",
        )
    counts = {status: sum(check.status == status for check in checks) for status in ("fail", "warn", "ok")}
    note = ", ".join(f"{number} {status}" for status, number in counts.items() if number)
    order = {"fail": 0, "warn": 1, "ok": 2}
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(ratio=1)
    for check in sorted(checks, key=lambda check: order.get(check.status, 3)):
        words, mood = _MARKS.get(check.status, (check.status, "plain"))
        cell = text(check.found)
        if check.wanted and check.status == "ok":
            cell.append(f"  wanted: {check.wanted}", tone("faint"))
        elif check.wanted:
            cell.append(f"\nwanted: {check.wanted}", tone("faint"))
        if check.fix and check.status != "ok":
            cell.append(f"\nfix: {check.fix}", tone("accent"))
        table.add_row(text((words, mood)), text((check.name, "strong" if check.status != "ok" else "plain")), cell)
    return [heading("Doctor", note), Text(""), table]
