"""Which of two answers was better, as people judged: `votes.jsonl` in the run folder, a line for each judgement.

A line is appended in one write and never changed; a torn or foreign one is passed over.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable

import msgspec

from picollm.run.errors import UserError
from picollm.run.folder import Run
from picollm.run.structs import complete

RUBRIC: tuple[tuple[str, str], ...] = (
    ("follows", "does what was asked"),
    ("correct", "what it says is true"),
    ("clear", "reads well, ends properly"),
)
"""What each answer is given 1 to 5 points for, or none (0)."""
WINNERS = ("a", "b", "tie", "neither")
MOST = 5


class Judged(msgspec.Struct, kw_only=True):
    """One of the two: who answered (`demo/sft@310`, `host/model`), what, and its points by the rubric."""

    model: str
    answer: str
    scores: dict[str, int] = {}


@complete
class Vote(msgspec.Struct, kw_only=True):
    """`time` in seconds since 1970; `sampling` as it was asked for, the same for both."""

    prompt: str
    a: Judged
    b: Judged
    winner: str
    note: str = ""
    sampling: dict[str, float | int | str] = {}
    time: float = 0.0


class Tally(msgspec.Struct, kw_only=True):
    """What became of one pair of models; `first` is the one whose name sorts first."""

    first: str
    second: str
    won: int = 0
    lost: int = 0
    tied: int = 0
    neither: int = 0
    points: dict[str, tuple[float | None, float | None]] = {}


def add(run: Run, vote: Vote) -> None:
    """Keep a judgement. Raises `UserError` when the disk refuses."""
    if vote.winner not in WINNERS:
        raise UserError(f"vote '{vote.winner}': expected one of {', '.join(WINNERS)}")
    line = msgspec.json.encode(msgspec.structs.replace(vote, time=vote.time or time.time())) + b"\n"
    file = run.dir / "votes.jsonl"
    try:
        with open(file, "ab+") as out:
            size = out.seek(0, os.SEEK_END)
            if size:
                out.seek(size - 1)
                if out.read(1) != b"\n":  # a torn line stays alone
                    line = b"\n" + line
            out.write(line)
            out.flush()
            os.fsync(out.fileno())
    except OSError as error:
        raise UserError(f"{file} cannot be written: {error.strerror}") from None


def read(run: Run) -> list[Vote]:
    """All judgements, oldest first. Raises `UserError` when there is a file that cannot be read."""
    file = run.dir / "votes.jsonl"
    try:
        lines = file.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from None
    found = []
    for line in lines:
        try:
            found.append(msgspec.json.decode(line, type=Vote))
        except msgspec.DecodeError:
            continue
    return [vote for vote in found if vote.winner in WINNERS]


def tally(votes: Iterable[Vote]) -> list[Tally]:
    """One row for each pair of models, those judged most often first."""
    pairs: dict[tuple[str, str], list[Vote]] = {}
    for vote in votes:
        pairs.setdefault((min(vote.a.model, vote.b.model), max(vote.a.model, vote.b.model)), []).append(vote)
    found = [_tally(*pair, judged) for pair, judged in pairs.items()]
    return sorted(found, key=lambda row: -(row.won + row.lost + row.tied + row.neither))


def _tally(first: str, second: str, judged: list[Vote]) -> Tally:
    row = Tally(first=first, second=second)
    for vote in judged:
        ours = "a" if vote.a.model == first else "b"
        row.tied += vote.winner == "tie"
        row.neither += vote.winner == "neither"
        row.won += vote.winner == ours
        row.lost += vote.winner in ("a", "b") and vote.winner != ours
    sides = [(vote.a, vote.b) if vote.a.model == first else (vote.b, vote.a) for vote in judged]
    for name, _ in RUBRIC:
        means = tuple(_mean([side[n].scores.get(name, 0) for side in sides]) for n in (0, 1))
        if any(mean is not None for mean in means):
            row.points[name] = (means[0], means[1])
    return row


def _mean(points: list[int]) -> float | None:
    given = [point for point in points if point > 0]
    return sum(given) / len(given) if given else None
