"""Numbers as a person reads them: clocks, counts, bytes, metrics. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence


def clock(seconds: float | None) -> str:
    """`0:07`, `12:03`, `1:02:03`, `2d 03:00`; an en dash when unknown."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    whole = max(0, int(seconds + 0.5))
    minutes, second = divmod(whole, 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}d {hour:02d}:{minute:02d}"
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minutes}:{second:02d}"


def roughly(seconds: float) -> str:
    """`8 s`, `40 min`, `12 h`, `3 days`: for what nobody waits for by the second."""
    if seconds < 60:
        return f"{max(0, round(seconds))} s"
    if seconds < 5400:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3600:.0f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.0f} days"


def count(value: float) -> str:
    """`950`, `12.3k`, `4.06M`, `1.2B`."""
    if not math.isfinite(value):
        return "–"
    for limit, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            scaled = value / (1e3 if unit == "k" else limit)
            return f"{scaled:.3g}{unit}" if abs(scaled) < 999.5 else f"{scaled:.0f}{unit}"
    return f"{value:.0f}" if value == int(value) else f"{value:.3g}"


def counted(number: int, noun: str) -> str:
    """`1 line`, `2,000 lines`."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def size(value: float) -> str:
    """Bytes in binary units: `1.5 GiB`."""
    if not math.isfinite(value):
        return "–"
    for power, unit in ((4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")):
        if abs(value) >= 1024**power:
            return f"{value / 1024**power:.1f} {unit}"
    return f"{value:.0f} B"


def metric(value: float | None) -> str:
    """A reading of unknown magnitude in at most ten characters."""
    if value is None or not math.isfinite(value):
        return "–"
    if value and (abs(value) >= 1e12 or abs(value) < 1e-4):
        return f"{value:.1e}"
    if abs(value) >= 1e4:
        return count(value)
    return f"{value:.4g}"


def bar(share: float, width: int) -> str:
    """A bar of block characters, `share` in 0..1, exact to an eighth of a cell."""
    share = min(1.0, max(0.0, share if math.isfinite(share) else 0.0))
    eighths = round(share * width * 8)
    full, rest = divmod(eighths, 8)
    return ("█" * full + (" ▏▎▍▌▋▊▉"[rest] if rest else "")).ljust(width)


def sparkline(values: Sequence[float | None], width: int, top: float = 0.0) -> str:
    """The newest `width` values as eight heights, gaps where there is none; `top` fixes the scale, 0 takes the largest
    value."""
    shown = [value if value is not None and math.isfinite(value) else None for value in values[-width:]]
    top = top or max((value for value in shown if value is not None), default=0.0) or 1.0
    heights = "▁▂▃▄▅▆▇█"
    return "".join(
        " " if value is None else heights[int(min(1.0, max(0.0, value / top)) * 7.99)] for value in shown
    ).rjust(width)
