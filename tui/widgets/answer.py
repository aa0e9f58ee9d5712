"""One answer being written: text that grows, and under it what was measured."""

from __future__ import annotations

from rich.text import Text

from picollm.run import measures
from tui.figures import metric
from tui.widgets.lines import text

ENDINGS = {
    "length": ("cut at the length limit", "warn"),
    "cancel": ("stopped by you", "warn"),
    "cut": ("broke off", "bad"),
    "error": ("failed", "bad"),
}


def measured(answer: str, finish_reason: str | None, tok_s: float | None, tokens: int | None = None) -> Text:
    """Length, repetition, how it ended, speed: always in this order, so that two of them compare at a glance."""
    found = measures.measure(answer, finish_reason)
    length = f"{found.words} words" + (f", {tokens} tokens" if tokens else "")
    repeats = found.repetition
    line = text((length, "plain"), ("  repeats ", "faint"),
                (f"{repeats:.0%}".replace("%", " %"), "warn" if repeats > 0.3 else "plain"))  # fmt: skip
    if finish_reason is not None:
        words, mood = ("ended properly", "good") if found.ended else ENDINGS.get(
            finish_reason, ("did not end properly", "warn"))  # fmt: skip
        line.append_text(text(("  " + words, mood)))
    if tok_s:
        line.append_text(text((f"  {metric(tok_s)} tok/s", "faint")))
    return line
