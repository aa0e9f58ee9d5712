"""The selected stage in words: what it is for, how it stands and why, its attempts, settings, readings, samples."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from textual.events import Resize

from picollm.run import pipeline
from picollm.run.folder import ACTIVE, StageStatus
from picollm.run.knowledge import knowledge
from tui import actions, state
from tui.attempts import ended
from tui.figures import bar, clock, metric, roughly, size
from tui.widgets import tones
from tui.widgets.explained import explanation, knobs
from tui.widgets.lines import LinesView, empty_state, heading, rows, text
from tui.widgets.tones import tone

if TYPE_CHECKING:
    from tui.app import PicollmApp

_ADVICE = {
    "launch": "launches the whole pipeline",
    "resume": "continues it where it was, and what comes after",
    "redo": "makes it again, after asking",
    "stop": "saves and stops",
}


WIDE = 150
"""From this width the explanation stands beside the facts."""
MOST_RESULTS, LONGEST = 24, 240
COUNTED_S = 2.0
"""From here on it is worth saying by how much a prediction was wrong."""
_LABELS = {"tok_s": "tok/s", "mfu": "MFU", "world": "ranks", "peak_memory": "most memory", "params": "parameters"}
RAN = ("running", "stalled", "stopping", "stopped", "failed", "crashed", "done", "stale")


class StagePane(LinesView):
    """The tab Pipeline."""

    app: PicollmApp

    def __init__(self, id: str | None = None) -> None:
        super().__init__(id=id)
        self._shown: tuple[state.RunView, str, state.Detail | None] | None = None
        self._looks: object = None
        self.explained = True

    def update_from(self, view: state.RunView, name: str, detail: state.Detail | None) -> None:
        detail = detail if detail and detail.stage == name else None
        self._shown = view, name, detail
        looks = _looks(view, name, detail), tones.current().name
        if looks != self._looks:
            self._looks = looks
            self._draw()

    def _draw(self) -> None:
        if self._shown is not None:
            width = self.scrollable_content_region.width
            self.show(blocks(*self._shown, explained=self.explained, width=width, readonly=self.app.readonly))

    def on_resize(self, event: Resize) -> None:
        if self.scrollable_content_region.width != self._laid_width:  # being shown again is a resize, too
            self._draw()

    def do_explain(self) -> None:
        self.explained = not self.explained
        self._draw()

    def do_kill(self) -> None:
        self.app.ask_to_kill()


def _looks(view: state.RunView, name: str, detail: state.Detail | None) -> tuple[object, ...]:
    """Equal when the pane would look the same: new points of curves, for instance, are not on it."""
    if detail is None:
        return view, name
    return (view, name, detail.attempts, detail.made, detail.summary, detail.evals, detail.samples, detail.choices,
            detail.warnings, detail.checkpoints)  # fmt: skip


def blocks(
    view: state.RunView,
    name: str,
    detail: state.Detail | None,
    explained: bool = True,
    width: int = 80,
    readonly: bool = False,
) -> list[RenderableType]:
    """The whole pane, top to bottom; on a wide screen the explanation beside the rest. `readonly`: without the keys
    that act on the run."""
    if not view.known:
        return _problem(view)
    row, status = pipeline.stage(name), view.stage(name)
    if view.gone:
        return _gone(view)
    head = [*_problem(view), *([] if view.exists or readonly else _welcome(view))]
    if view.stages and all(one.state in ("done", "skipped") for one in view.stages):
        head += _finished()
    head += [heading(row.title, _place(name)), text(row.purpose), Text("")]
    facts = _facts(view, row, status, detail, readonly)
    history = _history(detail, status) if detail is not None else []
    about = explanation(view, name) if explained else []
    if not about:
        key = actions.find("explain", "stage").first
        about = [text((f"{key} explains this stage", "faint"))]
    if width >= WIDE:
        sides = Table.grid(padding=(0, 4, 0, 0), expand=True)
        sides.add_column(ratio=3)
        sides.add_column(ratio=2)
        sides.add_row(Group(*facts, *history, *knobs(view, row)), Group(*about))
        return [*head, sides]
    if status.state in RAN:  # what happened is asked for more often than what is meant to happen
        return [*head, *facts, *history, Text(""), *about, *knobs(view, row)]
    return [*head, *facts, Text(""), *about, *knobs(view, row)]


def _problem(view: state.RunView) -> list[RenderableType]:
    return [text(("! ", "bad"), (view.problem, "bad")), Text("")] if view.problem else []


def _gone(view: state.RunView) -> list[RenderableType]:
    """It was here, and somebody else took it away."""
    return empty_state(f"The run {view.name} is gone", "It was renamed, archived or deleted elsewhere.",
                       f"{_tab('runs')} shows the runs.")  # fmt: skip


def _facts(
    view: state.RunView, row: pipeline.Stage, status: StageStatus, detail: state.Detail | None, readonly: bool
) -> list[RenderableType]:
    """State, reason, time, what goes in and what comes out, and the next thing to do."""
    facts: list[tuple[str, RenderableType | str]] = [("State", _state(status, view.look(row.name)))]
    if status.reason:
        label = "Made" if status.state == "done" else "Why"  # made: "from x", where another run made it
        facts.append((label, text((status.reason, state.LOOKS[status.state].tone))))
    facts += [*_time(status), *_needs(view, row), ("Makes", _makes(row, detail))]
    if view.notice and view.active is None:
        facts.append(("Conductor", text((view.notice, "warn"))))
    found: list[RenderableType] = [rows(facts)]
    if view.exists and not readonly:
        found += [Text(""), *_can_do(view, row.name)]
    return found


def _can_do(view: state.RunView, name: str) -> list[RenderableType]:
    """The keys that make sense for this stage now, the likeliest first."""
    status = view.stage(name)
    advice = state.advice(view, name)
    words = _ADVICE.get(advice, "")
    if status.state == "stopping":
        words = "kills it, after asking"
    elif status.state == "stale" and status.lost:
        words = "makes what is gone again, and keeps what comes out the same"
    found = [(advice, words)] if advice else []
    if status.state in ("ready", "waiting") and view.active is None:
        found.append(("start_stage", "runs this stage alone"))
        found.append(("start_from", "runs it and everything after it"))
    elif status.state in ("done", "stopped", "failed", "crashed"):
        found.append(("redo", "makes it again from its beginning, after asking"))
    if status.state in ("running", "stalled"):
        found.append(("kill", "ends it at once without saving, after asking"))
    return [text((actions.find(name, "stage").first, "accent"), (f"  {words}", "faint")) for name, words in found[:3]]


def _makes(row: pipeline.Stage, detail: state.Detail | None) -> Text:
    """Where it is, once it is there; what it will be, before."""
    if detail is not None and detail.made:
        line = Text()
        for what, path in list(detail.made.items())[:4]:
            line.append(f"{what} ", tone("faint"))
            line.append(f"{path}   ", tone("plain"))
        return line
    return text((knowledge(row.name).makes, "faint"))


def _welcome(view: state.RunView) -> list[RenderableType]:
    """What the first key press is, what it takes, and where anything else is chosen."""
    launch, runs, new = actions.find("launch").first, _tab("runs"), actions.find("new", "runs").first
    left = state.totals(view).left
    takes = "; Preflight measures how long that takes" if left is None else f": about {roughly(left)} on this machine"
    return [
        text(("Make a chatbot from raw text", "strong")),
        text((launch, "accent"), (" makes the run ", "faint"), (view.name, "plain"),
             (f" with profile {view.profile}, every stage on the left in order{takes}.", "faint")),
        text((runs, "accent"), (" and then ", "faint"), (new, "accent"), (" opens a form: another size, your own text, "
             "rented GPUs, and what each takes.", "faint")),
        text(("Close the app or lose the connection: the run goes on, and is here when you come back.", "faint")),
        Text(""),
    ]  # fmt: skip


def _finished() -> list[RenderableType]:
    """All is made: what it is for."""
    return [
        text(("The chatbot is made   ", "strong"), (_tab("chat"), "accent"), (" chat with it   ", "faint"),
             (_tab("compare"), "accent"), (" compare models   ", "faint"), (_tab("report"), "accent"),
             (" report", "faint")),
        Text(""),
    ]  # fmt: skip


def _tab(name: str) -> str:
    return actions.spelled(actions.row(f"show_tab.{name}").keys[0])


def _place(name: str) -> str:
    return f"stage {pipeline.NAMES.index(name) + 1} of {len(pipeline.NAMES)}"


def _state(status: StageStatus, look: state.Look) -> Text:
    line = text((f"{look.symbol} {look.word}", look.tone))
    if status.state in ACTIVE and status.phase:
        line.append(f"  {status.phase}", tone("faint"))
    done = state.share(status)
    if done is not None and status.state not in ("done", "stale"):
        line.append(f"  {bar(done, 20).rstrip()}", tone("accent"))
        line.append(f" step {status.step:,} of {status.steps:,}", tone("faint"))
    return line


def _time(status: StageStatus) -> list[tuple[str, RenderableType]]:
    known = status.predicted_s is not None
    predicted = f"predicted {clock(status.predicted_s)}" if known else "planned by Preflight"
    if not status.attempt:
        return [("Time", text((predicted, "faint")))]
    line = text(clock(status.seconds), (f"  {predicted}", "faint"))
    if status.state == "done" and status.predicted_s and min(status.seconds, status.predicted_s) >= COUNTED_S:
        line.append(f"  {status.seconds / status.predicted_s - 1:+.0%}".replace("%", " %"), tone("faint"))
    elif status.eta is not None and status.state in ACTIVE:
        line.append(f"  about {clock(status.eta)} left", tone("faint"))
    elif status.state == "running" and status.seconds > (status.predicted_s or math.inf) + COUNTED_S:
        line.append("  longer than predicted", tone("faint"))
    return [("Time", line)]


def _needs(view: state.RunView, row: pipeline.Stage) -> list[tuple[str, RenderableType]]:
    if not row.needs:
        return []
    line = Text()
    for name in row.needs:
        look = view.look(name)
        line.append(f"{look.symbol} ", tone(look.tone))
        line.append(f"{pipeline.stage(name).title}   ", tone("plain"))
    return [("Needs", line)]


def _history(detail: state.Detail, status: StageStatus) -> list[RenderableType]:
    found: list[RenderableType] = []
    if detail.warnings:
        found += [Text(""), heading("Warnings")]
        found += [text(("! ", "warn"), (words, "plain")) for words in detail.warnings[-5:]]
    if detail.evals:
        found += [Text(""), heading("Readings", "the newest of each"), rows(_evals(detail.evals), 2)]
    if detail.summary:
        found += [Text(""), heading("Result"), rows(_result(detail.summary), 2)]
    if detail.choices:
        found += [Text(""), heading("Chosen by measuring")]
        pairs = []
        for choice in detail.choices:
            figures = ", ".join(f"{key} {metric(value)}" for key, value in choice.figures.items())
            pairs.append((choice.what, text(choice.chosen, (f"  {figures}" if figures else "", "faint"))))
        found.append(rows(pairs, 2))
    if detail.samples:
        found += [Text(""), heading("Samples", "newest first")]
        for sample in reversed(detail.samples[-4:]):
            label = f"{sample.model or 'model'}, step {sample.step:,}"
            if "reward" in sample.details:
                label += f", {sample.details.get('which', '')} of its question, reward {sample.details['reward']:g}"
            found += [text(("  " + sample.prompt, "second"), (f"  {label}", "faint")),
                      rows([("", sample.text.strip()[:600])], 2)]  # fmt: skip
    if detail.attempts:
        found += [Text(""), heading("Attempts")]
        lines = [*detail.attempts[-6:-1], ended(detail.attempts[-1], status)]
        found += [text(("  " + words, "plain")) for words in lines]
    if detail.checkpoints:
        found += [Text(""), heading("Checkpoints")]
        pairs = [
            (f"step {mark.step:,}", text(mark.path, (f"  {size(mark.bytes)} in {mark.seconds:.1f} s", "faint")))
            for mark in detail.checkpoints[-3:]
        ]
        found.append(rows(pairs, 2))
    return found


def _evals(evals: tuple[Any, ...]) -> list[tuple[str, RenderableType]]:
    """The newest reading under each name; an accuracy as a percentage with its interval."""
    newest = {event.name: event for event in evals}
    pairs: list[tuple[str, RenderableType]] = []
    for name, event in newest.items():
        values, notes = dict(event.values), [f"n={event.n:,}"] if event.n else []
        words = []
        if "accuracy" in values:
            words.append(f"{_percent(values.pop('accuracy'))} %")
            low, high = values.pop("low", None), values.pop("high", None)
            if low is not None and high is not None:
                notes.insert(0, f"{_percent(low)}–{_percent(high)} %")
        words += [f"{key} {metric(value)}" for key, value in values.items()]
        notes += [f"step {event.step:,}"] if event.step else []
        pairs.append((name, text("  ".join(words), ("  " + ", ".join(notes), "faint"))))
    return pairs


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.3g}"


def _result(summary: Mapping[str, Any]) -> list[tuple[str, RenderableType | str]]:
    """What a stage says of itself at its end, a line each; what is nothing is left out."""
    pairs: list[tuple[str, RenderableType | str]] = []
    for key, value in summary.items():
        if value in (0, "", None, {}, []):
            continue
        pairs.append((_LABELS.get(key, key.replace("_", " ")), _words(key, value)))
    return pairs[:MOST_RESULTS]


def _words(key: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        words = ", ".join(f"{name.replace('_', ' ')} {_words(name, one)}" for name, one in value.items()
                          if not isinstance(one, dict | list))  # fmt: skip
        words = words or f"{len(value)}: {', '.join(value)}"
        return words if len(words) <= LONGEST else words[: LONGEST - 1] + "…"
    if isinstance(value, int | float):
        if key in ("peak_memory", "bytes") or key.endswith("_bytes"):
            return size(value)
        if key.endswith("_seconds"):
            return f"{value:.1f} s"
        return metric(value) if isinstance(value, float) else f"{value:,}"
    return str(value)[:LONGEST]
