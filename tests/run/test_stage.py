"""What a stage process says about its end."""

from __future__ import annotations

import pytest

from picollm.run import event_file, failure, stage
from picollm.run import events as ev
from picollm.run.errors import StopRequested
from picollm.run.folder import Run


def context(run: Run, monkeypatch: pytest.MonkeyPatch, rank: int) -> stage.StageContext:
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", "2")
    return stage.StageContext(run, "pretrain", 1)


def fails(run: Run, monkeypatch: pytest.MonkeyPatch, rank: int, text: str) -> None:
    ctx = context(run, monkeypatch, rank)
    assert stage._fail(ctx, "pretrain", 1, text, 1) == 1
    ctx.close()


def test_work_without_steps_shows_life_and_hears_a_stop(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    ctx = context(run, monkeypatch, 0)
    items = stage.watched(ctx, range(5 * stage.WATCH_EVERY), 5 * stage.WATCH_EVERY)
    assert next(items) == 0
    run.request_stop("pretrain")
    with pytest.raises(StopRequested):
        list(items)
    ctx.close()
    told = [event for event in event_file.read_events(run.events_file("pretrain", 1)) if isinstance(event, ev.Progress)]
    assert told[0].step == 0 and told[0].steps == 5 * stage.WATCH_EVERY


@pytest.mark.parametrize("rank", [0, 1])
def test_one_of_several_ranks_leaves_a_word_and_no_event(run: Run, monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    """Which rank's word counts is only known when all of them have ended."""
    fails(run, monkeypatch, rank, "the cause")
    assert [(word.rank, word.world, word.error) for word in failure.words(run, "pretrain", 1)] == [
        (rank, 2, "the cause")
    ]
    assert not any(isinstance(event, ev.Failed) for event in event_file.read_events(run.events_file("pretrain", 1)))
