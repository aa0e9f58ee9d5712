"""Wrong answers of the chat evaluation, kept for reading: `eval/failures/<model>/<task>.jsonl`.

A row is {index, topic, prompt, expected, got}; index counts the held-out items of the task.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from picollm.run import pipeline
from picollm.run.errors import UserError
from picollm.run.folder import Run, write_atomic

FOLDER = "failures"
UNFINISHED = "failures.partial"
"""Where an evaluation collects them until it is done."""
MOST_KEPT = 1000
"""Wrong answers kept of one task and model."""
LONGEST_NAME = 150


def write(run: Run, model: str, task: str, rows: list[dict[str, Any]], folder: str = FOLDER) -> Path:
    """Replace what is kept of a model and task; `folder`: or collected, see `finish`."""
    name = quote(task, safe=",=")
    if len(name) > LONGEST_NAME:  # a file system has its limit
        name = f"{name[:LONGEST_NAME]}-{hashlib.sha256(task.encode()).hexdigest()[:8]}"
    file = run.dir / "eval" / folder / model / f"{name}.jsonl"
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_atomic(file, lines.encode(errors="replace"))
    return file


def start_over(run: Run) -> None:
    """Forget what an evaluation that did not end had collected."""
    shutil.rmtree(run.dir / "eval" / UNFINISHED, ignore_errors=True)


def finish(run: Run) -> None:
    """What was collected takes the place of what was kept. Again, after a crash, it changes nothing."""
    collected = run.dir / "eval" / UNFINISHED
    if collected.exists():
        shutil.rmtree(run.dir / "eval" / FOLDER, ignore_errors=True)
        os.rename(collected, run.dir / "eval" / FOLDER)


def kept(run: Run) -> dict[str, dict[str, Path]]:
    """The files by model, in the order of the pipeline, and task."""
    found: dict[str, dict[str, Path]] = {}
    for model in pipeline.MODEL_STAGES:
        for file in sorted((run.dir / "eval" / FOLDER / model).glob("*.jsonl")):
            found.setdefault(model, {})[unquote(file.stem)] = file
    return found


def read(file: Path) -> list[dict[str, Any]]:
    """The rows of one of the `kept` files. Raises `UserError` where it cannot be read."""
    try:
        return [json.loads(line) for line in file.read_bytes().split(b"\n") if line]
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({error}); make chat_eval again") from None


def find(run: Run, wanted: str) -> tuple[str, Path]:
    """`sft/arithmetic:digits=3` and its file: the task by its name, or by how it begins where only one does so.

    Raises `UserError` naming what there is.
    """
    there = kept(run)
    model, _, start = wanted.partition("/")
    tasks = there.get(model, {})
    names = [task for task in tasks if task == start] or [task for task in tasks if task.startswith(start)]
    if len(names) != 1:
        listed = ", ".join(f"{model}/{task}" for model, tasks in there.items() for task in tasks)
        raise UserError(f"'{wanted}' names {len(names)} of the lists of wrong answers; there are: {listed or 'none'}")
    return f"{model}/{names[0]}", tasks[names[0]]
