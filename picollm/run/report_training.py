"""The report's sections on what a run was made from and how it trained."""

from __future__ import annotations

from typing import Any

from picollm.run import pipeline
from picollm.run.curves import number
from picollm.run.manifest import Record
from picollm.run.report_blocks import Block, Chart, Heading, Said, Table, Text

LONGEST_LIST = 12
"""Entries of a nested table that are shown; the manifest has them all."""
MOST_SAMPLES = 6
MOST_MARKS = 8
"""Words about steps that are drawn at the curve of the loss, the newest ones."""
QUIET = ("low", "high")
"""What the ends of an interval begin with: not curves of their own."""
CURVES = {"rl": ("reward", "tokens", "length", "entropy", "lr")}
"""Metrics drawn of a stage, besides its readings; of the others the loss."""


def data(facts: dict[str, Any]) -> list[Block]:
    rows = _flat(facts["data"])
    identity = facts["stages"]["identity"]["summary"]
    for name in ("midtrain", "sft"):
        for task, source in facts["stages"][name]["summary"].get("sources", {}).items():
            rows += [row for row in _flat(source, f"{task} ") if row not in rows]
    rows += [[f"identity {key}", str(value)] for key, value in identity.items() if not isinstance(value, dict | list)]
    return [Heading("Data"), Table(["what", "value"], rows)] if rows else []


def _flat(values: dict[str, Any], prefix: str = "") -> list[list[str]]:
    """Nested tables as rows `tasks mmlu licence`; long ones as a count."""
    rows: list[list[str]] = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and len(value) <= LONGEST_LIST:
            rows += _flat(value, f"{name} ")
        elif isinstance(value, dict | list) and len(value) > LONGEST_LIST:
            rows.append([name, f"{len(value):,} entries, in run_manifest.json"])
        elif isinstance(value, list):
            rows.append([name, ", ".join(map(str, value))])
        else:
            rows.append([name, f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)])
    return rows


def mixtures(facts: dict[str, Any]) -> list[Block]:
    rows = []
    for name in ("midtrain", "sft"):
        summary = facts["stages"][name]["summary"]
        tokens = summary.get("conversation_tokens", {})
        everything = sum(tokens.values()) or 1
        for task, count in summary.get("conversations", {}).items():
            share = f"{100 * tokens.get(task, 0) / everything:.1f} %"
            rows.append([name, task, f"{count:,}", f"{tokens.get(task, 0):,}", share])
    if not rows:
        return []
    found: list[Block] = [
        Heading("Mixtures"),
        Table(["stage", "task", "conversations", "tokens", "share of the tokens"], rows),
    ]
    for name in ("midtrain", "sft"):
        summary = facts["stages"][name]["summary"]
        parts = [f"{summary[key]:,} {word}" for key, word in (("cut", "cut at a turn"), ("dropped", "dropped"))
                 if summary.get(key)]  # fmt: skip
        if parts:
            found.append(Text(f"{name}: of the conversations longer than a row, {' and '.join(parts)}."))
    return found


def overlap(facts: dict[str, Any]) -> list[Block]:
    summary = facts["stages"]["tokenizer"]["summary"]
    if not summary.get("overlap"):
        return []
    rows = [
        [task, str(cell["items"]), str(cell["n"]), str(cell["overlapping"]), str(cell["near"]), str(cell["short"])]
        for task, cell in summary["overlap"].items()
    ]
    return [
        Heading("Held-out items in the training text"),
        Text(
            f"{100 * summary['overlap_sampled']:.0f} % of the training text was looked at. An item overlaps when any "
            "of its n-grams of words is there, and is a near duplicate when 70 % of them are; too short ones are not "
            "judged."
        ),
        Table(["task", "items", "n", "overlapping", "near duplicates", "too short"], rows),
    ]


def tokenizer(record: Record) -> list[Block]:
    summary = record.summary("tokenizer_eval")
    if not summary.get("texts"):
        return []
    others = list(summary.get("others", {}))
    rows = []
    for name, cell in summary["texts"].items():
        row = [name, f"{cell['bytes']:,}", f"{cell['tokens']:,}", f"{cell['bytes_per_token']:.2f}"]
        row += [f"{cell[other]:.2f}" if cell.get(other) else "–" for other in others]
        rows.append([*row, "yes" if cell["exact"] else "no"])
    head = ["text", "bytes", "tokens", "bytes per token", *others, "round trip exact"]
    found: list[Block] = [Heading("Tokenizer"), Table(head, rows)]
    found += [Text(f"{name}: {state}.") for name, state in summary.get("others", {}).items()]
    return found


def training(record: Record, facts: dict[str, Any]) -> list[Block]:
    rows, curves, readings = [], list[Block](), []
    for name in pipeline.CHECKPOINT_FOLDERS:
        history = record.histories[name]
        loss, speed = history.series.get("loss"), history.series.get("tok_s")
        if loss is None or not loss.values:
            continue
        middle = sorted(speed.values)[len(speed.values) // 2] if speed and speed.values else float("nan")
        rows.append([name, str(loss.steps[-1]), f"{loss.values[0]:.3f}", f"{loss.values[-1]:.3f}", f"{middle:,.0f}"])
        read = dict.fromkeys(f"{event.name}/{key}" for event in history.evals for key in event.values)
        counts = {event.name: event.n for event in history.evals}
        shown = [key for key in read if key.rpartition("/")[2].partition("_")[0] not in QUIET]
        for key in shown:
            series = history.series[key]
            n = counts.get(key.rpartition("/")[0])
            readings.append([name, key, *_reading(series.steps[0], series.values[0]),
                             *_reading(series.steps[-1], series.values[-1]), f"{n:,}" if n else "–"])  # fmt: skip
        for key in [*(key for key in CURVES.get(name, ("loss",)) if key in history.series), *shown]:
            series = history.series[key]
            if len(series.steps) > 1:
                marks = [(note.step, note.text) for note in history.notes[-MOST_MARKS:]] if key == "loss" else []
                curves.append(Chart(f"{name}: {key}", series.steps, series.values, _spike(facts, name, key), marks))
    if not rows:
        return []
    found: list[Block] = [
        Heading("Training"),
        Table(["stage", "steps", "first loss", "last loss", "tok/s (median)"], rows),
    ]
    if readings:
        head = ["stage", "reading", "at step", "first", "at step", "last", "n"]
        found.append(Table(head, readings))
    return [*found, *curves]


def _reading(step: int, value: float) -> list[str]:
    return [str(step), number(value) if value == value else "–"]


def _spike(facts: dict[str, Any], stage: str, key: str) -> str:
    """What midtraining said of the jump at its beginning."""
    spike = facts["stages"][stage]["summary"].get("spike")
    if key != "loss" or not isinstance(spike, dict) or spike.get("height") is None:
        return ""
    after = spike.get("recovered_step")
    end = f"recovered at step {after}" if after is not None else "not recovered"
    return f"(the jump at step {spike.get('step', 1)} is the new format: {number(spike['height'])} higher, {end})"


def samples(record: Record) -> list[Block]:
    """Continuations by the base model, and of the training stages the first and the last of each prompt."""
    found: list[Block] = []
    for name, history in record.histories.items():
        if name == "chat_eval" or not history.samples:
            continue
        kept = history.samples
        if pipeline.stage(name).trains:
            newest = {sample.prompt: sample for sample in kept}
            oldest = {sample.prompt: sample for sample in reversed(kept)}
            kept = [one for prompt in list(newest)[-MOST_SAMPLES // 2 :] for one in (oldest[prompt], newest[prompt])]
            kept = list({id(sample): sample for sample in kept}.values())
        found.append(Heading(f"Samples of {name}"))
        for sample in kept[:MOST_SAMPLES]:
            details = [f"{key} {number(value)}" for key, value in sample.details.items()
                       if key in ("reward", "mean") and isinstance(value, int | float)]  # fmt: skip
            about = [sample.model or "base", *([f"step {sample.step}"] if sample.step else []), *details]
            found.append(Said(f"“{sample.prompt}”", sample.text, ", ".join(about)))
    return found
