"""Of several ranks that fail, the one that explains it has the word."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from picollm.run import event_file, failure, launch
from picollm.run import events as ev
from picollm.run.errors import StopRequested, UserError
from picollm.run.failure import Word
from picollm.run.folder import Run
from picollm.run.stage import StageContext
from tests.run.conftest import script

CLOSED = "RuntimeError: [../gloo/transport/tcp/pair.cc:547] Connection closed by peer [10.0.0.2]:4242"
TIMED_OUT = "RuntimeError: [../gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 6000ms for recv operation"
GIVEN_UP = "RuntimeError: Application timeout caused pair closure"  # gloo, of an operation that came after


def word(rank: int, error: str, when: float = 0.0, **more: Any) -> Word:
    return Word(rank=rank, world=3, host=f"node{rank}", error=error, time=when, **more)


def said(*words: Word, timeout: float = 10.0) -> str:
    return failure.verdict(list(words), ["node0", "node1", "node2"], timeout).error


def test_the_earliest_cause_counts_and_never_an_echo() -> None:
    assert said(word(0, CLOSED, 1.0, echo=True), word(2, "CUDA out of memory", 2.0), word(1, "later", 3.0)) == (
        "rank 2 of 3 on node2: CUDA out of memory"
    )


def test_what_every_rank_says_needs_no_rank() -> None:
    failed = failure.verdict([word(rank, "rows is 1", code=2) for rank in range(3)], ["a", "b", "c"], 10.0)
    assert (failed.error, failed.code) == ("rows is 1", 2)


def test_when_all_only_lost_each_other_the_silent_ones_are_named() -> None:
    text = said(word(0, TIMED_OUT, echo=True), word(1, CLOSED, echo=True), timeout=0.1)
    assert text.startswith("rank 0 of 3 on node0 had no answer from the others for 6 s (launch.timeout), and rank 2 on")
    assert "node2 left no word" in text
    assert said(word(1, CLOSED, echo=True)).startswith(
        f"rank 1 of 3 on node1 lost its connection to the others ({CLOSED}), and"
    )
    wrong = "DistBackendError: NCCL error in: ProcessGroupNCCL.cpp:94, invalid usage (Duplicate GPU detected)"
    assert "Duplicate GPU detected" in said(*(word(rank, wrong, echo=True) for rank in range(3)))
    assert said() == "none of the 3 ranks left a word"


def test_what_torch_says_of_lost_ranks_is_an_echo() -> None:
    assert failure.is_echo(RuntimeError(GIVEN_UP)) and "no answer from the others" in said(word(0, GIVEN_UP, echo=True))
    assert failure.is_echo(RuntimeError(CLOSED)) and failure.is_echo(RuntimeError("NCCL communicator was aborted"))
    assert failure.is_echo(type("DistBackendError", (RuntimeError,), {})("x"))
    assert not failure.is_echo(RuntimeError("shape mismatch")) and not failure.is_echo(ValueError("nccl"))


def test_only_the_first_word_of_a_rank_counts_and_a_broken_one_is_passed_over(run: Run) -> None:
    run.stage_dir("pretrain").mkdir(parents=True)
    failure.leave(run, "pretrain", 1, word(1, "the cause"))
    failure.leave(run, "pretrain", 1, word(1, "killed by SIGTERM"))
    (run.stage_dir("pretrain") / "attempt-001.rank-2.json").write_text("{")
    assert [found.error for found in failure.words(run, "pretrain", 1)] == ["the cause"]
    assert failure.words(run, "pretrain", 2) == []


def failed_under_torchrun(run: Run, **ranks: Any) -> ev.Failed:
    pytest.importorskip("torch")
    run.set(["launch.nproc=2"])
    script(run, pretrain={"ranks": ranks})
    code = launch.start_launcher(run, "pretrain").wait(240)
    events = list(event_file.read_events(run.events_file("pretrain", 1)))
    found = [event for event in events if isinstance(event, ev.TERMINAL)][-1]
    assert run.status("pretrain").state == "failed"
    assert isinstance(found, ev.Failed) and code == found.code
    return found


@pytest.mark.slow
def test_a_rank_that_fails_is_named_once(run: Run) -> None:
    """torchrun asks rank 0 to end, too, and it stops as if a person had asked: that is not how it ended."""
    found = failed_under_torchrun(run, **{"0": {"hold": True}, "1": {"last": {"bug": "boom"}}})
    assert found.error.startswith("rank 1 of 2 on ") and found.error.endswith(": RuntimeError: boom")
    assert "RuntimeError: boom" in Path(run.console_file("pretrain", 1)).read_text()


@pytest.mark.slow
def test_a_rank_killed_by_the_system_is_named(run: Run) -> None:
    found = failed_under_torchrun(run, **{"0": {"hold": True}, "1": {"last": {"kill": int(signal.SIGKILL)}}})
    assert "rank 1 of 2 on " in found.error and "killed by SIGKILL" in found.error


@pytest.mark.slow
def test_a_mistake_that_all_ranks_see_is_one_line(run: Run) -> None:
    found = failed_under_torchrun(run, **{"0": {"error": "rows is 1"}, "1": {"error": "rows is 1"}})
    assert (found.error.rpartition("rank")[0], found.code) in (("", 2), ("rank", 2)) and "rows is 1" in found.error


@pytest.mark.slow
def test_the_others_wait_for_rank_0_before_they_have_joined(run: Run) -> None:
    pytest.importorskip("torch")
    run.set(["launch.nproc=2"])
    script(run, pretrain={"first": 2.0})
    assert launch.start_launcher(run, "pretrain").wait(240) == 0
    console = run.console_file("pretrain", 1).read_text()
    assert "rank 0 found: made by rank 0" in console and "rank 1 found: made by rank 0" in console


def test_a_rank_0_that_failed_keeps_nobody_waiting(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    ctx = StageContext(run, "pretrain", 1)
    run.stage_dir("pretrain").mkdir(parents=True)
    failure.leave(run, "pretrain", 1, word(0, "the rows have changed", code=2))
    with pytest.raises(UserError, match="the rows have changed"):
        ctx.rank0_first(lambda: pytest.fail("rank 1 must not work on what rank 0 refused"))
    run.request_stop("pretrain")
    with pytest.raises(StopRequested):
        ctx.rank0_first(lambda: None)


HANGS = """
import os, signal
from picollm.run.stage import Outcome, main

def work(ctx):
    import torch
    from picollm.train.session import start_ranks
    ranks = start_ranks(ctx)
    ranks.sum(torch.ones(1))
    while ctx.rank == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    ranks.sum(torch.ones(1))
    return Outcome()

if __name__ == "__main__":
    main("pretrain", work)
"""


@pytest.mark.slow
def test_a_rank_that_hangs_is_given_up_after_the_timeout_and_named(run: Run) -> None:
    pytest.importorskip("torch")
    (run.dir.parent.parent / "fakes" / "stages" / "pretrain.py").write_text(HANGS)
    run.set(["launch.nproc=2", "launch.timeout=0.4", "machine.device=cpu"])
    assert launch.start_launcher(run, "pretrain").wait(240) == 1
    reason = run.status("pretrain").reason
    assert reason.startswith("rank 0 of 2 on ") and "no answer from the others for 24 s (launch.timeout)" in reason
    assert ", and rank 1 on " in reason and "left no word" in reason
