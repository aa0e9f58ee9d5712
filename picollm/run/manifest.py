"""The manifest of a run: everything that says how it was made and what came of it, from events and finished stages.

It is made anew each time from the whole run folder. A stage counts as its newest finished attempt left it: one that is
made again, or failed when it was, takes nothing from the report until it is done.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import time
from typing import Any

import msgspec

from picollm.run import config as settings
from picollm.run import estimate, event_file, failures, gpus, machine, pipeline
from picollm.run import events as ev
from picollm.run.errors import UserError
from picollm.run.folder import Run
from picollm.run.history import StageHistory, together

FORMAT = 1
MODELS = tuple(pipeline.MODEL_STAGES)
NOTES_FILE = "notes.md"


class Record:
    """A run as the report sees it: every stage's history up to its newest finished attempt, read once."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.config = run.config()
        self.plan = run.plan()
        self.origin = run.origin()
        self.statuses = {status.name: status for status in run.statuses() if status.name != "report"}
        self.finished = {name: run.finished(name) for name in self.statuses}
        self.histories: dict[str, StageHistory] = {}
        self.seconds: dict[str, float | None] = {}
        spans: list[tuple[float, float]] = []
        for name in self.statuses:
            done = run.finished_attempt(name)
            attempts = run.attempts(name)
            history = self.histories[name] = StageHistory(run, name, until=done).read_all()
            whole = history if done is None or done == attempts[-1] else StageHistory(run, name).read_all()
            self.seconds[name] = round(whole.seconds, 3) if whole.started else None
            spans += whole.spans
        self.wall_s = round(together(spans), 3)
        self.machine = _machine(run, self.histories)

    def summary(self, stage: str) -> dict[str, Any]:
        """What the stage's newest finished attempt says of itself; {} before there is one."""
        done = self.finished[stage]
        return done.summary if done else {}


def manifest(record: Record) -> dict[str, Any]:
    """Plain JSON values; the keys are described in docs/evaluation.md."""
    run, chat = record.run, record.summary("chat_eval")
    price = hourly(record)
    hour = price["dollars_per_hour"]
    stages = {name: _stage(record, name, hour) for name in record.statuses}
    predicted_s = estimate.eta_seconds(
        record.config, {name: stage["predicted_s"] or 0.0 for name, stage in stages.items()}
    )
    return finite(
        {
            "format": FORMAT,
            "run": run.name,
            "profile": record.config.run.profile,
            "origin": msgspec.to_builtins(record.origin) if record.origin else None,
            "written": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "command": command(run),
            "machine": record.machine,
            "versions": versions(record),
            "config": msgspec.to_builtins(record.config),
            "plan": msgspec.to_builtins(record.plan) if record.plan else None,
            "prompts": run.prompts(),
            "notes": notes(run),
            "data": record.summary("dataset"),
            "seconds": record.wall_s,
            "predicted_s": predicted_s,
            "cost": price | {"dollars": _dollars(record.wall_s, hour), "predicted": _dollars(predicted_s, hour)},
            "stages": stages,
            "results": results(record),
            "core": core(record),
            "chatcore": chat.get("chatcore", {}),
            "skipped": chat.get("skipped", {}),
            "failures": {
                f"{model}/{task}": str(file.relative_to(run.dir))
                for model, tasks in failures.kept(run).items()
                for task, file in tasks.items()
            },
        }
    )


def results(record: Record) -> dict[str, dict[str, Any]]:
    """`{"sft": {"arithmetic": {"accuracy", "low", "high", "n"}, "bpb": …}}` for base, mid, sft and rl."""
    table: dict[str, dict[str, Any]] = {model: {} for model in MODELS}
    for model, tasks in record.summary("chat_eval").get("models", {}).items():
        table[model] = dict(tasks)
    base = record.summary("base_eval")
    table["base"] |= {key: base[key] for key in ("bpb", "core") if key in base}
    return table


def core(record: Record) -> dict[str, Any]:
    """CORE of the base model: {core, low, high, n, tasks, complete, items, baselines}, and each task's reading."""
    base = record.summary("base_eval")
    if base.get("core") is None:
        return {}
    found = {"core": base["core"]}
    found |= {key.removeprefix("core_"): value for key, value in base.items() if key.startswith("core_")}
    readings = {event.name: event for event in record.histories["base_eval"].evals}
    cells = {name: {"n": event.n, **event.values} for name, event in readings.items() if name.startswith("core/")}
    return found | {"cells": {name.removeprefix("core/"): cell for name, cell in cells.items()}}


def notes(run: Run) -> str:
    """The person's own words: `report.notes`, then the run folder's notes.md."""
    try:
        written = (run.dir / NOTES_FILE).read_text(encoding="utf-8", errors="replace")
    except OSError:
        written = ""
    return "\n\n".join(part.strip() for part in (run.wishes().report.notes, written) if part.strip())


def command(run: Run) -> str:
    """What makes the run again: its profile, and every setting that differs from it."""
    wishes = settings.flat(run.wishes())
    profile = wishes["run.profile"]
    try:
        base = settings.flat(settings.load(profile, environ={}))
        start = f"picollm run --profile {profile}"
    except UserError:  # a profile of somebody's own file
        base, start = settings.flat(settings.load(environ={})), "picollm run"
    differing = {key: value for key, value in wishes.items() if value != base[key] and key != "run.profile"}
    return " ".join([start, *(settings.as_set(key, value) for key, value in differing.items())])


def versions(record: Record) -> dict[str, str]:
    """Of Python and the packages, as the newest attempts had them."""
    found = {"picollm-tui": importlib.metadata.version("picollm-tui")}
    for started in sorted((h.started[-1] for h in record.histories.values() if h.started), key=lambda one: one.time):
        found |= started.versions
    return found


def hourly(record: Record) -> dict[str, Any]:
    """Dollars per hour of what the run used, and where the price is from; null where none is known.

    GPUs are those that its ranks used, at `report.price` or a typical price of their kind.
    """
    own, found = record.config.report.price, record.machine["gpus"]
    ranks = max((h.started[-1].world for h in record.histories.values() if h.started), default=1)
    if not found or record.config.machine.device == "cpu":
        source = "report.price" if own else "no price is known of this machine; set report.price"
        return {"dollars_per_hour": own or None, "source": source}
    if own:
        return {"dollars_per_hour": own * ranks, "source": f"report.price × {ranks} GPUs"}
    kind = gpus.named(found[0]["name"], found[0]["memory_total"])
    if kind is None:
        return {"dollars_per_hour": None, "source": f"no price is known of {found[0]['name']}; set report.price"}
    price = gpus.GPUS[kind].price
    return {"dollars_per_hour": price * ranks, "source": f"a typical price of {kind}, ${price} × {ranks} GPUs"}


def finite(value: Any) -> Any:
    """The same with null for every number that JSON has no word for."""
    match value:
        case float():
            return value if math.isfinite(value) else None
        case dict():
            return {str(key): finite(item) for key, item in value.items()}
        case list() | tuple():
            return [finite(item) for item in value]
        case _:
            return value


def _stage(record: Record, name: str, per_hour: float | None) -> dict[str, Any]:
    done, history, seconds = record.finished[name], record.histories[name], record.seconds[name]
    started = history.started[-1] if history.started else None
    predicted = started.predicted_s if started else None
    readings = {}
    for event in history.evals:
        readings[event.name] = {"step": event.step, "n": event.n, **event.values}
    return {
        "state": record.statuses[name].state,
        "attempts": len(record.run.attempts(name)),
        "seconds": seconds,
        "predicted_s": predicted,
        "dollars": _dollars(seconds, per_hour),
        "predicted_dollars": _dollars(predicted, per_hour),
        "ranks": started.world if started else None,
        "fingerprint": started.fingerprint if started else None,
        "inputs": started.inputs if started else {},
        "versions": started.versions if started else {},
        "machine": started.machine if started else {},
        "artifacts": done.artifacts if done else {},
        "paths": done.paths if done else {},
        "summary": done.summary if done else {},
        "readings": readings,
        "warnings": list(dict.fromkeys(history.warnings)),
    }


def _dollars(seconds: float | None, per_hour: float | None) -> float | None:
    return seconds * per_hour / 3600 if seconds and per_hour else None


def _machine(run: Run, histories: dict[str, StageHistory]) -> dict[str, Any]:
    """The machine of the first training stage that says where it worked, `recorded`; else this one.

    What the run's readings say of it comes along: memory and GPU memory are the highest of them.
    """
    said = [started.machine for name in pipeline.CHECKPOINT_FOLDERS for started in reversed(histories[name].started)]
    trained = next((one for one in said if one), None)
    facts = trained or machine.described()
    readings = [event for event in event_file.read_events(run.machine_file) if isinstance(event, ev.Machine)]
    cards: list[dict[str, Any]] = []
    for index, gpu in enumerate(facts["gpus"] if trained or not readings else readings[-1].gpus):
        over = [reading.gpus[index] for reading in readings if index < len(reading.gpus)]
        over = [record for record in over if record.get("name") == gpu.get("name")]
        cards.append(
            {
                "name": str(gpu.get("name", "unknown")),
                "memory_total": int(gpu.get("memory_total", 0)),
                "memory_used": max((int(record.get("memory_used", 0)) for record in over), default=None),
                "utilisation": _mean([record["utilisation"] for record in over if "utilisation" in record]),
            }
        )
    return facts | {
        "recorded": trained is not None,
        "memory_used": max((reading.memory_used for reading in readings), default=None),
        "cpu": _mean([reading.cpu for reading in readings]),
        "gpus": cards,
    }


def _mean(values: list[float]) -> float | None:
    return round(sum(values) / len(values), 1) if values else None


def as_json(facts: dict[str, Any]) -> str:
    return json.dumps(facts, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
