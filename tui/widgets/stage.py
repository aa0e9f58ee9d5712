"""The selected stage in words: what it is for, how it stands and why, its attempts, settings, readings, samples."""

from __future__ import annotations

from typing import Any

from rich.console import RenderableType
from rich.text import Text

from picollm.run import config as settings
from picollm.run import pipeline
from picollm.run.folder import ACTIVE, StageStatus
from tui import actions, state
from tui.figures import bar, clock, metric, size
from tui.widgets.lines import LinesView, heading, rows, text
from tui.widgets.tones import tone

_ADVICE = {
    "launch": "launches the whole pipeline",
    "resume": "continues it, and what comes after",
    "redo": "makes it again, after asking",
    "stop": "saves and stops",
}


class StagePane(LinesView):
    """The overview tab."""

    def update_from(self, view: state.RunView, name: str, detail: state.Detail | None) -> None:
        self.show(blocks(view, name, detail if detail and detail.stage == name else None))


def blocks(view: state.RunView, name: str, detail: state.Detail | None) -> list[RenderableType]:
    """The whole pane, top to bottom."""
    row, status = pipeline.stage(name), view.stage(name)
    found: list[RenderableType] = []
    if view.problem:
        found += [text(("! ", "bad"), (view.problem, "bad")), Text("")]
    if not view.known:
        return found
    if not view.exists:
        found += _welcome(view)
    found += [heading(row.title, _place(name)), text(row.purpose), Text("")]
    facts: list[tuple[str, RenderableType | str]] = [("Expect", row.expect), ("State", _state(status))]
    if status.reason:
        label = "Made" if status.state == "done" else "Why"  # made: "from x", where another run made it
        facts.append((label, Text(status.reason, style=tone(state.LOOKS[status.state].tone))))
    facts += [*_time(status), *_needs(view, row)]
    if view.notice and view.active is None:
        facts.append(("Conductor", Text(view.notice, style=tone("warn"))))
    found.append(rows(facts))
    advice = state.advice(view, name)
    if advice and view.exists:
        key = actions.find(advice).first
        found += [Text(""), text(("  " + key, "accent"), (f"  {_ADVICE[advice]}", "faint"))]
    if detail is not None:
        found += _history(detail)
    found += _settings(view, row)
    return found


def _welcome(view: state.RunView) -> list[RenderableType]:
    key = actions.find("launch").first
    return [
        text(("Make a chatbot from raw text", "strong")),
        text(("There is no run ", "faint"), (view.name, "plain"), (" yet. ", "faint"), (key, "accent"),
             (" makes it", "faint"), (f" with profile {view.profile}" if view.profile else "", "faint"),
             (" and runs every stage on the left, in order.", "faint")),
        text(("Close the app or lose the connection: the run goes on, and is here when you come back.", "faint")),
        Text(""),
    ]  # fmt: skip


def _place(name: str) -> str:
    return f"stage {pipeline.NAMES.index(name) + 1} of {len(pipeline.NAMES)}"


def _state(status: StageStatus) -> Text:
    look = state.LOOKS[status.state]
    line = text((f"{look.symbol} {look.word}", look.tone))
    if status.state in ACTIVE and status.phase:
        line.append(f"  {status.phase}", tone("faint"))
    done = state.share(status)
    if done is not None and status.state != "done":
        line.append(f"  {bar(done, 20).rstrip()}", tone("accent"))
        line.append(f" step {status.step:,} of {status.steps:,}", tone("faint"))
    return line


def _time(status: StageStatus) -> list[tuple[str, RenderableType]]:
    predicted = f"predicted {clock(status.predicted_s)}"
    if not status.attempt:
        return [("Time", text((predicted, "faint")))]
    line = text(clock(status.seconds), (f"  {predicted}", "faint"))
    if status.state == "done" and status.predicted_s:
        line.append(f"  {status.seconds / status.predicted_s - 1:+.0%}".replace("%", " %"), tone("faint"))
    elif status.eta is not None and status.state in ACTIVE:
        line.append(f"  about {clock(status.eta)} left", tone("faint"))
    return [("Time", line)]


def _needs(view: state.RunView, row: pipeline.Stage) -> list[tuple[str, RenderableType]]:
    if not row.needs:
        return []
    line = Text()
    for name in row.needs:
        look = state.LOOKS[view.stage(name).state]
        line.append(f"{look.symbol} ", tone(look.tone))
        line.append(f"{pipeline.stage(name).title}   ", tone("plain"))
    return [("Needs", line)]


def _history(detail: state.Detail) -> list[RenderableType]:
    found: list[RenderableType] = []
    if detail.warnings:
        found += [Text(""), heading("Warnings")]
        found += [text(("! ", "warn"), (words, "plain")) for words in detail.warnings[-5:]]
    if detail.summary:
        found += [Text(""), heading("Result"), rows(_flat(detail.summary), 2)]
    if detail.evals:
        found += [Text(""), heading("Readings"), rows(_evals(detail.evals), 2)]
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
        found += [text(("  " + words, "plain")) for words in detail.attempts[-6:]]
    if detail.checkpoints:
        found += [Text(""), heading("Checkpoints")]
        pairs = [
            (f"step {mark.step:,}", text(mark.path, (f"  {size(mark.bytes)} in {mark.seconds:.1f} s", "faint")))
            for mark in detail.checkpoints[-3:]
        ]
        found.append(rows(pairs, 2))
    return found


def _evals(evals: tuple[Any, ...]) -> list[tuple[str, RenderableType]]:
    """The newest reading under each name."""
    newest = {event.name: event for event in evals}
    pairs: list[tuple[str, RenderableType]] = []
    for name, event in newest.items():
        values = "  ".join(f"{key} {metric(value)}" for key, value in event.values.items())
        note = f"  n={event.n}" if event.n else ""
        pairs.append((name, text(values, (f"{note}  step {event.step:,}" if event.step else note, "faint"))))
    return pairs


def _flat(values: Any, prefix: str = "") -> list[tuple[str, RenderableType | str]]:
    """A nested summary as label and value, at most forty rows."""
    pairs: list[tuple[str, RenderableType | str]] = []
    for key, value in values.items():
        label = f"{prefix}{key}"
        if isinstance(value, dict):
            pairs += _flat(value, f"{label}.")
        elif isinstance(value, float):
            pairs.append((label, metric(value)))
        elif isinstance(value, int) and not isinstance(value, bool):
            pairs.append((label, f"{value:,}"))
        else:
            pairs.append((label, str(value)[:300]))
    return pairs[:40]


def _settings(view: state.RunView, row: pipeline.Stage) -> list[RenderableType]:
    if not view.settings or not row.tables:
        return []
    knobs = settings.knobs()
    pairs: list[tuple[str, RenderableType]] = []
    for key, value in view.settings.items():
        if key.partition(".")[0] not in row.tables or key not in knobs or value in ("", {}):
            continue
        knob = knobs[key]
        shown = ", ".join(f"{k} {v:,}" for k, v in value.items()) if isinstance(value, dict) else str(value)
        notes = [knob.unit, "planned" if key in view.planned else "0: planned by preflight" if knob.auto and not value
                 else ""]  # fmt: skip
        pairs.append((key, text(shown, ("  " + ", ".join(note for note in notes if note), "faint"))))
    return [Text(""), heading("Settings that matter"), rows(pairs, 2)] if pairs else []
