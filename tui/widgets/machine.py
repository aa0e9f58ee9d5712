"""The machine while the run goes on: processor, memory, disk, GPUs, from the conductor's own record."""

from __future__ import annotations

import time
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from tui import state
from tui.figures import bar, clock, size, sparkline
from tui.widgets.lines import LinesView, empty_state, heading, rows, text
from tui.widgets.tones import tone

OLD_S = 15.0


class MachinePane(LinesView):
    def update_from(self, view: state.RunView, readings: tuple[Any, ...]) -> None:
        width = max(20, self.scrollable_content_region.width)
        self.show(blocks(view, readings, width, time.time()))


def blocks(view: state.RunView, readings: tuple[Any, ...], width: int, now: float) -> list[RenderableType]:
    """The newest reading as bars and the last minutes as sparklines."""
    if not readings:
        return empty_state(
            "No readings yet",
            "The conductor records the machine every two seconds while a run goes on;",
            "the record stays in the run folder.",
        )
    last = readings[-1]
    age = now - last.time
    note = "live" if age < OLD_S else f"last reading {clock(age)} ago, when the run last went on"
    room = max(8, min(40, width - 34))
    trend = max(8, min(60, width - 14))
    found: list[RenderableType] = [heading("Machine", note), Text("")]
    found.append(_meter("CPU", last.cpu / 100, f"{last.cpu:3.0f} %", room))
    if len(last.cores) > 1:
        found += _cores(last.cores, width)
    found.append(text(("  last  ", "faint"), (sparkline([r.cpu for r in readings], trend, 100.0), "accent")))
    found.append(Text(""))
    total = last.memory_total or 1
    found.append(_meter("Memory", last.memory_used / total, f"{size(last.memory_used)} of {size(total)}", room))
    past = [float(reading.memory_used) for reading in readings]
    found.append(text(("  last  ", "faint"), (sparkline(past, trend, float(total)), "accent")))
    found += [Text(""), rows([("Disk", text(size(last.disk_free), ("  free", "faint")))])]
    found.append(Text(""))
    if not last.gpus:
        found.append(text(("No GPU on this machine: ", "strong"), ("everything runs on the processor.", "faint")))
    for number, gpu in enumerate(last.gpus):
        found += _gpu(number, gpu, readings, room, trend)
    return found


def _meter(label: str, share: float, words: str, room: int) -> Text:
    mood = "bad" if share > 0.95 and label != "CPU" else "accent"
    filled = bar(share, room).rstrip()
    rest = "·" * (room - len(filled))
    return text((label.ljust(8), "faint"), (filled, mood), (rest, "line"), (f"  {words}", "plain"))


def _cores(cores: list[float], width: int) -> list[RenderableType]:
    """A short bar for each core, as many on a line as fit."""
    each = 21
    per_line = max(1, (width - 8) // each)
    lines: list[RenderableType] = []
    for start in range(0, len(cores), per_line):
        line = text(("  cores " if start == 0 else " " * 8, "faint"))
        for index, value in enumerate(cores[start : start + per_line], start):
            filled = bar(value / 100, 9).rstrip()
            line.append(f"{index:>3} ", tone("faint"))
            line.append(filled, tone("accent"))
            line.append("·" * (9 - len(filled)), tone("line"))
            line.append(f" {value:3.0f} %  ", tone("plain"))
        lines.append(line)
    return lines


def _gpu(number: int, gpu: dict[str, Any], readings: tuple[Any, ...], room: int, trend: int) -> list[RenderableType]:
    """What this GPU reports; what it does not report is not shown."""
    notes = [f"{gpu[key]:.0f} {unit}" for key, unit in (("power_w", "W"), ("temperature_c", "°C")) if key in gpu]
    found: list[RenderableType] = [heading(f"GPU {number}", "  ".join([str(gpu.get("name", "")), *notes]))]
    if "utilisation" in gpu:
        found.append(_meter("Busy", gpu["utilisation"] / 100, f"{gpu['utilisation']:3.0f} %", room))
        past = [float(r.gpus[number].get("utilisation", 0)) for r in readings if number < len(r.gpus)]
        found.append(text(("  last  ", "faint"), (sparkline(past, trend, 100.0), "accent")))
    if "memory_used" in gpu and gpu.get("memory_total"):
        words = f"{size(gpu['memory_used'])} of {size(gpu['memory_total'])}"
        found.append(_meter("Memory", gpu["memory_used"] / gpu["memory_total"], words, room))
    return [*found, Text("")]
