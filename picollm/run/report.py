"""The report, assembled from events and evaluation files, never from printed text.

It is made anew each time from the whole run folder (`manifest.Record`), so running one stage again updates its part and
loses no other.
"""

from __future__ import annotations

import shlex
from typing import Any

from picollm.run import failures, measures, report_html
from picollm.run import manifest as facts_of
from picollm.run import report_training as training
from picollm.run.curves import number
from picollm.run.folder import Run
from picollm.run.manifest import MODELS, Record
from picollm.run.report_blocks import Block, Command, Heading, Notes, Said, Table, Text, markdown

MOST_WARNINGS = 30


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
        *training.data(facts),
        *training.mixtures(facts),
        *training.overlap(facts),
        *training.tokenizer(record),
        *training.training(record, facts),
        *training.samples(record),
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
    if record.origin:
        origin = record.origin
        found.append(Text(f"Everything before {origin.stage} was made by run {origin.run} and taken over."))
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
    if facts["core"]:
        rows.append(["CORE", _core(facts["core"], "core"), "–", "–", "–"])
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
    return [*lines, *_core_tasks(facts["core"])]


def _core_tasks(core: dict[str, Any]) -> list[Block]:
    """What CORE is the mean of."""
    if not core:
        return []
    whole = "" if core.get("complete", True) and not core.get("items") else " It is not the whole metric: "
    if whole:
        whole += f"{core['tasks']} tasks, {core['items'] or 'all'} items of each at most."
    rows = [
        [task, _accuracy(cell), f"{100 * cell['baseline']:.1f} %", f"{cell['centered']:.3f}"]
        for task, cell in core["cells"].items()
    ]
    return [
        Heading("CORE by task", 3),
        Text(f"Centred scores are (accuracy - baseline) / (1 - baseline); baselines: {core['baselines']}.{whole}"),
        Table(["task", "accuracy", "baseline", "centred"], rows),
    ]


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
        Command(f"picollm report --run {record.run.name} --failures {shlex.quote(f'{last}/{min(counts[last])}')}"),
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
    total = ["total", "", "", clock(facts["predicted_s"]), clock(facts["seconds"]), ""]
    rows.append(total + ([dollars(cost["predicted"]), dollars(cost["dollars"])] if priced else []))
    head = ["stage", "state", "attempts", "planned", "spent", "off", *(["planned $", "spent $"] if priced else [])]
    rate = f"Cost at {dollars(cost['dollars_per_hour'])} per hour: {cost['source']}." if priced else ""
    return [
        Heading("Time and cost, planned and spent"),
        Table(head, rows),
        Text((rate or f"Cost: {cost['source']}.") + " In the total, what was at work at the same time counts once."),
    ]


def _environment(record: Record, facts: dict[str, Any]) -> list[Block]:
    machine = facts["machine"]
    rows = [
        [
            "system",
            machine["system"] + ("" if machine["recorded"] else " (where this was written; training did not say)"),
        ],
        ["processor", f"{machine['processor']}, {machine['cores']} cores"],
        ["memory", _bytes(machine["memory_bytes"])],
    ]
    if machine["memory_used"] is not None:
        rows.append(["in use while it ran", f"{_bytes(machine['memory_used'])} at most, CPU {machine['cpu']} % (mean)"])
    for gpu in machine["gpus"]:
        used = "–" if gpu["memory_used"] is None else _bytes(gpu["memory_used"])
        used += f" of {_bytes(gpu['memory_total'])} at most"
        rows.append(["GPU", f"{gpu['name']}, {used}, {_busy(gpu['utilisation'])}"])
    where = _hardware(machine)
    elsewhere = {name: _hardware(stage["machine"]) for name, stage in facts["stages"].items() if stage["machine"]}
    rows += [[f"{name} ran on", found] for name, found in elsewhere.items() if found != where]
    rows += [[f"version of {name}", text] for name, text in facts["versions"].items()]
    ranks = {name: stage["ranks"] for name, stage in facts["stages"].items() if (stage["ranks"] or 1) > 1}
    if ranks:
        rows.append(["ranks", ", ".join(f"{name} {count}" for name, count in ranks.items())])
    found: list[Block] = [Heading("Environment"), Table(["what", "found"], rows)]
    checks = record.histories["doctor"].checks
    if checks:
        found.append(Table(["check", "state", "found"], [[check.name, check.status, check.found] for check in checks]))
    return found


def _hardware(machine: dict[str, Any]) -> str:
    return ", ".join([machine["processor"], f"{machine['cores']} cores", *(gpu["name"] for gpu in machine["gpus"])])


def _busy(percent: float | None) -> str:
    return "how busy is not known" if percent is None else f"{number(percent)} % busy (mean)"


def _choices(record: Record) -> list[Block]:
    rows = []
    for name, history in record.histories.items():
        for choice in history.choices:
            figures = ", ".join(f"{key} {number(value)}" for key, value in choice.figures.items())
            rows.append([name, choice.what, choice.chosen, figures])
    return [Heading("Choices made by measuring"), Table(["stage", "what", "chosen", "figures"], rows)] if rows else []


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
