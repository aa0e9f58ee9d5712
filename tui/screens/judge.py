"""Which of two answers was better, and by what: the form behind a vote."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from rich.console import RenderableType
from rich.text import Text
from textual import events, on
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Input, Label

from picollm.run.votes import MOST, RUBRIC, WINNERS
from tui import actions
from tui.screens.steady import Steady
from tui.widgets.lines import LinesView, text

LABEL = max(len(about) for _, about in RUBRIC)
WORDS = {"a": "A", "b": "B", "tie": "equally good", "neither": "neither is any good"}


@dataclass
class Verdict:
    winner: str = ""
    scores: dict[str, dict[str, int]] = field(default_factory=lambda: {"a": {}, "b": {}})
    note: str = ""


class JudgeForm(LinesView):
    """Rows to go through with ↑ ↓, values to change with ← →. A, B, = and 0 choose the winner at once."""

    def __init__(self) -> None:
        super().__init__(id="judge-form")
        self.verdict = Verdict()
        self.row = 0
        self.wrong = ""
        self.fields = [("winner", "")] + [(name, side) for name, _ in RUBRIC for side in ("a", "b")]

    def draw(self) -> None:
        found: list[RenderableType] = [self._line(0, "Which is better?", self._winner()), Text("")]
        for number, (name, side) in enumerate(self.fields[1:], 1):
            points = self.verdict.scores[side].get(name, 0)
            given = text((f"{points} of {MOST}  ", "strong") if points else ("not judged  ", "faint"))
            given.append_text(text(("■ " * points, "accent"), ("· " * (MOST - points), "faint")))
            about = dict(RUBRIC)[name] if side == "a" else ""
            label = f"{about[:1].upper()}{about[1:]}".ljust(LABEL) + f"  {side.upper()}"
            found.append(self._line(number, label, given, LABEL + 5))
        if self.wrong:
            found += [Text(""), text(("  " + self.wrong, "bad"))]
        self.show(found)

    def _winner(self) -> Text:
        line = Text()
        for name in WINNERS:
            chosen = name == self.verdict.winner
            line.append_text(
                text((f"[{WORDS[name]}]" if chosen else f" {WORDS[name]} ", "strong" if chosen else "faint"))
            )
        return line

    def _line(self, number: int, label: str, value: Text, width: int = 18) -> Text:
        here = number == self.row
        line = text(("> " if here else "  ", "accent"), (label.ljust(width), "strong" if here else "plain"))
        return line.append_text(value)

    def on_key(self, event: events.Key) -> None:
        quick = {"a": "a", "b": "b", "equals_sign": "tie", "0": "neither"}
        if event.key in ("up", "k", "down", "j"):
            self.row = (self.row + (1 if event.key in ("down", "j") else -1)) % len(self.fields)
        elif event.key in ("left", "h", "right", "l"):
            self._change(1 if event.key in ("right", "l") else -1)
        elif self.row == 0 and event.key in quick:
            self.verdict.winner = quick[event.key]
        elif self.row and event.character and event.character in "012345":
            name, side = self.fields[self.row]
            self.verdict.scores[side][name] = int(event.character)
        else:
            return
        event.stop()
        event.prevent_default()
        self.draw()

    def _change(self, by: int) -> None:
        name, side = self.fields[self.row]
        if name == "winner":
            at = WINNERS.index(self.verdict.winner) + by if self.verdict.winner else (0 if by > 0 else -1)
            self.verdict.winner = WINNERS[at % len(WINNERS)]
        else:
            scores = self.verdict.scores[side]
            scores[name] = min(MOST, max(0, scores.get(name, 0) + by))


class JudgeScreen(Steady, ModalScreen[Verdict | None]):
    """At the top, where it hides the prompts and not the answers."""

    BINDINGS: ClassVar[Any] = actions.bindings("dialog")

    def __init__(self, a: str, b: str) -> None:
        super().__init__()
        self._names = f"A {a} · B {b}"

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog") as box:
            box.border_title = f"Vote: {self._names}"
            yield JudgeForm()
            yield Input(placeholder="a word on why, if you like (Tab)")
            yield Label("↑ ↓ row · ← → value, or A B = 0, 1-5 · Enter keeps it · esc leaves", classes="keys")

    def on_mount(self) -> None:
        form = self.query_one(JudgeForm)
        form.focus()
        self.call_after_refresh(form.draw)

    def on_key(self, event: events.Key) -> None:
        if event.key == "enter":
            event.stop()
            self.action_confirm()

    @on(Input.Submitted)
    def action_confirm(self) -> None:
        form = self.query_one(JudgeForm)
        if not form.verdict.winner:
            form.wrong = "first say which is better: A, B, = or 0"
            form.draw()
            return
        form.verdict.note = self.query_one(Input).value.strip()
        self.dismiss(form.verdict)

    def action_back(self) -> None:
        self.dismiss(None)
