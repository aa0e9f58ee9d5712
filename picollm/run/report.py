"""The report and the manifest, assembled from events and finished stages, never from printed text.

Both are made anew each time from the whole run folder, so running one stage again updates its part and loses no other.
"""

from __future__ import annotations

import platform
import time
from typing import Any

import msgspec
import psutil

from picollm.run import pipeline
from picollm.run.folder import Run
from picollm.run.history import StageHistory

MODELS = tuple(pipeline.MODEL_STAGES)


def manifest(run: Run) -> dict[str, Any]:
    """Everything that says how this run was made: settings, machine, data, artifacts, times, results."""
    stages = {}
    for status in run.statuses():
        if status.name == "report":
            continue
        done = run.finished(status.name)
        history = StageHistory(run, status.name).read_all()
        stages[status.name] = {
            "state": status.state,
            "attempts": len(run.attempts(status.name)),
            "seconds": _spent(history),
            "predicted_s": history.started[-1].predicted_s if history.started else None,
            "fingerprint": history.started[-1].fingerprint if history.started else None,
            "versions": history.started[-1].versions if history.started else {},
            "artifacts": done.artifacts if done else {},
            "paths": done.paths if done else {},
            "summary": done.summary if done else {},
        }
    plan = run.plan()
    return {
        "format": 1,
        "run": run.name,
        "written": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "machine": {
            "system": platform.platform(),
            "processor": platform.processor() or platform.machine(),
            "cores": psutil.cpu_count(),
            "memory_bytes": psutil.virtual_memory().total,
            "python": platform.python_version(),
        },
        "config": msgspec.to_builtins(run.config()),
        "plan": msgspec.to_builtins(plan) if plan else None,
        "seconds": sum(stage["seconds"] or 0.0 for stage in stages.values()),
        "stages": stages,
        "results": results(run),
    }


def results(run: Run) -> dict[str, dict[str, Any]]:
    """`{"sft": {"arithmetic": {"accuracy", "low", "high", "n"}, "bpb": …}}` for base, mid, sft and rl."""
    table: dict[str, dict[str, Any]] = {model: {} for model in MODELS}
    chat, base = run.finished("chat_eval"), run.finished("base_eval")
    for model, tasks in (chat.summary.get("models", {}) if chat else {}).items():
        table[model] = dict(tasks)
    if base and "bpb" in base.summary:
        table["base"]["bpb"] = base.summary["bpb"]
    return table


def markdown(run: Run) -> str:
    """The whole report."""
    facts = manifest(run)
    parts = [f"# {run.name}", *_notes(run), *_headline(facts), *_results(facts), *_times(facts)]
    parts += [
        *_choices(run),
        *_data(facts),
        *_overlap(facts),
        *_tokenizer(run),
        *_training(run),
        *_samples(run),
        *_settings(facts),
    ]
    return "\n".join(parts).rstrip() + "\n"


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """A Markdown table; cells must hold no line breaks, and their bars are escaped."""
    clean = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    return ["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *("| " + " | ".join(r) + " |" for r in clean), ""]


def clock(seconds: float | None) -> str:
    """`41.3 s`, `2 min 05 s`, `3 h 02 min`."""
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60):02d} min"


def _spent(history: StageHistory) -> float | None:
    """Seconds over all attempts: each from its start to its last event."""
    return round(history.seconds, 3) if history.started else None


def _notes(run: Run) -> list[str]:
    notes = run.config().report.notes
    return ["", notes, ""] if notes else [""]


def _headline(facts: dict[str, Any]) -> list[str]:
    pretrain = facts["stages"]["pretrain"]["summary"]
    lines = []
    if "params" in pretrain:
        lines.append(
            f"A model of {pretrain['params'] / 1e6:.1f} million parameters "
            f"({facts['config']['model']['depth']} layers, {facts['config']['model']['dim']} wide), "
            f"made in {clock(facts['seconds'])} on {facts['machine']['cores']} cores ({facts['machine']['system']})."
        )
    return [*lines, ""]


def _results(facts: dict[str, Any]) -> list[str]:
    found = facts["results"]
    tasks = sorted({task for model in found.values() for task in model if task != "bpb"})
    lines = ["## What each step added", ""]
    if not tasks:
        return [*lines, "Not evaluated yet.", ""]
    rows = []
    for task in tasks:
        row = [task]
        for model in MODELS:
            cell = found[model].get(task)
            row.append(
                f"{100 * cell['accuracy']:.1f} % ({100 * cell['low']:.0f}–{100 * cell['high']:.0f}, n={cell['n']})"
                if cell
                else "–"
            )
        rows.append(row)
    if "bpb" in found["base"]:
        rows.append(["bits per byte", f"{found['base']['bpb']:.4f}", "–", "–", "–"])
    lines += ["Accuracy on held-out items with its 95 % interval and the number of items.", ""]
    return [*lines, *table(["task", *MODELS], rows)]


def _times(facts: dict[str, Any]) -> list[str]:
    rows = []
    for name, stage in facts["stages"].items():
        spent, planned = stage["seconds"], stage["predicted_s"]
        off = f"{100 * (spent / planned - 1):+.0f} %" if spent and planned else "–"
        rows.append([name, stage["state"], str(stage["attempts"]), clock(planned), clock(spent), off])
    rows.append(["total", "", "", clock(sum(s["predicted_s"] or 0 for s in facts["stages"].values())),
                 clock(facts["seconds"]), ""])  # fmt: skip
    return ["## Time, planned and spent", "", *table(["stage", "state", "attempts", "planned", "spent", "off"], rows)]


def _choices(run: Run) -> list[str]:
    lines = ["## Choices made by measuring", ""]
    rows = []
    for name in pipeline.NAMES:
        for choice in StageHistory(run, name).read_all().choices:
            figures = ", ".join(f"{key} {value:,.4g}" for key, value in choice.figures.items())
            rows.append([name, choice.what, choice.chosen, figures])
    return [*lines, *table(["stage", "what", "chosen", "figures"], rows)] if rows else []


def _data(facts: dict[str, Any]) -> list[str]:
    summary = facts["stages"]["dataset"]["summary"]
    if not summary:
        return []
    return ["## Data", "", *table(["what", "value"], [[key, value] for key, value in summary.items()])]


def _overlap(facts: dict[str, Any]) -> list[str]:
    summary = facts["stages"]["tokenizer"]["summary"]
    if not summary.get("overlap"):
        return []
    rows = [
        [task, str(cell["items"]), str(cell["n"]), str(cell["overlapping"]), str(cell["near"]), str(cell["short"])]
        for task, cell in summary["overlap"].items()
    ]
    lines = [
        "## Held-out items in the training text",
        "",
        f"{100 * summary['overlap_sampled']:.0f} % of the training text was looked at. An item overlaps when any of "
        "its n-grams of words is there, and is a near duplicate when 70 % of them are; too short ones are not judged.",
        "",
    ]
    return [*lines, *table(["task", "items", "n", "overlapping", "near duplicates", "too short"], rows)]


def _tokenizer(run: Run) -> list[str]:
    done = run.finished("tokenizer_eval")
    if done is None:
        return []
    rows = [
        [name, f"{cell['bytes']:,}", f"{cell['tokens']:,}", f"{cell['bytes_per_token']:.2f}", str(cell["exact"])]
        for name, cell in done.summary.get("texts", {}).items()
    ]
    return ["## Tokenizer", "", *table(["text", "bytes", "tokens", "bytes per token", "round trip exact"], rows)]


def _training(run: Run) -> list[str]:
    rows = []
    for name in pipeline.CHECKPOINT_FOLDERS:
        history = StageHistory(run, name).read_all()
        loss, speed = history.series.get("loss"), history.series.get("tok_s")
        if loss is None or not loss.values:
            continue
        middle = sorted(speed.values)[len(speed.values) // 2] if speed and speed.values else float("nan")
        rows.append([name, str(loss.steps[-1]), f"{loss.values[0]:.3f}", f"{loss.values[-1]:.3f}", f"{middle:,.0f}"])
    if not rows:
        return []
    return ["## Training", "", *table(["stage", "steps", "first loss", "last loss", "tok/s (median)"], rows)]


def _samples(run: Run) -> list[str]:
    lines = []
    for name in ("base_eval", "chat_eval"):
        samples = StageHistory(run, name).read_all().samples
        if samples:
            lines += [f"## Samples ({name})", ""]
            for sample in samples:
                lines += [f"**{sample.model or 'base'}**, “{sample.prompt}”", "", *_quote(sample.text), ""]
    return lines


def _quote(text: str) -> list[str]:
    return ["> " + line for line in (text.strip() or "(nothing)").splitlines()]


def _settings(facts: dict[str, Any]) -> list[str]:
    rows = [[f"{name}.{key}", str(value)] for name, values in facts["config"].items() for key, value in values.items()]
    return ["## Settings", "", *table(["setting", "value"], rows)]
