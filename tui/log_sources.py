"""Everything in a run that is a log: attempts of every stage, their other machines and ranks, the conductor, jobs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from picollm.run import pipeline

_ATTEMPT = re.compile(r"attempt-(\d+)\.(?:(console)\.log|node-(\d+)\.console\.log|rank-(\d+)\.json)")
_RANK = re.compile(r"attempt-(\d+)\.(?:node-(\d+)\.)?ranks")


class Source(NamedTuple):
    """`owner` is a stage's name, "conductor" or a job's; `title` is what a person reads."""

    path: Path
    owner: str
    title: str
    size: int
    changed: float


def find(run_dir: Path, stage: str) -> list[Source]:
    """All logs there are: those of `stage` first, its newest attempt in front, then the conductor's, jobs', others'."""
    own: list[Source] = []
    others: list[Source] = []
    for name in pipeline.NAMES:
        (own if name == stage else others).extend(_of_stage(run_dir / "stages" / name, name))
    shared = _one(run_dir / "conductor" / "console.log", "conductor", "Conductor")
    for path in sorted((run_dir / "jobs").glob("*/console.log")):
        shared += _one(path, path.parent.name, f"Job {path.parent.name}")
    return own + shared + others


def newest(sources: list[Source], stage: str) -> Source | None:
    """What a stage shows unless something else is chosen."""
    return next((source for source in sources if source.owner == stage), None)


def _of_stage(folder: Path, name: str) -> list[Source]:
    title = pipeline.stage(name).title
    found: list[tuple[tuple[int, int, int], Source]] = []
    try:
        paths = list(folder.iterdir())
    except OSError:
        return []
    for path in paths:
        if (match := _ATTEMPT.fullmatch(path.name)) is not None:
            attempt, console, node, rank = match.groups()
            words = f"{title}, attempt {int(attempt)}"
            if node is not None:
                words += f", machine {int(node)}"
            elif rank is not None:
                words += f", why rank {int(rank)} failed"
            kind = 0 if console else 1 if node is not None else 2
            place = (-int(attempt), kind, int(node or rank or 0))
            found += [(place, source) for source in _one(path, name, words)]
        elif (match := _RANK.fullmatch(path.name)) is not None:
            found += _of_ranks(path, name, title, int(match[1]), int(match[2] or 0))
    return [source for _, source in sorted(found, key=lambda pair: pair[0])]


def _of_ranks(
    folder: Path, name: str, title: str, attempt: int, node: int
) -> list[tuple[tuple[int, int, int], Source]]:
    """torchrun's own files: `<anything>/attempt_0/<rank>/stdout.log` and `stderr.log`."""
    found = []
    for path in folder.glob("*/attempt_*/*/std*.log"):
        if path.parent.name.isdigit():
            rank, what = int(path.parent.name), "errors" if path.stem == "stderr" else "output"
            where = f"machine {node}, rank {rank} there," if node else f"rank {rank}"
            for source in _one(path, name, f"{title}, attempt {attempt}, {where} {what}"):
                if source.size:
                    found.append(((-attempt, 3 + 2 * node + (path.stem == "stderr"), rank), source))
    return found


def _one(path: Path, owner: str, title: str) -> list[Source]:
    try:
        found = path.stat()
    except OSError:
        return []
    return [Source(path, owner, title, found.st_size, found.st_mtime)]
