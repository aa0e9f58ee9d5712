"""What the Machine tab draws: one block of lines for each part of the machine. Pure: readings in, lines out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from picollm.run import pipeline
from picollm.run.nvml import HARMFUL
from tui import state, timeline
from tui.figures import bar, clock, roughly, size, sparkline
from tui.timeline import Columns, gpu_value
from tui.widgets.lines import empty_state, heading, rows, text
from tui.widgets.processes import processes
from tui.widgets.tones import tone

OLD_S = 15.0
CARD_LINES, OTHER_LINES = 8, 12
"""Of a GPU with all that it reports, and of the rest of the machine: more than the screen has, and GPUs get a line
each, unless asked otherwise."""
LABEL, WORDS = 9, 20
FEW_CORES = 16


@dataclass
class Look:
    """What the person chose to see. `cards`: all of each GPU, one line, or (None) as many as fit. `recorded`: what the
    run recorded, though it is old."""

    span: str = timeline.SPANS[0][0]
    cards: bool | None = None
    everyone: bool = True
    recorded: bool = False


@dataclass(frozen=True)
class Ruler:
    """Cells of a line: label, bar, words, and a curve where there is room for one."""

    width: int
    columns: Columns | None = None

    @property
    def bar(self) -> int:
        room = self.width - LABEL - WORDS - 3
        return max(6, min(24, room // 2)) if self.trend_fits else max(6, min(40, room))

    @property
    def trend_fits(self) -> bool:
        return self.width >= 54

    @property
    def trend(self) -> int:
        return trend_width(self.width)


def trend_width(width: int) -> int:
    room = width - LABEL - WORDS - 3
    return max(0, room - max(6, min(24, room // 2)) - 1) if width >= 54 else 0


def blocks(
    view: state.RunView,
    readings: Sequence[Any],
    look: Look,
    width: int,
    now: float,
    own: bool,
    sampling: bool,
    height: int = 40,
) -> list[RenderableType]:
    """`own`: the newest reading is the app's; `sampling`: the app reads this machine when nobody else does."""
    if not readings:
        if sampling:
            return empty_state("Reading this machine …")
        return empty_state(
            "No readings yet",
            "The conductor records the machine every two seconds while a run goes on;",
            "the record stays in the run folder.",
        )
    last = readings[-1]
    span = dict(timeline.SPANS)[look.span]
    two = width >= 150 and len(last.gpus) > 1
    end = min(now, last.time + 60.0)
    ruler = _ruler(readings, end, span, (width - 3) // 2 if two else width)
    whole = _ruler(readings, end, span, width) if two else ruler
    found: list[RenderableType] = [_title(view, last, look, now, own, width), *_alarms(view, readings, now), Text("")]
    cards = look.cards
    if cards is None:
        down = -(-len(last.gpus) // (2 if two else 1))
        cards = len(last.gpus) == 1 or down * CARD_LINES + OTHER_LINES <= height
    found += _gpus(readings, cards, ruler, width, end, span)
    found += _host(readings, last, whole)
    found += processes(view, readings, look.everyone, width)
    return found


def _ruler(readings: Sequence[Any], end: float, span: float, width: int) -> Ruler:
    room = trend_width(width)
    return Ruler(width, Columns(readings, end, span, room) if room else None)


def _title(view: state.RunView, last: Any, look: Look, now: float, own: bool, width: int) -> Text:
    age = now - last.time
    line = heading("Machine", last.host)
    if own:
        line.append("  now, read by this screen", tone("faint"))
    elif age < OLD_S:
        line.append("  now, recorded by the run", tone("faint"))
    elif view.active is not None:
        line.append(f"  ! no reading for {clock(age)}: the conductor does not record", tone("warn"))
    else:
        day = time.strftime("%d %b %H:%M", time.localtime(last.time))
        line.append(f"  as it was on {day}, when the run last went on", tone("warn"))
    if trend_width(width):
        line.append(f"   curves: {look.span}", tone("faint"))
    return line


def _alarms(view: state.RunView, readings: Sequence[Any], now: float) -> list[Text]:
    """What somebody should do something about, one line each."""
    last = readings[-1]
    found: list[tuple[str, str]] = []
    for gpu in last.gpus:
        name = f"GPU {gpu.get('index', 0)}"
        if "lost" in gpu:
            found.append(("bad", f"{name} {gpu['lost']}"))
        for why in gpu.get("slowed", ()):
            if why in HARMFUL:
                found.append(("bad", f"{name} is slowed: {why}"))
        if gpu.get("ecc_errors"):
            found.append(("bad", f"{name} has {gpu['ecc_errors']} memory errors that could not be corrected: have it "
                                 "replaced if they return"))  # fmt: skip
    if view.active is not None and pipeline.stage(view.active.name).trains:
        quiet = timeline.quiet_gpus(readings)
        if quiet:
            found.append(("warn", f"GPU {', '.join(map(str, quiet))} did nothing for a minute while others worked"))
    for what, used, total in (("memory", last.memory_used, last.memory_total),
                              ("the container's memory", last.memory_limit_used, last.memory_limit)):  # fmt: skip
        if total and used > 0.95 * total:
            found.append(("bad", f"{what} is nearly full: what asks for more will be killed"))
    for one in last.disks:
        fills = timeline.filling(readings, one["path"])
        if one["free"] < min(1 << 30, 0.02 * one["total"]):
            found.append(("bad", f"disk of the {one['what']}: {size(one['free'])} free"))
        elif fills is not None and fills[0] < 6 * 3600:
            found.append(("warn", f"disk of the {one['what']} is full in about {roughly(fills[0])} at this rate"))
    return [text((("✗ " if mood == "bad" else "! ") + words, mood)) for mood, words in found]


# GPUs -----------------------------------------------------------------------------------------------------------------


def _gpus(
    readings: Sequence[Any], cards: bool, ruler: Ruler, width: int, end: float, span: float
) -> list[RenderableType]:
    last = readings[-1]
    if not last.gpus:
        why = last.gpu_note or "no GPU was found"
        return [text(("No GPU on this machine: ", "strong"), (f"{why}. Everything runs on the processor.", "faint")),
                Text("")]  # fmt: skip
    if not cards:
        return [_table(last.gpus, readings, width, end, span), *_reasons(last.gpus), Text("")]
    drawn = [_card(gpu, ruler) for gpu in last.gpus]
    if ruler.width == width:
        return [line for card in drawn for line in (*card, Text(""))]
    grid = Table.grid(padding=(0, 3, 0, 0))
    grid.add_column(width=ruler.width)
    grid.add_column(width=ruler.width)
    for left in range(0, len(drawn), 2):
        pair = [Group(*card) for card in drawn[left : left + 2]]
        grid.add_row(*pair, *([""] if len(pair) == 1 else []))
        grid.add_row("", "")
    return [grid]


_MISSED = {"utilisation": "Busy", "memory_used": "Memory", "power_w": "Power", "temperature_c": "Heat"}


def _card(gpu: dict[str, Any], ruler: Ruler) -> list[RenderableType]:
    """Everything that this GPU reports, and why it does not report the rest."""
    index, missing = gpu.get("index", 0), gpu.get("missing", {})
    found: list[RenderableType] = [heading(f"GPU {index}", str(gpu.get("name", "")))]
    if "lost" in gpu:
        return [*found, text((f"✗ {gpu['lost']}", "bad"))]
    trend = _trends(ruler)
    if "utilisation" in gpu:
        found.append(_gauge("Busy", gpu["utilisation"] / 100, f"{gpu['utilisation']:3.0f} %", ruler,
                            trend(gpu_value(index, "utilisation"), 100.0)))  # fmt: skip
    if gpu.get("memory_total"):
        used, total = gpu["memory_used"], gpu["memory_total"]
        found.append(_gauge("Memory", used / total, of(used, total), ruler,
                            trend(gpu_value(index, "memory_used"), float(total)), full=True))  # fmt: skip
    if "power_w" in gpu:
        limit = gpu.get("power_limit_w")
        words = f"{gpu['power_w']:.0f} W" + (f" of {limit:.0f} W" if limit else "")
        found.append(_gauge("Power", gpu["power_w"] / limit if limit else None, words, ruler,
                            trend(gpu_value(index, "power_w"), float(limit or 0))))  # fmt: skip
    if "temperature_c" in gpu:
        limit = gpu.get("temperature_limit_c")
        words = f"{gpu['temperature_c']} °C" + (f", slows at {limit}" if limit else "")
        found.append(_gauge("Heat", gpu["temperature_c"] / limit if limit else None, words, ruler,
                            trend(gpu_value(index, "temperature_c"), float(limit or 100)), full=True))  # fmt: skip
    if "clock_mhz" in gpu:
        most, why = gpu.get("clock_max_mhz"), ", ".join(gpu.get("slowed", ()))
        words = f"{gpu['clock_mhz']} MHz" + (f" of {most}" if most else "")
        found.append(_gauge("Clock", gpu["clock_mhz"] / most if most else None, words, ruler,
                            trend(gpu_value(index, "clock_mhz"), float(most or 0))))  # fmt: skip
        if why:
            harmful = any(one in HARMFUL for one in gpu["slowed"])
            found.append(text((" " * LABEL, "plain"), (f"below its clock: {why}", "bad" if harmful else "faint")))
    for part in gpu.get("mig", ()):
        found.append(_slice(part, ruler))
    for key, label in _MISSED.items():
        if key in missing:
            found.append(text((label.ljust(LABEL), "faint"), (missing[key], "plain")))
    return found


def _slice(part: dict[str, Any], ruler: Ruler) -> Text:
    name = str(part.get("name", "slice")).rpartition(" ")[2]
    if not part.get("memory_total"):
        return text(
            (f"{name:{LABEL}}", "faint"), (part.get("missing", {}).get("memory_used", "nothing reported"), "plain")
        )
    words = of(part["memory_used"], part["memory_total"])
    return _gauge(name, part["memory_used"] / part["memory_total"], words, ruler, None, full=True)


def _table(gpus: Sequence[dict[str, Any]], readings: Sequence[Any], room: int, end: float, span: float) -> Table:
    """One line per GPU, with the course of its utilisation where there is room; columns leave where it is narrow."""
    table = Table.grid(padding=(0, 2, 0, 0))
    fits = {"power": room >= 50, "heat": room >= 40, "clock": room >= 66, "below its clock": room >= 96}
    curve = min(60, room - 60 - (24 if fits["below its clock"] else 0)) if room >= 72 else 0
    columns = Columns(readings, end, span, curve) if curve else None
    names = ["GPU", "busy", *([""] if columns else []), "memory", *(name for name in fits if fits[name])]
    for name in names:
        table.add_column(justify="left" if name in ("", "below its clock") else "right", no_wrap=True)
    table.add_row(*(text((name, "faint")) for name in names))
    for gpu in gpus:
        index = gpu.get("index", 0)
        if "lost" in gpu:
            table.add_row(text((str(index), "strong")), text(("✗ lost", "bad")))
            continue
        busy, total, used = gpu.get("utilisation"), gpu.get("memory_total"), gpu.get("memory_used", 0)
        limit, slowed = gpu.get("power_limit_w"), gpu.get("slowed", ())
        why = ", ".join(slowed) or gpu.get("missing", {}).get("utilisation", "")
        cells = {
            "GPU": text((str(index), "strong")),
            "busy": text("–" if busy is None else f"{busy:.0f} %"),
            "memory": text(f"{used / 2**30:.1f}/{total / 2**30:.0f} GiB" if total else "–"),
            "power": text(
                f"{gpu['power_w']:.0f}" + (f"/{limit:.0f} W" if limit else " W") if "power_w" in gpu else "–"
            ),
            "heat": text(f"{gpu['temperature_c']} °C" if "temperature_c" in gpu else "–"),
            "clock": text(f"{gpu['clock_mhz']} MHz" if "clock_mhz" in gpu else "–"),
            "below its clock": text((why, "bad" if any(one in HARMFUL for one in slowed) else "faint")),
        }
        if columns is not None:
            cells[""] = text((sparkline(columns.mean(gpu_value(index, "utilisation")), curve, 100.0), "accent"))
        table.add_row(*(cells[name] for name in names))
    return table


def _reasons(gpus: Sequence[dict[str, Any]]) -> list[Text]:
    """Under the table: the reasons of what is not in it, each once."""
    reasons: dict[str, tuple[list[str], list[str]]] = {}
    for gpu in gpus:
        for key, why in gpu.get("missing", {}).items():
            which, what = reasons.setdefault(why, ([], []))
            which += [str(gpu.get("index", 0))] * (str(gpu.get("index", 0)) not in which)
            what += [_MISSED[key].lower()] * (key in _MISSED and _MISSED[key].lower() not in what)
    return [text((f"GPU {', '.join(which)}, {' and '.join(what) or 'the rest'}: {why}", "faint"))
            for why, (which, what) in reasons.items()]  # fmt: skip


# the rest of the machine ----------------------------------------------------------------------------------------------


def _host(readings: Sequence[Any], last: Any, ruler: Ruler) -> list[RenderableType]:
    trend = _trends(ruler)
    load = f", load {last.load:.1f}" if last.load is not None else ""
    found: list[RenderableType] = [
        _gauge("CPU", last.cpu / 100, f"{last.cpu:3.0f} %{load}", ruler, trend(lambda one: one.cpu, 100.0))
    ]
    if len(last.cores) > 1:
        found += _cores(last.cores, ruler.width)
    total = last.memory_total or 1
    found.append(_gauge("Memory", last.memory_used / total, of(last.memory_used, total), ruler,
                        trend(lambda one: one.memory_used, float(total)), full=True))  # fmt: skip
    if last.memory_limit:
        most, used = last.memory_limit, last.memory_limit_used
        curve = trend(lambda one: one.memory_limit_used or None, float(most))
        found.append(_gauge("of it", used / most, of(used, most), ruler, curve, full=True))
        found.append(text((" " * LABEL, "plain"), ("what this container may use: more is killed", "faint")))
    if last.swap_used > 64 << 20:
        found.append(text(("Swap".ljust(LABEL), "faint"), (f"{size(last.swap_used)} used", "plain")))
    if not last.disks:
        found.append(rows([("Disk   ", text(size(last.disk_free), ("  free", "faint")))]))
    for one in last.disks:
        found += _disk(one, timeline.filling(readings, one["path"]), len(last.disks) > 1, ruler)
    for label, keys in (("Network", ("received", "sent")), ("Disk I/O", ("read", "written"))):
        if keys[0] in last.rates:
            found.append(_flow(label, keys, last.rates, ruler, trend))
    return [*found, Text("")]


def _disk(one: dict[str, Any], fills: tuple[float, float] | None, named: bool, ruler: Ruler) -> list[RenderableType]:
    course = f"full in about {roughly(fills[0])}" if fills else "does not fill up soon"
    where = f"{one['what']}: {one['path']}" if named else one["path"]
    line = _gauge("Disk", 1 - one["free"] / max(1, one["total"]), f"{size(one['free'])} free", ruler, None, full=True)
    if ruler.trend_fits:
        room = max(0, ruler.width - line.cell_len - 3)
        words = f"{course}  {where}"
        line.append(
            "  " + (words if len(words) <= room else words[: room - 1] + "…"), tone("warn" if fills else "faint")
        )
        return [line]
    return [line, text((" " * LABEL, "plain"), (course, "warn" if fills else "faint"))]


def _flow(label: str, keys: tuple[str, str], rates: dict[str, int], ruler: Ruler, trend: Any) -> Text:
    words = ", ".join(f"{size(rates[key])}/s {key}" for key in keys)
    line = text((label.ljust(LABEL), "faint"), (words, "plain"))
    curve = trend(lambda one: float(sum(one.rates[key] for key in keys)) if keys[0] in one.rates else None, 0.0)
    if curve is not None:
        line.append(" " * max(1, ruler.width - ruler.trend - line.cell_len))
        line.append_text(curve)
    return line


def _cores(cores: list[float], width: int) -> list[RenderableType]:
    """A short bar for each of a few cores; of many, one column each."""
    if len(cores) > FEW_CORES:
        room = max(10, width - LABEL)
        return [
            text((("cores" if start == 0 else "").ljust(LABEL), "faint"),
                 (sparkline(cores[start : start + room], len(cores[start : start + room]), 100.0), "accent"))
            for start in range(0, len(cores), room)
        ]  # fmt: skip
    each = 18
    per_line = max(1, (width - LABEL) // each)
    lines: list[RenderableType] = []
    for start in range(0, len(cores), per_line):
        line = text((("cores" if start == 0 else "").ljust(LABEL), "faint"))
        for index, value in enumerate(cores[start : start + per_line], start):
            line.append(f"{index:<2} ", tone("faint"))
            line.append_text(_bar(value / 100, 6))
            line.append(f" {value:3.0f} %  ", tone("plain"))
        lines.append(line)
    return lines


# lines ----------------------------------------------------------------------------------------------------------------

Trend = Callable[[Callable[[Any], float | None], float], Text | None]


def _trends(ruler: Ruler) -> Trend:
    """Makes the curve of a value, or None where it is too narrow for one."""

    def trend(value: Callable[[Any], float | None], top: float) -> Text | None:
        if ruler.columns is None:
            return None
        return text((sparkline(ruler.columns.mean(value), ruler.trend, top), "accent"))

    return trend


def _gauge(label: str, share: float | None, words: str, ruler: Ruler, curve: Text | None, full: bool = False) -> Text:
    """Label, bar, figure, curve. `full`: near its end it is a danger."""
    line = text((label.ljust(LABEL)[:LABEL], "faint"))
    line.append_text(_bar(share, ruler.bar, full))
    line.append(f" {words}", tone("plain"))
    if curve is not None:
        line.append(" " * max(1, ruler.width - ruler.trend - line.cell_len))
        line.append_text(curve)
    return line


def _bar(share: float | None, room: int, full: bool = False) -> Text:
    filled = bar(share, room).rstrip() if share is not None else ""
    mood = "bad" if full and share is not None and share > 0.95 else "accent"
    return text((filled, mood), ("·" * (room - len(filled)) if share is not None else " " * room, "line"))


def of(used: float, total: float) -> str:
    """`70.0 of 80.0 GiB`: the unit once where both have the same."""
    left, right = size(used), size(total)
    number, _, unit = left.partition(" ")
    return f"{number} of {right}" if unit == right.partition(" ")[2] else f"{left} of {right}"
