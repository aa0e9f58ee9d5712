"""One answer being written: what is known of it, and under it what was measured."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from rich.text import Text

from picollm.run import measures
from picollm.run.stream import Token, ToolCall
from tui.figures import counted, metric
from tui.talk import Piece
from tui.widgets.lines import clean, text

FLUSH_S = 0.08  # text is drawn a dozen times a second, not per token
BREATH_S = 0.005
LONGEST_DRAWN = 20_000  # characters


class Pace:
    """When to draw an answer that is being written: less often the longer it takes, so that keys are still heard while
    a server says more than anybody can read."""

    def __init__(self) -> None:
        self._next = 0.0

    @property
    def due(self) -> bool:
        return time.monotonic() >= self._next

    async def drawn(self, begun: float) -> None:
        """What began to be drawn at `begun` (monotonic) is; the others get their turn."""
        self._next = time.monotonic() + max(FLUSH_S, 4 * (time.monotonic() - begun))
        await asyncio.sleep(BREATH_S)


def end_of(words: str) -> Text:
    """As much of a text as is drawn: its end, after a word on what is left out."""
    left_out = len(words) - LONGEST_DRAWN
    if left_out <= 0:
        return text(words)
    return text((f"the first {left_out:,} characters are not drawn; copying takes them all\n", "faint"),
                words[left_out:])  # fmt: skip


ENDINGS = {
    "length": ("cut at the length limit", "warn"),
    "cancel": ("stopped by you", "warn"),
    "cut": ("broke off", "bad"),
    "error": ("failed", "bad"),
}


@dataclass
class Answer:
    """Folds the pieces of one answer."""

    text: str = ""
    finish: str = ""
    tok_s: float | None = None
    first_token_s: float | None = None
    tokens: int | None = None
    prompt_tokens: int | None = None
    cut_tokens: int = 0
    seen: list[Token] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)

    def take(self, piece: Piece) -> None:
        self.text += clean(piece.text)
        self.finish = piece.finish_reason or self.finish
        self.tok_s = piece.tok_s or self.tok_s
        self.tokens = piece.tokens or self.tokens
        self.first_token_s = self.first_token_s if piece.first_token_s is None else piece.first_token_s
        self.prompt_tokens = piece.prompt_tokens or self.prompt_tokens
        self.cut_tokens = piece.cut_tokens or self.cut_tokens
        self.seen += piece.seen
        self.calls += piece.calls

    def measured(self) -> Text:
        return measured(self.text, self.finish or None, self.tok_s, self.tokens, self.first_token_s)


def measured(answer: str, finish_reason: str | None, tok_s: float | None, tokens: int | None = None,
             first_token_s: float | None = None) -> Text:  # fmt: skip
    """Length, repetition, how it ended, speed: always in this order, so that two of them compare at a glance."""
    found = measures.measure(answer, finish_reason)
    length = counted(found.words, "word") + (f", {counted(tokens, 'token')}" if tokens else "")
    repeats = found.repetition
    line = text((length, "plain"), ("  repeats ", "faint"),
                (f"{repeats:.0%}".replace("%", " %"), "warn" if repeats > 0.3 else "plain"))  # fmt: skip
    if finish_reason is not None:
        words, mood = ("ended properly", "good") if found.ended else ENDINGS.get(
            finish_reason, ("did not end properly", "warn"))  # fmt: skip
        line.append_text(text(("  " + words, mood)))
    if tok_s:
        line.append_text(text((f"  {metric(tok_s)} tok/s", "faint")))
    if first_token_s is not None and finish_reason not in (None, "error"):
        line.append_text(text((f"  first token {seconds(first_token_s)}", "faint")))
    return line


def seconds(value: float) -> str:
    """A short time: `38 ms`, `1.4 s`."""
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"


def told(calls: list[ToolCall]) -> list[Text]:
    """What the model asked of its tool and was told: a line each."""
    found = []
    for call in calls:
        result = ("refused", "warn") if call.result is None else (call.result, "strong")
        found.append(text(("calculator  ", "second"), (" ".join(call.code.split()), "plain"), (" = ", "faint"), result))
    return found
