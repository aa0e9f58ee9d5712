"""Stages whose work can be used before it is done: what may start, and what becomes of it when they fail or stop."""

from __future__ import annotations

import os
import signal

import pytest

from picollm.data.waiting import Upstream
from picollm.run import conductor, event_file
from picollm.run import events as ev
from picollm.run.errors import UserError
from picollm.run.folder import Run
from picollm.run.stage import StageContext
from tests.run.conftest import lines, make_done, release, script, started, state, until, write_attempt
from tests.run.test_conductor import LONG, ask, ended

EARLY = ("dataset", "tokenizer", "tokenizer_eval", "pretrain")
TO_BASE_EVAL = (*EARLY, "base_eval")
GOES_ON = {"steps": 3, "ready": 3, "hold": True}


def ready(run: Run, name: str, attempt: int = 1) -> None:
    """Forge the word of a stage that it can be used."""
    run.ready_file(name, attempt).write_bytes(event_file.encode(ev.Ready(artifacts={"made": f"hash of {name}"}), 2))


def test_training_starts_on_what_is_there_and_nothing_is_stale_afterwards(run: Run) -> None:
    make_done(run, "doctor", "preflight")
    script(
        run,
        dataset={"steps": 3, "ready": 2, "hold": True},
        tokenizer={"steps": 3, "ready": 2, "rest": "dataset"},
        pretrain={"steps": 4, "rest": "tokenizer"},
    )
    ask(run, *TO_BASE_EVAL)
    until(lambda: run.status("pretrain").phase == "wait", seconds=60)
    assert state(run, "dataset") == state(run, "tokenizer") == "running" and state(run, "tokenizer_eval") == "done"
    assert run.status("dataset").usable and run.status("tokenizer").usable and not run.status("pretrain").usable
    release(run, "dataset")
    until(lambda: ended(run), seconds=60)
    statuses = {status.name: status for status in run.statuses()}
    assert {statuses[name].state for name in TO_BASE_EVAL} == {"done"}
    assert not any(status.usable for status in statuses.values())
    assert [len(run.attempts(name)) for name in TO_BASE_EVAL] == [1] * 5
    said = [event for event in event_file.read_events(run.events_file("dataset", 1)) if isinstance(event, ev.Ready)]
    assert said[0].artifacts == run.finished("dataset").artifacts


def test_what_only_needs_what_is_done_does_not_wait_for_the_rest(run: Run) -> None:
    make_done(run, "doctor", "preflight", "dataset")
    script(run, tokenizer=GOES_ON)
    ask(run, "tokenizer", "tokenizer_eval", "pretrain", "base_eval")
    until(lambda: run.status("base_eval").attempt and state(run, "base_eval") == "done", seconds=60)
    assert state(run, "tokenizer") == "running"
    assert {status.name: status.state for status in run.statuses()}["pretrain"] == "done"
    conductor.stop(run)
    until(lambda: ended(run), seconds=60)
    assert {status.name: status.state for status in run.statuses()}["pretrain"] == "done"  # its hashes stay known
    request = conductor.plan_request(run, ["tokenizer", "tokenizer_eval", "pretrain"])
    assert request.redo == request.fresh == []


def test_a_stage_that_cannot_start_early_waits(run: Run) -> None:
    make_done(run, "doctor", "preflight", "dataset", "tokenizer", "tokenizer_eval")
    script(run, pretrain={"steps": 40, "sleep": 0.02, "ready": 2})
    ask(run, "pretrain", "base_eval")
    until(lambda: ended(run), seconds=60)
    evaluated, pretrained = event_file.head_events(run.events_file("base_eval", 1))[0], run.finished("pretrain")
    assert state(run, "base_eval") == "done" and pretrained and evaluated.time >= pretrained.time


@pytest.mark.slow
def test_stop_stops_both_and_resume_goes_on_with_both(run: Run) -> None:
    make_done(run, "doctor", "preflight")
    script(run, dataset=GOES_ON, tokenizer=LONG)
    ask(run, *EARLY)
    until(lambda: run.status("tokenizer").step)
    assert conductor.stop(run) == ["dataset", "tokenizer"]
    until(lambda: ended(run), seconds=60)
    assert state(run, "dataset") == state(run, "tokenizer") == "stopped"
    steps = int((run.dir / "tokenizer.saved").read_text())
    script(run, dataset={"steps": 3}, tokenizer={"steps": steps + 2})
    request = conductor.plan_request(run, list(EARLY))
    assert request.redo == request.fresh == []
    conductor.ask(run, request)
    until(lambda: ended(run), seconds=60)
    assert [state(run, name) for name in EARLY] == ["done"] * 4
    assert any(isinstance(event, ev.Resumed) for event in event_file.head_events(run.events_file("tokenizer", 2)))


def test_when_the_one_behind_fails_the_one_in_front_says_so_and_the_run_ends(run: Run) -> None:
    make_done(run, "doctor", "preflight")
    script(
        run,
        dataset={"steps": 3, "ready": 2, "hold": True, "last": {"error": "shard 7 is missing"}},
        tokenizer={"steps": 2, "rest": "dataset"},
    )
    ask(run, *EARLY)
    until(lambda: run.status("tokenizer").phase == "wait")
    release(run, "dataset")
    until(lambda: ended(run), seconds=60)
    assert state(run, "dataset") == "failed" and state(run, "pretrain") == "waiting"
    assert run.status("tokenizer").reason == "dataset ended without the rest: shard 7 is missing"


@pytest.mark.slow
def test_kill_9_of_the_one_behind(run: Run) -> None:
    make_done(run, "doctor", "preflight")
    script(run, dataset=GOES_ON, tokenizer={"steps": 2, "rest": "dataset"})
    ask(run, *EARLY)
    until(lambda: run.status("tokenizer").phase == "wait")
    os.kill(run.status("dataset").pid, signal.SIGKILL)
    until(lambda: ended(run), seconds=60)
    assert state(run, "dataset") == "crashed" and "SIGKILL" in run.status("tokenizer").reason


def test_what_was_made_from_other_content_waits_to_be_made_again(run: Run) -> None:
    make_done(run, *EARLY)
    write_attempt(run, "tokenizer", lines(started(run, "tokenizer", 2), ev.Stopped()), attempt=2)
    ready(run, "tokenizer", 2)
    statuses = {status.name: status for status in run.statuses()}
    assert statuses["pretrain"].state == "done"  # the same content as before
    word = ev.Ready(artifacts={"made": "another hash"})
    run.ready_file("tokenizer", 2).write_bytes(event_file.encode(word, 2))
    statuses = {status.name: status for status in run.statuses()}
    assert statuses["pretrain"].state == "stale" and statuses["pretrain"].pending


def test_what_was_deleted_since_it_was_made_is_not_to_be_waited_for(run: Run) -> None:
    make_done(run, "doctor", "preflight", "dataset", "tokenizer")
    ctx = StageContext(run, "pretrain", 1)
    waiting = Upstream(ctx, "tokenizer", "train")
    says = (
        rf"shard 1 is missing and .* has ended \(done\); picollm run --run {run.name} --only tokenizer makes it again"
    )
    with pytest.raises(UserError, match=says):
        for _ in range(3):
            waiting("shard 1")
    ctx.close()
