"""What a stage process says about its end."""

from __future__ import annotations

import pytest

from picollm.run import events as ev
from picollm.run import stage
from picollm.run.errors import StopRequested
from picollm.run.folder import Run
from tests.run.conftest import lines, started, write_attempt


def context(run: Run, monkeypatch: pytest.MonkeyPatch, rank: int) -> stage.StageContext:
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(stage, "OTHER_RANKS_WAIT_S", 0.0)
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
    told = [event for event in ev.read_events(run.events_file("pretrain", 1)) if isinstance(event, ev.Progress)]
    assert told[0].step == 0 and told[0].steps == 5 * stage.WATCH_EVERY


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_rank_that_failed_first_has_the_word(
    run: Run, monkeypatch: pytest.MonkeyPatch, order: tuple[int, int]
) -> None:
    write_attempt(run, "pretrain", lines(started(run, "pretrain")))
    fails(run, monkeypatch, order[0], "the cause")
    fails(run, monkeypatch, order[1], "connection closed by peer")
    said = [event for event in ev.read_events(run.events_file("pretrain", 1)) if isinstance(event, ev.Failed)]
    assert [event.error for event in said] == ["the cause"]
    assert "the cause" in run.status("pretrain").reason
