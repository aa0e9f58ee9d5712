"""Judgements are kept line by line, survive torn lines, and are counted by pair."""

from __future__ import annotations

import pytest

from picollm.run import votes
from picollm.run.errors import UserError
from picollm.run.folder import Run
from picollm.run.votes import Judged, Vote


def vote(a: str, b: str, winner: str, **scores: int) -> Vote:
    return Vote(prompt="Hi", a=Judged(model=a, answer="1", scores=scores), b=Judged(model=b, answer="2"), winner=winner)


def test_a_pair_is_counted_whichever_side_it_was_on(run: Run) -> None:
    assert votes.read(run) == [] == votes.tally([])
    for each in (vote("r/sft", "r/base", "a", clear=4), vote("r/base", "r/sft", "a"), vote("r/sft", "r/base", "a"),
                 vote("r/base", "r/sft", "tie", clear=2), vote("r/rl", "r/sft", "neither")):  # fmt: skip
        votes.add(run, each)
    first, second = votes.tally(votes.read(run))
    assert (first.first, first.second) == ("r/base", "r/sft")
    assert (first.won, first.lost, first.tied, first.neither) == (1, 2, 1, 0)
    assert first.points == {"clear": (2.0, 4.0)}
    assert (second.won, second.lost, second.neither) == (0, 0, 1)
    assert all(each.time > 1e9 for each in votes.read(run))


def test_a_torn_line_costs_that_line_only(run: Run) -> None:
    votes.add(run, vote("x", "y", "a"))
    file = run.dir / "votes.jsonl"
    file.write_bytes(file.read_bytes() + b'{"prompt":"half')
    votes.add(run, vote("x", "y", "b"))
    assert [each.winner for each in votes.read(run)] == ["a", "b"]
    with pytest.raises(UserError, match="expected one of a, b, tie, neither"):
        votes.add(run, vote("x", "y", "maybe"))


def test_a_disk_that_refuses_is_one_line(run: Run) -> None:
    (run.dir / "votes.jsonl").mkdir()
    for act in (lambda: votes.add(run, vote("x", "y", "a")), lambda: votes.read(run)):
        with pytest.raises(UserError, match=r"votes\.jsonl cannot be"):
            act()
