"""In what two models differ: what their checkpoints say, and the settings of their runs."""

from __future__ import annotations

from pathlib import Path

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from picollm.run import config as settings
from picollm.run import pipeline
from picollm.run.errors import UserError
from picollm.run.folder import Run
from tui import voices
from tui.voices import Known, Voice
from tui.widgets.lines import heading, text
from tui.widgets.tones import tone


def difference(a: Voice | None, b: Voice | None, here: str) -> list[RenderableType]:
    """Blocks to show. Reads both runs: call it in a thread."""
    if a is None or b is None:
        return [text(("both sides need somebody first", "faint"))]
    facts, settings_a = _of(a)
    facts_b, settings_b = _of(b)
    rows = [(name, facts.get(name, "–"), facts_b.get(name, "–")) for name in {**facts, **facts_b}]
    found: list[RenderableType] = [heading("What they are"), _table(rows, a.title(here), b.title(here)), Text("")]
    if a.url or b.url:
        return [*found, text(("the settings behind an endpoint are not known", "faint"))]
    keys = [key for key in {**settings_a, **settings_b} if settings_a.get(key) != settings_b.get(key)]
    if not keys:
        same = "the same run" if a.run == b.run else "two runs with the same settings"
        return [*found, text((f"no setting differs: {same}", "faint"))]
    changed = [(key, _shown(settings_a, key), _shown(settings_b, key)) for key in keys]
    return [*found, heading("Settings that differ"), _table(changed, a.title(here), b.title(here))]


def _of(voice: Voice) -> tuple[dict[str, str], dict[str, object]]:
    if voice.url:
        return {"endpoint": voice.url, "model": voice.model}, {}
    run = Run(Path(voice.run))
    known = next((each for each in voices.of_run(run) if each.voice == voice), Known(voice=voice))
    facts = {"run": run.name, "made by": pipeline.stage(known.stage).title if known.stage else "–"}
    facts |= {"step": f"{known.step:,}"} if known.step else {}
    facts |= {"bits per byte": f"{known.score:.4f}"} if known.score is not None and voice.continues else {}
    facts |= {"context": f"{known.context:,} tokens"} if known.context else {}
    try:
        return facts, voices.stage_settings(run)
    except UserError as error:
        return facts | {"settings": str(error)}, {}


def _shown(values: dict[str, object], key: str) -> str:
    return settings.shown(values[key]) if key in values else "–"


def _table(rows: list[tuple[str, str, str]], a: str, b: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style=tone("faint"))
    table.add_column("", style=tone("faint"))
    table.add_column(text((f"A {a}", "faint")), style=tone("plain"), ratio=1)
    table.add_column(text((f"B {b}", "faint")), style=tone("plain"), ratio=1)
    for name, left, right in rows:
        how = "plain" if left == right else "strong"
        table.add_row(text((name, "faint")), text((left, how)), text((right, how)))
    return table
