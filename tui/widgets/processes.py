"""Who uses the machine, as a table: the GPUs' processes first, then the busiest on the processor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from picollm.run import pipeline
from tui import state
from tui.figures import size
from tui.widgets.lines import heading, text
from tui.widgets.tones import tone

UNSEEN = 1 << 30
"""Bytes of GPU memory that no listed process accounts for: below this it is the driver's own."""


def processes(view: state.RunView, readings: Sequence[Any], everyone: bool, width: int) -> list[RenderableType]:
    """From the newest reading that looked; nothing where none did."""
    newest = next((reading for reading in reversed(readings) if reading.processes is not None), None)
    if newest is None:
        return []
    listed = [one for one in newest.processes if everyone or one.get("ours")]
    shown = [one for one in listed if not one.get("hidden")]
    found: list[RenderableType] = [heading("Processes", "everybody's" if everyone else "of this run alone")]
    if shown:
        found.append(_table(shown, bool(newest.gpus), width))
    elif not everyone:
        found.append(text(("none of this run is busy here", "faint")))
    else:
        found.append(text(("nobody is busy", "faint")))
    found += [text((words, "warn")) for words in hidden(newest)] if everyone else []
    return found


def hidden(reading: Any) -> list[str]:
    """What is known of GPU memory whose users cannot be seen from here, one sentence per GPU."""
    found = []
    for gpu in reading.gpus:
        index = str(gpu.get("index", 0))
        on_it = [one for one in reading.processes if index in one.get("gpus", {})]
        unseen = [one for one in on_it if one.get("hidden")]
        known = [one["gpus"][index] for one in on_it]
        rest = gpu.get("memory_used", 0) - sum(used for used in known if used is not None)
        theirs = sum(one["gpus"][index] or 0 for one in unseen)
        if unseen:
            memory = f" with {size(theirs)}" if theirs else ""
            number = f"{len(unseen)} processes" if len(unseen) > 1 else "a process"
            found.append(f"GPU {index}: {number}{memory} hidden (another container's or user's)")
        elif rest > UNSEEN and None not in known:
            found.append(
                f"GPU {index}: {size(rest)} used by processes hidden from here (another container's or user's)"
            )
    return found


def _table(listed: Sequence[dict[str, Any]], gpus: bool, width: int) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    names = [*(["pid"] if width >= 44 else []), "CPU", *(["memory"] if width >= 60 else [])]
    names += (["GPU memory"] if gpus else []) + (["user"] if width >= 70 else []) + ["what"]
    for name in names:
        table.add_column(justify="right" if name in ("pid", "CPU", "memory") else "left", no_wrap=True,
                         overflow="ellipsis", ratio=1 if name == "what" else None)  # fmt: skip
    table.add_row(*(text((name, "faint")) for name in names))
    for one in listed:
        cells = {
            "pid": text((str(one["pid"]), "faint")),
            "CPU": text(f"{one.get('cpu', 0.0):.0f} %"),
            "memory": text(size(one["memory"]) if "memory" in one else "–"),
            "GPU memory": text(", ".join(f"{index}: {_memory(used)}" for index, used in one.get("gpus", {}).items())),
            "user": text((str(one.get("user", "–")), "faint")),
            "what": _what(one),
        }
        table.add_row(*(cells[name] for name in names))
    return table


def _memory(used: int | None) -> str:
    return "not told" if used is None else size(used)


def _what(one: dict[str, Any]) -> Text:
    """The process's name, or what it does for a run: ours with a mark."""
    stage = one.get("stage")
    if not stage:
        return text(str(one.get("name", "?")))
    title = pipeline.stage(stage).title if stage in pipeline.NAMES else stage
    words = title + (f", rank {one['rank']}" if "rank" in one else "")
    line = text(("▶ " if one.get("ours") else "  ", "accent"), (words, "strong" if one.get("ours") else "plain"))
    line.append("  this run" if one.get("ours") else f"  run {one.get('run', '?')}", tone("faint"))
    return line
