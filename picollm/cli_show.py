"""Tables of the command line: status, runs, plan, checks, settings. Plain text, aligned, without colours."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from picollm.cli_follow import duration
from picollm.run import config as settings
from picollm.run import estimate, lease, pipeline
from picollm.run import events as ev
from picollm.run.errors import UserError
from picollm.run.folder import ACTIVE, Run, runs_folder
from picollm.run.history import spent
from picollm.run.planned import Plan


def existing(name: str | None) -> Run:
    """The named run, or the newest. Raises `UserError` when there is none."""
    if name:
        return Run.open(name)
    found = Run.all()
    if not found:
        raise UserError(f"no runs in {runs_folder()}; start one with: picollm run")
    return Run.open(str(found[0].dir))


def table(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Columns padded to their widest cell; those numbered in `right` are right-aligned."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def status_json(run: Run) -> str:
    """`{"run", "dir", "profile", "conductor", "stages": [{"name", "state", "step", …}]}` in pipeline order."""
    return json.dumps(
        {
            "run": run.name,
            "dir": str(run.dir),
            "profile": run.wishes().run.profile,
            "conductor": lease.is_held(run.conductor_lock),
            "stages": [msgspec.to_builtins(status) for status in run.statuses()],
        },
        indent=1,
        allow_nan=False,
    )


def status_table(run: Run) -> str:
    rows = [["stage", "state", "step", "took", "left", "predicted", ""]]
    for status in run.statuses():
        rows.append(
            [
                status.name,
                status.state,
                f"{status.step}/{status.steps}" if status.steps and status.state not in ("done", "stale") else "",
                duration(status.seconds) if status.attempt else "",
                duration(status.eta) if status.eta is not None and status.state in ACTIVE else "",
                duration(status.predicted_s),
                status.reason,
            ]
        )
    return f"run {run.name}  profile {run.wishes().run.profile}  {run.dir}\n" + table(rows, right=(2, 3, 4, 5))


def number(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,.4g}" if isinstance(value, float) and abs(value) < 10_000 else f"{value:,.0f}"


def plan_text(run: Run, plan: Plan) -> str:
    """What was derived, the choices with their figures, and the predicted seconds beside the outcome."""
    parts = [f"plan of run {run.name}  profile {run.wishes().run.profile}"]
    if plan.values:
        wished = settings.flat(run.wishes())
        rows = [["setting", "planned", ""]]
        for key, value in plan.values.items():
            own = wished.get(key)
            rows.append([key, number(value), f"you set {number(own)}" if own and own != value else ""])
        parts.append(table(rows, right=(1,)))
    if plan.notes:
        parts.append(table([["note", "", ""], *([key, number(value), ""] for key, value in plan.notes.items())]))
    for what, chosen in plan.choices.items():
        rows = [[what, "", f"chosen: {chosen}"]]
        for name, figure in plan.figures.get(what, {}).items():
            rows.append([f"  {name}", number(figure), "<" if name == chosen else ""])
        parts.append(table(rows, right=(1,)))
    for what, figures in plan.figures.items():
        if what not in plan.choices:
            parts.append(table([[what, ""], *([f"  {name}", number(figure)] for name, figure in figures.items())]))
    rows = [["stage", "predicted", "took", "state"]]
    statuses = run.statuses()
    for status in statuses:
        predicted = plan.seconds.get(status.name)
        took = status.seconds if status.attempt else None
        state = status.state + (f": {status.reason}" if status.state == "stale" else "")
        rows.append([status.name, duration(predicted), duration(took), state])
    total = estimate.eta_seconds(run.config(), {name: plan.seconds.get(name, 0.0) for name in pipeline.NAMES})
    rows.append(["all", duration(total), duration(spent(statuses) or None), ""])
    parts.append(table(rows, right=(1, 2)))
    return "\n\n".join(parts)


def checks_text(checks: list[ev.Check]) -> str:
    rows = [[check.status, check.name, check.found + (f"  -> {check.fix}" if check.fix else "")] for check in checks]
    return table(rows) if rows else "no checks"


def settings_text(layers: list[tuple[str, dict[str, Any]]], only_different: bool = False) -> str:
    """Every setting with the layer it comes from; `only_different` leaves the defaults out."""
    rows = []
    for key, knob in settings.knobs().items():
        origin, value = "default", None
        for name, layer in layers:
            if key in layer and (name == "default" or layer[key] != value):
                origin, value = name, layer[key]
        if origin == "default" and only_different:
            continue
        unit = f" [{knob.unit}]" if knob.unit else ""
        rows.append(f"{f'{key} = {settings.shown(value)}':40}  # {origin}{unit}")
    return "\n".join(rows) if rows else "nothing differs from the defaults"


def run_layers(run: Run) -> list[tuple[str, dict[str, Any]]]:
    """The layers of an existing run: what its profile gives, what its own config.toml says, what preflight planned."""
    wishes = settings.flat(run.wishes())
    try:
        base = settings.layers(profile=wishes["run.profile"], environ={})[:2]
    except UserError:  # a profile of somebody's own file
        base = settings.layers(environ={})[:1]
    plan = run.plan()
    planned = {key: value for key, value in (plan.values if plan else {}).items() if not wishes.get(key)}
    return [*base, (str(Path(run.name) / "config.toml"), wishes), ("plan.json", planned)]


def failed_checks(checks: list[ev.Check]) -> list[ev.Check]:
    return [check for check in checks if check.status == "fail"]
