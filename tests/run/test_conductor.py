"""The conductor with real processes: dataflow, stops, kills, adoption, requests at awkward moments."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest

from picollm.run import conductor, event_file, launch, lease, pipeline
from picollm.run import events as ev
from picollm.run.conductor import Request
from picollm.run.errors import UserError
from picollm.run.folder import Run, write_atomic
from picollm.run.status import asked_for
from tests.run.conftest import lines, make_done, release, script, started, state, until, write_attempt

LONG = {"steps": 100_000, "sleep": 0.01}


def words(run: Run) -> list[str]:
    return [event.what for event in event_file.read_events(run.conductor_events) if isinstance(event, ev.Conductor)]


def conduct(run: Run) -> subprocess.Popen[bytes]:
    """A conductor that we can wait for."""
    argv = [sys.executable, "-m", "stages.conductor", "--run", str(run.dir)]
    return subprocess.Popen(argv, env=launch.child_environment(), start_new_session=True)


def conductor_pid(run: Run) -> int:
    return [event.pid for event in event_file.read_events(run.conductor_events) if isinstance(event, ev.Conductor)][-1]


def ended(run: Run) -> bool:
    pending = any((run.dir / "conductor" / "requests").glob("*.json"))
    return not pending and not lease.is_held(run.conductor_lock)


def ask(run: Run, *stages: str, redo: bool = False) -> None:
    conductor.ask(run, conductor.plan_request(run, list(stages), redo=redo))


def test_what_is_needed_first_goes_first(run: Run) -> None:
    ask(run, "preflight", "doctor")
    until(lambda: ended(run))
    assert state(run, "doctor") == state(run, "preflight") == "done" and words(run)[-1] == "finished"
    starts = [event.stage for event in event_file.read_events(run.conductor_events) if isinstance(event, ev.Launched)]
    assert starts == ["doctor", "preflight"] and run.config().model.depth == 4


def test_what_was_asked_for_is_told_until_it_is_done(run: Run) -> None:
    script(run, doctor=LONG)
    ask(run, "preflight", "doctor")
    until(lambda: asked_for(run) == ("doctor", "preflight"))
    conductor.stop(run)
    until(lambda: ended(run))
    assert asked_for(run) is None, "nobody is at work"
    script(run, doctor={})
    ask(run, "doctor")
    until(lambda: ended(run))
    told = [event.stages for event in event_file.read_events(run.conductor_events) if isinstance(event, ev.Queue)]
    assert told == [["doctor", "preflight"], [], ["doctor"], []]


def test_done_is_not_made_again_unless_asked(run: Run) -> None:
    make_done(run, "doctor")
    ask(run, "doctor")
    until(lambda: ended(run))
    assert run.attempts("doctor") == [1]
    ask(run, "doctor", redo=True)
    until(lambda: ended(run))
    assert run.attempts("doctor") == [1, 2] and state(run, "doctor") == "done"


@pytest.mark.slow
def test_the_whole_pipeline(run: Run) -> None:
    ask(run, *pipeline.NAMES)
    until(lambda: ended(run), seconds=240)
    assert {status.state for status in run.statuses()} == {"done"}


def test_a_failure_stops_what_depends_on_it_and_is_told(run: Run) -> None:
    script(run, doctor={"error": "no compiler"})
    ask(run, "doctor", "preflight")
    until(lambda: ended(run))
    assert state(run, "doctor") == "failed" and state(run, "preflight") == "waiting"
    script(run)
    ask(run, "doctor", "preflight")
    until(lambda: ended(run))
    assert run.attempts("doctor") == [1, 2] and state(run, "preflight") == "done"


def test_a_stage_that_cannot_start_has_a_reason(run: Run) -> None:
    run.stage_dir("doctor").parent.mkdir(exist_ok=True)
    run.stage_dir("doctor").write_text("a file where a folder should be")
    conductor.ask(run, Request(stages=["doctor"]))
    until(lambda: ended(run))
    last = [event for event in event_file.read_events(run.conductor_events) if isinstance(event, ev.Conductor)]
    assert any("did not start: error: cannot start 'doctor'" in event.text for event in last)


def test_stop_saves_and_drops_what_was_to_come(run: Run) -> None:
    script(run, doctor=LONG)
    ask(run, "doctor", "preflight")
    until(lambda: run.status("doctor").step)
    assert conductor.stop(run) == ["doctor"]
    until(lambda: ended(run))
    assert state(run, "doctor") == "stopped" and state(run, "preflight") == "waiting" and run.status("doctor").step > 0


def test_stop_twice_kills(run: Run) -> None:
    script(run, doctor={"steps": 3, "deaf": True})
    ask(run, "doctor")
    until(lambda: run.status("doctor").phase == "train")
    conductor.stop(run)
    until(lambda: state(run, "doctor") == "stopping")
    time.sleep(0.3)
    assert state(run, "doctor") == "stopping"
    conductor.stop(run)
    until(lambda: ended(run))
    assert "SIGKILL" in run.status("doctor").reason


def test_a_stop_that_meets_a_stage_being_started_is_kept(run: Run) -> None:
    """The request is there before the stage has its lock: whoever asked could see nothing to stop."""
    script(run, doctor=LONG)
    ask(run, "doctor")
    until(lambda: lease.is_held(run.conductor_lock))
    conductor.ask(run, Request(stop=True))
    until(lambda: ended(run))
    assert state(run, "doctor") in ("stopped", "waiting")


def test_nothing_to_stop(run: Run) -> None:
    assert conductor.stop(run) == [] and conductor.stop(run, kill=True) == []


def test_stop_without_a_conductor_withdraws_what_nobody_has_read(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "spawn_detached", lambda *args: None)
    conductor.ask(run, Request(stages=["doctor"]))
    conductor.stop(run)
    assert conduct(run).wait(60) == 0 and run.attempts("doctor") == []


def test_going_on_while_it_is_still_stopping(run: Run) -> None:
    script(run, doctor={"steps": 3, "deaf": True})
    ask(run, "doctor")
    until(lambda: run.status("doctor").phase == "train")
    conductor.stop(run)
    until(lambda: state(run, "doctor") == "stopping")
    ask(run, "doctor")
    release(run, "doctor")
    until(lambda: state(run, "doctor") == "done")
    assert run.attempts("doctor") == [1, 2]


@pytest.mark.parametrize("end", [ev.Stopped(step=3), ev.Failed(error="it broke")])
def test_asked_to_go_on_while_its_launcher_has_not_left_yet(run: Run, end: ev.Event) -> None:
    write_attempt(run, "doctor", lines(started(run, "doctor"), end))
    conducts = conductor.Conductor(run)
    launcher = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    conducts.goals, conducts.running, conducts.children = ["doctor"], {"doctor": 0}, {"doctor": launcher}
    request = Request(stages=["doctor"])
    folder = run.dir / "conductor" / "requests"
    folder.mkdir(parents=True)
    (folder / "1.json").write_bytes(msgspec.json.encode(request))
    conducts._read_requests()
    assert conducts.goals == ["doctor"] and "doctor" in conducts.running
    launcher.communicate(b"\n")
    conducts._watch({status.name: status for status in run.statuses()})
    assert conducts.goals == ["doctor"] and not conducts.running and not conducts.failed


@pytest.mark.slow
def test_kill_9_of_the_conductor_and_the_next_one_adopts(run: Run) -> None:
    script(run, doctor={"hold": True})
    ask(run, "doctor", "preflight")
    until(lambda: run.status("doctor").step)
    os.kill(conductor_pid(run), signal.SIGKILL)
    until(lambda: not lease.is_held(run.conductor_lock))
    assert state(run, "doctor") == "running"
    ask(run, "doctor", "preflight")
    until(lambda: "adopted" in words(run))
    release(run, "doctor")
    until(lambda: ended(run))
    assert "adopted" in words(run) and state(run, "preflight") == "done" and run.attempts("doctor") == [1]


@pytest.mark.slow
def test_kill_9_of_the_conductor_and_nobody_comes(run: Run) -> None:
    script(run, doctor={"hold": True})
    ask(run, "doctor", "preflight")
    until(lambda: run.status("doctor").step)
    os.kill(conductor_pid(run), signal.SIGKILL)
    release(run, "doctor")
    until(lambda: state(run, "doctor") == "done")
    assert {status.name: status.state for status in run.statuses()}["preflight"] == "ready"


@pytest.mark.slow
def test_two_conductors_cannot_own_one_run(run: Run) -> None:
    lock = lease.Lock(run.conductor_lock)
    assert lock.exclusive()
    try:
        assert conduct(run).wait(60) == 4
        assert words(run) == []
    finally:
        lock.release()


def test_a_request_while_the_conductor_is_leaving_is_served(run: Run) -> None:
    """The one that leaves holds the lock and reads no more; the one that was spawned waits for it."""
    lock = lease.Lock(run.conductor_lock)
    assert lock.exclusive()
    ask(run, "doctor")
    time.sleep(1.0)
    lock.release()
    until(lambda: state(run, "doctor") == "done")


def test_a_conductor_that_leaves_slowly_is_waited_for_as_long_as_something_is_asked(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conductor, "PATIENCE_S", 0.02)
    with monkeypatch.context() as patch:
        patch.setattr(launch, "spawn_detached", lambda *args: None)
        ask(run, "doctor")
    lock = lease.Lock(run.conductor_lock)
    assert lock.exclusive()
    with ThreadPoolExecutor() as pool:
        coming = pool.submit(conductor.Conductor(run).conduct)
        with pytest.raises(TimeoutError):
            coming.result(timeout=1)
        lock.release()
        assert coming.result(timeout=60) == 0 and state(run, "doctor") == "done"


def test_a_conductor_that_comes_when_all_is_done_leaves_the_last_word_to_the_one_before(run: Run) -> None:
    event_file.append(run.conductor_events, ev.Conductor(what="failed", text="no ink"))
    assert conductor.Conductor(run).conduct() == 0 and words(run) == ["failed"]
    assert not lease.is_held(run.conductor_lock)


def test_a_broken_request_is_put_aside(run: Run) -> None:
    requests = run.dir / "conductor" / "requests"
    requests.mkdir(parents=True)
    (requests / "1.json").write_text("{")
    ask(run, "doctor")
    until(lambda: ended(run))
    assert state(run, "doctor") == "done" and "ignored" in words(run)


def test_settings_broken_while_it_conducts_end_it_with_the_line(run: Run) -> None:
    script(run, doctor={"hold": True})
    ask(run, "doctor")
    until(lambda: run.status("doctor").step)
    good = (run.dir / "config.toml").read_text()
    write_atomic(run.dir / "config.toml", good + "\n[sftt]\n")
    until(lambda: not lease.is_held(run.conductor_lock))
    last = [event for event in event_file.read_events(run.conductor_events) if isinstance(event, ev.Conductor)][-1]
    assert last.what == "failed" and "unknown table [sftt]" in last.text
    write_atomic(run.dir / "config.toml", good)
    release(run, "doctor")
    until(lambda: state(run, "doctor") == "done")


# what may be asked ----------------------------------------------------------------------------------------------------


def test_stale_is_neither_rerun_nor_trusted_silently(run: Run) -> None:
    make_done(run, "doctor", "preflight", "dataset", "tokenizer", "tokenizer_eval", "pretrain")
    run.set(["tokenizer.vocab_size=2048"])
    with pytest.raises(UserError, match=r"stale: .*tokenizer\.vocab_size was 4096, is now 2048.*--from"):
        conductor.plan_request(run, list(pipeline.NAMES))
    with pytest.raises(UserError, match="stale: tokenizer "):
        conductor.plan_request(run, ["pretrain"], redo=True)
    request = conductor.plan_request(run, ["tokenizer", "tokenizer_eval", "pretrain"], redo=True, fresh=True)
    assert request.redo == request.fresh == request.stages


def test_what_is_missing_is_named(run: Run) -> None:
    make_done(run, "doctor")
    with pytest.raises(UserError, match=r"identity, midtrain must be made first: .*--from identity"):
        conductor.plan_request(run, ["sft"], redo=True)
    with pytest.raises(UserError, match="unknown stage 'sfft'"):
        conductor.plan_request(run, ["sfft"])


def test_what_runs_is_not_made_again(run: Run) -> None:
    write_attempt(run, "doctor", lines(started(run, "doctor"), start=time.time()))
    lock = lease.Lock(run.lock_file("doctor"))
    lock.share()
    try:
        with pytest.raises(UserError, match="'doctor' is running; stop it first"):
            conductor.plan_request(run, ["doctor"], redo=True)
        assert conductor.plan_request(run, ["doctor", "preflight"]).redo == []
    finally:
        lock.release()


def test_what_is_made_from_a_running_stage_keeps_it_from_being_made_again(run: Run) -> None:
    make_done(run, *pipeline.NAMES)
    write_attempt(run, "sft", lines(started(run, "sft", 2), start=time.time()), attempt=2)
    lock = lease.Lock(run.lock_file("sft"))
    lock.share()
    try:
        with pytest.raises(UserError, match="'sft' is running, and is made from 'pretrain'"):
            conductor.plan_request(run, ["pretrain"], redo=True)
        assert conductor.plan_request(run, ["tokenizer_eval"], redo=True).redo == ["tokenizer_eval"]
    finally:
        lock.release()


def test_resuming_a_redo_makes_what_waits_for_it_again(run: Run) -> None:
    make_done(run, *pipeline.NAMES)
    write_attempt(run, "sft", lines(started(run, "sft", 2), ev.Stopped(step=3)), attempt=2)
    request = conductor.plan_request(run, list(pipeline.NAMES))
    assert request.redo == request.fresh == ["rl", "chat_eval", "report"]
    with pytest.raises(UserError, match=r"sft, rl must be made first: .*--from sft"):
        conductor.plan_request(run, ["chat_eval"])
    # SFT has made something new by now, and RL was next.
    new = ev.Finished(seconds=1, paths={"made": "made/sft"}, artifacts={"made": "another hash"})
    write_attempt(run, "sft", lines(started(run, "sft", 2), new), attempt=2)
    write_attempt(run, "rl", lines(started(run, "rl", 2)), attempt=2)
    request = conductor.plan_request(run, list(pipeline.NAMES))
    assert request.redo == request.fresh == ["chat_eval", "report"]
    run.set(["chat_eval.items=9"])
    with pytest.raises(UserError, match=r"stale: chat_eval .*chat_eval\.items was"):
        conductor.plan_request(run, list(pipeline.NAMES))


def test_a_half_made_stage_starts_over_when_what_it_is_made_from_does(run: Run) -> None:
    make_done(run, *pipeline.NAMES)
    for name in ("midtrain", "rl"):
        write_attempt(run, name, lines(started(run, name, 2), ev.Stopped(step=3)), attempt=2)
    request = conductor.plan_request(run, list(pipeline.from_stage("midtrain")), redo=True)
    assert request.fresh == ["sft", "rl", "chat_eval", "report"]  # midtrain itself resumes
    request = conductor.plan_request(run, list(pipeline.from_stage("pretrain")), redo=True)
    assert request.fresh == list(pipeline.from_stage("pretrain"))


def lose(run: Run, name: str) -> None:
    """`name` is done, but what it left outside the run folder is gone."""
    gone = str(run.dir.parent / "home" / name)
    finished = ev.Finished(seconds=3.0, paths={"made": gone}, artifacts={"made": f"hash of {name}"})
    write_attempt(run, name, lines(started(run, name), finished))


def test_what_is_lost_outside_the_run_folder_is_made_again_and_nothing_else(run: Run) -> None:
    make_done(run, *pipeline.NAMES)
    lose(run, "dataset")
    request = conductor.plan_request(run, list(pipeline.NAMES))
    assert (request.redo, request.fresh) == (["dataset"], [])
    request = conductor.plan_request(run, ["rl"], redo=True)
    assert (request.stages, request.redo, request.fresh) == (["dataset", "rl"], ["dataset", "rl"], ["rl"])
    run.set(["data.val_share=0.1"])
    with pytest.raises(UserError, match=r"stale: dataset .* is gone; data\.val_share was"):
        conductor.plan_request(run, list(pipeline.NAMES))


def test_what_is_lost_while_it_conducts_is_made_again(run: Run) -> None:
    outside = str(run.dir.parent.parent / "outside")
    script(run, dataset={"outside": outside}, tokenizer_eval={"hold": True})
    make_done(run, "doctor", "preflight")
    ask(run, "dataset", "tokenizer", "tokenizer_eval", "pretrain")
    until(lambda: run.status("tokenizer_eval").step)
    run.output("dataset", "made").unlink()
    release(run, "tokenizer_eval")
    until(lambda: ended(run))
    assert state(run, "pretrain") == "done" and "mending" in words(run)
    assert [len(run.attempts(name)) for name in ("dataset", "tokenizer", "tokenizer_eval", "pretrain")] == [2, 1, 1, 1]
