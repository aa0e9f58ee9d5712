"""The report, assembled from events and evaluation files, never from printed text.

It is made anew each time from the whole run folder (`manifest.Record`), so running one stage again updates its part and
loses no other.
"""

from __future__ import annotations

from typing import Any

from picollm.run import failures, measures, pipeline, report_html
from picollm.run import manifest as facts_of
from picollm.run.curves import number
from picollm.run.folder import Run
from picollm.run.manifest import MODELS, Record
from picollm.run.report_blocks import Block, Chart, Command, Heading, Notes, Said, Table, Text, markdown

LONGEST_LIST = 12
"""Entries of a nested table that are shown; the manifest has them all."""
MOST_WARNINGS = 30
MOST_SAMPLES = 6
QUIET = ("low", "high")
"""Ends of an interval: not curves of their own."""
FIRST_CURVES = ("loss", "reward", "length", "entropy", "nll", "lr")


def text_of(run: Run) -> str:
    """report.md."""
    return markdown(blocks(Record(run)))


def page_of(run: Run) -> str:
    """The same as one HTML page."""
    return report_html.page(f"{run.name}: report", blocks(Record(run)))


def blocks(record: Record, facts: dict[str, Any] | None = None) -> list[Block]:
    """The whole report; `facts`: its manifest, where that was made already."""
    facts = facts or facts_of.manifest(record)
    return [
        *_headline(record, facts),
        *_results(facts),
        *_wrong(record),
        *_side_by_side(record),
        *_times(facts),
        *_environment(record, facts),
        *_choices(record),
        *_data(facts),
        *_mixtures(facts),
        *_overlap(facts),
        *_tokenizer(record),
        *_training(record, facts),
        *_samples(record),
        *_warnings(facts),
        *_again(facts),
    ]


def clock(seconds: float | None) -> str:
    """`41.3 s`, `2 min 05 s`, `3 h 02 min`."""
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60):02d} min"


def dollars(amount: float | None) -> str:
    return "–" if amount is None else f"${amount:,.2f}" if amount >= 0.01 or not amount else "< $0.01"


def _headline(record: Record, facts: dict[str, Any]) -> list[Block]:
    found: list[Block] = [Heading(record.run.name, 1)]
    if facts["notes"]:
        found.append(Notes(facts["notes"]))
    params = record.summary("pretrain").get("params")
    if params:
        model, machine = facts["config"]["model"], facts["machine"]
        cards = ", ".join(gpu["name"] for gpu in machine["gpus"])
        where = f"{machine['cores']} cores" + (f" and {cards}" if cards else "")
        cost = facts["cost"]["dollars"]
        found.append(
            Text(
                f"A model of {params / 1e6:.1f} million parameters ({model['depth']} layers, {model['dim']} wide), "
                f"made in {clock(facts['seconds'])} on {where}" + (f" for about {dollars(cost)}" if cost else "") + "."
            )
        )
    return found


def _results(facts: dict[str, Any]) -> list[Block]:
    found, base = facts["results"], facts["results"]["base"]
    tasks = sorted({task for model in found.values() for task, cell in model.items() if _is_accuracy(cell)})
    lines: list[Block] = [Heading("What each step added")]
    rows = [[task, *(_accuracy(found[model].get(task)) for model in MODELS)] for task in tasks]
    if facts["chatcore"]:
        rows.append(["ChatCORE", *(_core(facts["chatcore"].get(model), "chatcore") for model in MODELS)])
    if isinstance(base.get("core"), dict):
        rows.append(["CORE", _core(base["core"], "core"), "–", "–", "–"])
    elif "core" in base:
        rows.append(["CORE", number(base["core"]), "–", "–", "–"])
    if "bpb" in base:
        rows.append(["bits per byte", f"{base['bpb']:.4f}", "–", "–", "–"])
    if not rows:
        return [*lines, Text("Not evaluated yet.")]
    lines.append(
        Text(
            "Accuracy on held-out items with its 95 % interval and the number of items. ChatCORE is the mean over the "
            "tasks of (accuracy - baseline) / (1 - baseline): 0 is guessing, 1 is perfect."
        )
    )
    lines.append(Table(["task", *MODELS], rows))
    lines += [Text(f"{task} was left out: {reason}.") for task, reason in facts["skipped"].items()]
    return lines


def _is_accuracy(cell: Any) -> bool:
    return isinstance(cell, dict) and "accuracy" in cell


def _accuracy(cell: dict[str, Any] | None) -> str:
    if cell is None:
        return "–"
    return f"{100 * cell['accuracy']:.1f} % ({100 * cell['low']:.0f}–{100 * cell['high']:.0f}, n={cell['n']:,})"


def _core(cell: dict[str, Any] | None, key: str) -> str:
    if not cell or cell.get(key) is None:
        return "–"
    within = f"{cell['low']:.3f}–{cell['high']:.3f}, " if "low" in cell and "high" in cell else ""
    count = cell.get("n", cell.get("tasks"))
    return f"{cell[key]:.4f} ({within}n={count:,})" if isinstance(count, int) else f"{cell[key]:.4f}"


def _wrong(record: Record) -> list[Block]:
    """How many wrong answers are kept, and the first of each task by the last model."""
    kept = failures.kept(record.run)
    if not kept:
        return []
    counts = {model: {task: failures.read(file) for task, file in tasks.items()} for model, tasks in kept.items()}
    tasks = sorted({task for model in counts.values() for task in model})
    rows = [[task, *(str(len(counts[model][task])) if task in counts.get(model, {}) else "–" for model in MODELS)]
            for task in tasks]  # fmt: skip
    last = next(model for model in reversed(MODELS) if model in counts)
    found: list[Block] = [
        Heading("Wrong answers"),
        Text(f"How many are kept (at most {failures.MOST_KEPT:,} of a task), and one of {last} from each task."),
        Table(["task", *MODELS], rows),
        Command(f"picollm report --run {record.run.name} --failures {last}/{tasks[0]}"),
    ]
    examples = [[task, rows[0]["prompt"], rows[0]["expected"], rows[0]["got"] or "(nothing)"]
                for task, rows in sorted(counts[last].items()) if rows]  # fmt: skip
    if examples:
        found.append(Table(["task", "asked", "right", f"{last} said"], [[_short(c) for c in row] for row in examples]))
    return found


def _short(text: str, most: int = 160) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 1] + "…"


def _side_by_side(record: Record) -> list[Block]:
    """The comparison prompts, each with what every model says to it; measured here, by one rule for all."""
    answers: dict[str, dict[str, Any]] = {}
    for sample in record.histories["chat_eval"].samples:
        answers.setdefault(sample.prompt, {})[sample.model] = sample
    if not answers:
        return []
    measured = {
        (prompt, model): measures.measure(sample.text, sample.details.get("finish_reason"))
        for prompt, by_model in answers.items()
        for model, sample in by_model.items()
    }
    rows = []
    for model in MODELS:
        own = [found for (_, name), found in measured.items() if name == model]
        if own:
            rows.append(
                [
                    model,
                    str(len(own)),
                    f"{sum(found.words for found in own) / len(own):.0f}",
                    f"{100 * sum(found.repetition for found in own) / len(own):.0f} %",
                    f"{sum(found.ended for found in own)} of {len(own)}",
                ]
            )
    found: list[Block] = [
        Heading("Side by side"),
        Text(
            "The same prompts to every model, greedily. Repetition is the share of three-word runs that occurred "
            "before; an answer ended properly when the model ended its turn itself."
        ),
        Table(["model", "answers", "words (mean)", "repetition (mean)", "ended properly"], rows),
    ]
    for prompt, by_model in answers.items():
        found.append(Heading(prompt, 3))
        for model in MODELS:
            if model in by_model:
                one = measured[prompt, model]
                ended = "ended properly" if one.ended else "cut off"
                about = f"{one.words} words, repetition {100 * one.repetition:.0f} %, {ended}"
                found.append(Said(model, by_model[model].text, about))
    return found


def _times(facts: dict[str, Any]) -> list[Block]:
    cost = facts["cost"]
    priced = cost["dollars_per_hour"] is not None
    rows = []
    for name, stage in facts["stages"].items():
        spent, planned = stage["seconds"], stage["predicted_s"]
        off = f"{100 * (spent / planned - 1):+.0f} %" if spent and planned else "–"
        row = [name, stage["state"], str(stage["attempts"]), clock(planned), clock(spent), off]
        rows.append(row + ([dollars(stage["predicted_dollars"]), dollars(stage["dollars"])] if priced else []))
    planned = sum(stage["predicted_s"] or 0 for stage in facts["stages"].values())
    total = ["total", "", "", clock(planned), clock(facts["seconds"]), ""]
    rows.append(total + ([dollars(cost["predicted"]), dollars(cost["dollars"])] if priced else []))
    head = ["stage", "state", "attempts", "planned", "spent", "off", *(["planned $", "spent $"] if priced else [])]
    rate = f"Cost at {dollars(cost['dollars_per_hour'])} per hour: {cost['source']}." if priced else ""
    return [
        Heading("Time and cost, planned and spent"),
        Table(head, rows),
        Text(rate or f"Cost: {cost['source']}."),
    ]


def _environment(record: Record, facts: dict[str, Any]) -> list[Block]:
    machine = facts["machine"]
    rows = [
        ["system", machine["system"]],
        ["processor", f"{machine['processor']}, {machine['cores']} cores"],
        ["memory", _bytes(machine["memory_bytes"])],
    ]
    if machine["memory_used"] is not None:
        rows.append(["in use while it ran", f"{_bytes(machine['memory_used'])} at most, CPU {machine['cpu']} % (mean)"])
    for gpu in machine["gpus"]:
        used = f"{_bytes(gpu['memory_used'])} of {_bytes(gpu['memory_total'])} at most"
        rows.append(["GPU", f"{gpu['name']}, {used}, {number(gpu['utilisation'] or 0)} % busy (mean)"])
    rows += [[f"version of {name}", text] for name, text in facts["versions"].items()]
    ranks = {name: stage["ranks"] for name, stage in facts["stages"].items() if (stage["ranks"] or 1) > 1}
    if ranks:
        rows.append(["ranks", ", ".join(f"{name} {count}" for name, count in ranks.items())])
    found: list[Block] = [Heading("Environment"), Table(["what", "found"], rows)]
    checks = record.histories["doctor"].checks
    if checks:
        found.append(Table(["check", "state", "found"], [[check.name, check.status, check.found] for check in checks]))
    return found


def _choices(record: Record) -> list[Block]:
    rows = []
    for name, history in record.histories.items():
        for choice in history.choices:
            figures = ", ".join(f"{key} {number(value)}" for key, value in choice.figures.items())
            rows.append([name, choice.what, choice.chosen, figures])
    return [Heading("Choices made by measuring"), Table(["stage", "what", "chosen", "figures"], rows)] if rows else []


def _data(facts: dict[str, Any]) -> list[Block]:
    rows = _flat(facts["data"])
    identity = facts["stages"]["identity"]["summary"]
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


def _mixtures(facts: dict[str, Any]) -> list[Block]:
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


def _overlap(facts: dict[str, Any]) -> list[Block]:
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


def _tokenizer(record: Record) -> list[Block]:
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


def _training(record: Record, facts: dict[str, Any]) -> list[Block]:
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
        shown = [key for key in read if key.rpartition("/")[2] not in QUIET]
        for key in shown:
            series = history.series[key]
            n = counts.get(key.rpartition("/")[0])
            readings.append([name, key, *_reading(series.steps[0], series.values[0]),
                             *_reading(series.steps[-1], series.values[-1]), f"{n:,}" if n else "–"])  # fmt: skip
        own = FIRST_CURVES if name == "rl" else FIRST_CURVES[:1]
        for key in [*(key for key in own if key in history.series), *shown]:
            series = history.series[key]
            if len(series.steps) > 1:
                curves.append(Chart(f"{name}: {key}", series.steps, series.values, _spike(facts, name, key)))
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


def _samples(record: Record) -> list[Block]:
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


def _warnings(facts: dict[str, Any]) -> list[Block]:
    rows = [[name, text] for name, stage in facts["stages"].items() for text in stage["warnings"]]
    if not rows:
        return []
    more = [Text(f"{len(rows) - MOST_WARNINGS} more are in run_manifest.json.")] if len(rows) > MOST_WARNINGS else []
    return [Heading("Warnings"), Table(["stage", "warning"], rows[:MOST_WARNINGS]), *more]


def _again(facts: dict[str, Any]) -> list[Block]:
    rows = [[f"{name}.{key}", str(value)] for name, values in facts["config"].items() for key, value in values.items()]
    return [
        Heading("To make it again"),
        Command(facts["command"]),
        Heading("Settings"),
        Table(["setting", "value"], rows),
    ]


def _bytes(count: float) -> str:
    return f"{count / 2**30:.1f} GiB"
