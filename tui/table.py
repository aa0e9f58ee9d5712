"""The table of runs as drawn lines: columns that fit the width, counts, the selected run in words. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import RenderableType
from rich.text import Text

from picollm.run import pipeline
from picollm.run.overview import BROKEN, Summary
from tui import actions, state
from tui.figures import clock, metric
from tui.widgets.lines import clean, rows, text
from tui.widgets.tones import tone

ORDERS = ("activity", "name", "state", "bpb", "loss")
_WORST_FIRST = ("running", "stalled", "stopping", "failed", "crashed", "stopped", "stale", "ready", "waiting", "done")
_COLUMNS = (
    ("state", 11), ("stage", 15), ("step", 13), ("loss", 7), ("bpb", 7), ("age", 7), ("queue", 22), ("done", 6),
    ("profile", 11), ("note", 48),
)  # fmt: skip
_WANTED = (("state", "age"), ("bpb",), ("stage",), ("loss",), ("step",), ("queue",), ("done",), ("profile",), ("note",))
"""Which columns come first when there is little room."""
_SHORTEST_NAME, _LONGEST_NAME = 14, 30
_RIGHT = ("step", "loss", "bpb", "age")


def age(seconds: float) -> str:
    """`now`, `5 min`, `3 h`, `12 d`: how long ago."""
    if seconds < 60:
        return "now"
    for unit, size in (("d", 86400), ("h", 3600)):
        if seconds >= size:
            return f"{seconds // size:,.0f} {unit}"
    return f"{seconds // 60:.0f} min"


def arranged(found: Sequence[Summary], order: str, words: str = "") -> list[Summary]:
    """Those that have all the words, in an order of `ORDERS`; archived ones last, as runs without a figure."""
    wanted = words.lower().split()
    shown = [one for one in found if all(word in _text(one) for word in wanted)]
    keys = {
        "activity": lambda one: (not one.active, -one.touched),
        "name": lambda one: one.name.lower(),
        "state": lambda one: (_WORST_FIRST.index(one.state) if one.state in _WORST_FIRST else -1, -one.touched),
        "bpb": lambda one: (one.bpb is None, one.bpb or 0.0, one.name),
        "loss": lambda one: (one.loss is None, one.loss or 0.0, one.name),
    }
    return sorted(shown, key=lambda one: (one.archived, keys[order](one)))


def _text(one: Summary) -> str:
    title = pipeline.stage(one.stage).title if one.stage else ""
    kept = "archived" if one.archived else ""
    return f"{one.name} {one.profile} {_word(one)} {one.stage} {title} {one.note} {kept}".lower()


def columns(width: int, found: Sequence[Summary]) -> dict[str, int]:
    """Which columns fit, in their order, with their widths; the name takes what it needs of the rest."""
    sizes = dict(_COLUMNS)
    left = width - 2 - _SHORTEST_NAME
    chosen: set[str] = set()
    for group in _WANTED:
        cost = sum(sizes[column] + 1 for column in group)
        if cost > left:
            break
        chosen |= set(group)
        left -= cost
    longest = max([_SHORTEST_NAME, *(len(one.name) + 1 for one in found)])
    name = min(longest, _LONGEST_NAME, _SHORTEST_NAME + left)
    return {"name": max(4, name), **{column: size for column, size in _COLUMNS if column in chosen}}


def head(columns: dict[str, int], order: str) -> Text:
    line = text(("  ", "faint"))
    marks = {"activity": "age"}
    for column, size in columns.items():
        mark = "↓" if marks.get(order, order) == column else ""
        title = {"name": "run", "age": "seen", "queue": "still to come"}.get(column, column) + mark
        line.append(_cell(title, size, column in _RIGHT), tone("accent" if mark else "faint"))
        line.append(" ")
    line.rstrip()
    return line


def line(one: Summary, columns: dict[str, int], width: int, now: float, chosen: bool, is_open: bool) -> Text:
    """One run. A mark in front tells the selected one, a dot the one that the other tabs show."""
    look = state.LOOKS.get(one.state, state.LOOKS["waiting"])
    row = text(("▌" if chosen else " ", "accent"), ("•" if is_open else " ", "accent"))
    quiet = one.archived or not one.read
    for column, size in columns.items():
        words, mood = _value(one, column, now, look)
        if column == "name":
            mood = "strong" if chosen else "faint" if quiet else "plain"
        row.append(_cell(words, size, column in _RIGHT), tone("faint" if quiet and column != "name" else mood))
        row.append(" ")
    row.truncate(width)
    row.pad_right(max(0, width - row.cell_len))
    if chosen:
        row.stylize(tone("selected"))
    return row


def _value(one: Summary, column: str, now: float, look: state.Look) -> tuple[str, str]:
    if column == "name":
        return one.name, "plain"
    if column == "age":
        return age(max(0.0, now - one.touched)) if one.touched else "–", "faint"
    if not one.read:
        return "…" if column == "state" else "", "faint"
    if one.problem:
        return ("! unreadable", "bad") if column == "state" else ("", "faint")
    if column == "state":
        return f"{look.symbol} {_word(one)}", look.tone
    if column == "stage":
        return pipeline.stage(one.stage).title if one.stage and (one.done or one.active) else "", "plain"
    if column == "step":
        return (f"{one.step:,}/{one.steps:,}" if one.steps and one.state != "stale" else ""), "plain"
    if column == "queue":
        left = f"~{clock(one.left)}" if one.active and one.left is not None else ""
        return "  ".join(part for part in (left, one.queue) if part), "faint"
    if column == "done":
        return f"{one.done}/{one.stages}", "faint"
    if column in ("profile", "note"):
        return (one.profile if column == "profile" else one.note), "faint"
    value = one.loss if column == "loss" else one.bpb
    return (f"{value:.3f}" if value is not None and abs(value) < 1000 else metric(value) if value else "–"), "plain"


def _word(one: Summary) -> str:
    """The run's state in a word: a stage that is ready means a run that rests."""
    if one.archived:
        return "archived"
    if one.state in ("ready", "waiting"):
        return "starting" if one.conductor else "resting" if one.done else "new"
    return state.LOOKS[one.state].word


def _cell(words: str, size: int, right: bool) -> str:
    words = clean(words)
    words = words if len(words) <= size else words[: size - 1] + "…"
    return words.rjust(size) if right else words.ljust(size)


def counts(found: Sequence[Summary], shown: Sequence[Summary], order: str, words: str) -> Text:
    """How many there are, how many are at work, how many need a person."""
    if not found:
        return Text("")
    kept = [one for one in found if not one.archived]
    stalled = sum(one.state == "stalled" for one in kept)
    active = sum(one.active for one in kept) - stalled
    broken = sum(one.state in BROKEN and not one.active for one in kept)
    line = text((f" {len(kept)} run{'s' * (len(kept) != 1)}", "strong"))
    if active:
        line.append(f"  ▶ {active} at work", tone("accent"))
    if active > 1:
        line.append("  ! they share this machine", tone("warn"))
    if stalled:
        line.append(f"  ! {stalled} stalled", tone("warn"))
    if broken:
        line.append(f"  ✗ {broken} ended early", tone("bad"))
    if len(found) > len(kept):
        line.append(f"  {len(found) - len(kept)} archived", tone("faint"))
    if words:
        line.append(f"  “{words}”: {len(shown)}", tone("second"))
    unread = sum(not one.read for one in found)
    if unread:
        line.append(f"  reading {unread} …", tone("faint"))
    line.append(f"  by {order}", tone("faint"))
    return line


def _next(one: Summary) -> tuple[str, str] | None:
    """What a person is likeliest to do with the run: an action and what it does."""
    if one.archived or one.state in ("stale", "done"):
        return None
    if one.active:
        return "stop", "kills" if one.state == "stopping" else "stops"
    return ("resume", "resumes") if one.state in BROKEN else ("launch", "launches")


def detail(one: Summary, now: float, readonly: bool = False) -> list[RenderableType]:
    """The selected run in a few lines; `readonly`: without the key that acts on it."""
    look = state.LOOKS.get(one.state, state.LOOKS["waiting"])
    if one.problem:
        return [text((f"! {one.problem}", "bad"))]
    if not one.read:
        return [text(("reading …", "faint"))]
    stage = pipeline.stage(one.stage).title if one.stage else ""
    where = f"  {stage}" if stage and one.state not in ("done", "ready", "waiting") else ""
    state_of = (f"   {look.symbol} {_word(one)}", look.tone)
    line = text((one.name, "strong"), (f"  {one.profile}", "faint"), state_of, where)
    if one.steps and one.state not in ("done", "stale"):
        line.append(f"  step {one.step:,} of {one.steps:,}", tone("faint"))
    line.append(f"  {one.done} of {one.stages} done", tone("faint"))
    if one.active and one.left is not None:
        line.append(f"  about {clock(one.left)} left", tone("faint"))
    if not readonly and (key := _next(one)) is not None:
        line.append(f"   {actions.find(key[0]).first}", tone("accent"))
        line.append(f" {key[1]}", tone("faint"))
    pairs: list[tuple[str, RenderableType | str]] = []
    if one.reason:
        pairs.append(("Why", text((one.reason, look.tone))))
    if one.note:
        pairs.append(("Notes", one.note))
    if one.origin:
        pairs.append(("From", f"begins with what {one.origin} made"))
    seen = "now" if now - one.touched < 60 else f"{age(now - one.touched)} ago"
    pairs.append(("Folder", text((one.dir, "faint"), (f"   last sign of life: {seen}", "faint"))))
    return [line, rows(pairs)]
