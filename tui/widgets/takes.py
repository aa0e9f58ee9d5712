"""What a run would take, in a column: time, money, memory, disk, model, and where the time goes. Pure."""

from __future__ import annotations

from rich.console import RenderableType
from rich.text import Text

from picollm.run import pipeline
from picollm.run.estimate import Estimate
from picollm.run.forecast import Place
from tui import actions
from tui.figures import bar, clock, count, size
from tui.widgets.lines import heading, rows, text
from tui.widgets.tones import tone

WORTH_NAMING = 0.01
"""Share of the whole time from which a stage gets a line."""


def blocks(found: Estimate | str, place: Place, free_disk: int | None) -> list[RenderableType]:
    """`found`: the estimate, or why there is none."""
    key = actions.find("next_place", "form").first
    head: list[RenderableType] = [
        heading("What it takes"),
        text((place.label, "plain")),
        text(("measured" if place.measured else "by a table, not measured", "faint"), (f"   {key} another", "faint")),
        Text(""),
    ]
    if isinstance(found, str):
        return [*head, text(("! ", "bad"), (found, "bad"))]
    pairs: list[tuple[str, RenderableType | str]] = [("Time", text((clock(found.eta_s), "strong")))]
    pairs.append(("Cost", text((f"${found.cost:,.2f}", "strong")) if found.cost is not None
                  else text(("no price known for this machine", "faint"))))  # fmt: skip
    each = " on each device" if found.how.world > 1 else ""
    pairs.append(("Memory", _part(found.memory["total"], found.free, each)))
    pairs.append(("Disk", _part(found.disk["total"], free_disk, " free")))
    shape = found.shape
    pairs.append(("Model", f"{count(found.params['total'])} parameters: {shape.depth} layers of {shape.dim}, "
                  f"context {shape.seq_len:,}"))  # fmt: skip
    passes = f"{found.epochs:.2g} passes through it" if found.epochs else "its text was not looked at"
    pairs.append(("Text", f"{count(found.tokens['pretrain'])} tokens in pretraining, {passes}"))
    pairs.append(("Speed", f"{found.tok_s:,.0f} tok/s"))
    steps = ", ".join(f"{pipeline.stage(name).title} {number:,}" for name, number in found.steps.items())
    pairs.append(("Steps", steps))
    most = max(found.seconds.values())
    times: list[tuple[str, RenderableType | str]] = [
        (pipeline.stage(name).title,
         text((clock(seconds).rjust(7) + " ", "plain"), (bar(seconds / most, 10).rstrip(), "accent")))
        for name, seconds in found.seconds.items()
        if most and seconds >= WORTH_NAMING * sum(found.seconds.values())
    ]  # fmt: skip
    note = [Text(""), text((found.note, "faint"))] if found.note else []
    return [*head, rows(pairs), Text(""), heading("Where the time goes"), rows(times), *note]


def _part(need: int, there: int | None, after: str) -> Text:
    """`0.7 GiB of 31 GiB free`, with a word where it is too much."""
    if not there:
        return text((size(need), "strong"))
    fits = need <= there
    line = text((size(need), "strong" if fits else "bad"), (f" of {size(there)}{after}", "faint"))
    if not fits:
        line.append("  ! too much", tone("bad"))
    return line
