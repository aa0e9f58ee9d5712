"""Launcher and stage as real processes; the stage is a fake that only counts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from picollm.run import event_file, launch, lease, pipeline
from picollm.run import events as ev
from picollm.run.folder import Run
from tests.run.conftest import lines, release, script, started, state, until, write_attempt

LONG = {"steps": 100_000, "sleep": 0.01}


def begin(run: Run, name: str = "doctor", fresh: bool = False) -> subprocess.Popen[bytes]:
    """Start a launcher; returns when the stage has made its first step."""
    attempt = max(run.attempts(name), default=0) + 1
    child = launch.start_launcher(run, name, fresh)
    until(lambda: run.status(name).attempt == attempt and (run.status(name).step or child.poll() is not None))
    return child


def conducted(run: Run) -> list[ev.AnyEvent]:
    return list(event_file.read_events(run.conductor_events))


def test_a_stage_from_start_to_done(run: Run) -> None:
    assert launch.start_launcher(run, "doctor").wait(60) == 0
    found = run.status("doctor")
    assert (found.state, found.attempt, found.step) == ("done", 1, 1)
    assert "console line of doctor" in run.console_file("doctor", 1).read_text()
    assert run.config_file("doctor", 1).exists() and run.output("doctor", "made").exists()
    first = event_file.head_events(run.events_file("doctor", 1))[0]
    assert (
        isinstance(first, ev.Started) and first.predicted_s == pipeline.stage("doctor").typical_s
    )  # there is no plan yet
    begun, ended = conducted(run)
    assert isinstance(begun, ev.Launched) and isinstance(ended, ev.Exited) and ended.code == 0


def test_ranks_that_somebody_else_gave_us_are_not_the_stages(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert launch.start_launcher(run, "doctor").wait(60) == 0 and state(run, "doctor") == "done"


@pytest.mark.parametrize(
    "do, code, expected, reason",
    [
        ({"error": "no text here"}, 2, "failed", "no text here"),
        ({"bug": "boom"}, 1, "failed", "RuntimeError: boom; see attempt-001.console.log"),
        ({"exit": 9}, 9, "crashed", "exit code 9 without a last word; see attempt-001.console.log"),
    ],
)
def test_how_it_can_fail(run: Run, do: dict, code: int, expected: str, reason: str) -> None:
    script(run, doctor=do)
    assert launch.start_launcher(run, "doctor").wait(60) == code
    found = run.status("doctor")
    assert (found.state, found.reason) == (expected, reason)


def test_kill_9_of_the_stage_is_a_crash_with_its_signal_and_resumes(run: Run) -> None:
    script(run, doctor=LONG)
    child = begin(run)
    os.kill(run.status("doctor").pid, signal.SIGKILL)
    assert child.wait(60) == 128 + 9
    found = run.status("doctor")
    assert found.state == "crashed" and "SIGKILL" in found.reason
    script(run, doctor={"steps": 2})
    assert launch.start_launcher(run, "doctor").wait(60) == 0 and state(run, "doctor") == "done"


@pytest.mark.slow
def test_kill_9_of_the_launcher_leaves_the_stage_alone(run: Run) -> None:
    script(run, doctor={"hold": True})
    child = begin(run)
    child.kill()
    child.wait()
    assert state(run, "doctor") == "running"
    assert launch.launch_here(run.dir, "doctor") == 2  # nobody can start it twice
    release(run, "doctor")
    until(lambda: state(run, "doctor") == "done")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("whom", ["stage", "launcher"])
def test_a_polite_signal_is_a_saved_stop_and_the_next_attempt_resumes(run: Run, whom: str, number: int) -> None:
    script(run, doctor=LONG)
    child = begin(run)
    os.kill(child.pid if whom == "launcher" else run.status("doctor").pid, number)
    assert child.wait(60) == 0
    found = run.status("doctor")
    assert found.state == "stopped" and found.step > 0 and not run.stop_file("doctor").exists()
    step = int((run.dir / "doctor.saved").read_text())
    script(run, doctor={"steps": step + 2})
    assert launch.start_launcher(run, "doctor").wait(60) == 0
    resumed = [event for event in event_file.read_events(run.events_file("doctor", 2)) if isinstance(event, ev.Resumed)]
    assert resumed[0].step == step


def test_a_second_signal_to_the_launcher_kills(run: Run) -> None:
    script(run, doctor={"steps": 3, "deaf": True})
    child = launch.start_launcher(run, "doctor")
    until(lambda: run.status("doctor").phase == "train")
    os.kill(child.pid, signal.SIGTERM)
    until(lambda: state(run, "doctor") == "stopping")
    os.kill(child.pid, signal.SIGTERM)
    assert child.wait(60) == 128 + 9 and state(run, "doctor") == "crashed"


def test_hanging_up_stops_nothing(run: Run) -> None:
    script(run, doctor={"hold": True})
    child = begin(run)
    os.kill(child.pid, signal.SIGHUP)
    os.kill(run.status("doctor").pid, signal.SIGHUP)
    release(run, "doctor")
    assert child.wait(60) == 0 and state(run, "doctor") == "done"


def test_a_stale_stop_request_does_not_stop_the_next_attempt(run: Run) -> None:
    run.stop_file("doctor").parent.mkdir(parents=True)
    run.request_stop("doctor")
    assert launch.start_launcher(run, "doctor").wait(60) == 0 and state(run, "doctor") == "done"


def test_a_reused_pid_is_never_signalled(run: Run) -> None:
    """The newest attempt claims to be a process that has our pid, but was started at another time."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    who = lease.identify(child.pid)
    forged = who._replace(start_ticks=who.start_ticks - 100)._asdict()
    write_attempt(run, "doctor", lines(started(run, "doctor", **forged)))
    event_file.append(run.conductor_events, ev.Launched(stage="doctor", attempt=1, **forged))
    event_file.append(run.conductor_events, ev.Launched(stage="doctor", attempt=1, pid=child.pid))
    lock = lease.Lock(run.lock_file("doctor"))
    lock.share()
    try:
        assert not launch.kill_stage(run, "doctor") and not launch.dump_stack(run, "doctor")
        assert child.poll() is None
    finally:
        lock.release()
        child.kill()
        child.wait()


def test_kill_before_the_first_word(run: Run) -> None:
    """A stage that is still importing has said nothing; what the launcher wrote is enough to kill it."""
    file = run.dir.parent.parent / "fakes" / "stages" / "doctor.py"
    file.write_text("import time\ntime.sleep(600)\n")
    child = launch.start_launcher(run, "doctor")
    until(lambda: any(isinstance(event, ev.Launched) for event in conducted(run)))
    assert launch.kill_stage(run, "doctor")
    assert child.wait(60) == 128 + 9


def test_the_stack_of_a_silent_stage_is_in_its_console_log(run: Run) -> None:
    script(run, doctor={"hold": True})
    launch.start_launcher(run, "doctor")
    until(lambda: run.status("doctor").phase == "train")
    assert launch.dump_stack(run, "doctor")
    until(lambda: "in work" in run.console_file("doctor", 1).read_text())
    assert psutil.pid_exists(run.status("doctor").pid)


def test_a_run_that_cannot_be_written_is_one_line(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    (run.dir / "stages").write_text("a file where a folder should be")
    assert launch.launch_here(run.dir, "doctor") == 2
    assert capsys.readouterr().err.startswith("error: cannot start 'doctor'")
    assert launch.launch_here(run.dir / "absent", "doctor") == 2
    assert "not a run folder" in capsys.readouterr().err


def test_a_folder_called_stages_where_we_are_does_not_shadow_ours(run: Run, tmp_path, monkeypatch) -> None:
    (tmp_path / "here" / "stages").mkdir(parents=True)
    (tmp_path / "here" / "stages" / "__init__.py").write_text("raise SystemExit('shadowed')")
    monkeypatch.chdir(tmp_path / "here")
    assert launch.start_launcher(run, "doctor").wait(60) == 0


def test_settings_broken_before_the_stage_reads_them_are_its_last_word(run: Run) -> None:
    file = run.config_file("doctor", 1)
    file.parent.mkdir(parents=True)
    file.write_text("")
    (run.dir / "config.toml").write_text("[sftt]\n")
    code = subprocess.call(
        [sys.executable, "-m", "stages.doctor", "--run", str(run.dir), "--attempt", "1"], env=launch.child_environment()
    )
    assert code == 2
    (event,) = event_file.read_events(run.events_file("doctor", 1))
    assert isinstance(event, ev.Failed) and "config.toml:1: unknown table" in event.error


def test_time_between_two_attempts_is_not_counted(run: Run) -> None:
    assert launch.start_launcher(run, "doctor").wait(60) == 0
    time.sleep(1)
    begun = time.monotonic()
    assert launch.start_launcher(run, "doctor").wait(60) == 0
    assert run.status("doctor").attempt == 2 and run.status("doctor").seconds < time.monotonic() - begun + 0.5


def slow_to_load(run: Run) -> None:
    """The doctor says and holds nothing before it is released, as a stage that imports torch does for a while."""
    wait = f"while not os.path.exists({str(run.dir / 'doctor.released')!r}):\n    time.sleep(0.02)\n"
    text = f"import os, time\n{wait}from stages.fake import go\ngo('doctor')\n"
    (run.dir.parent.parent / "fakes" / "stages" / "doctor.py").write_text(text)


@pytest.mark.slow
def test_kill_9_of_the_launcher_while_the_stage_loads_starts_no_second_one(run: Run) -> None:
    slow_to_load(run)
    child = launch.start_launcher(run, "doctor")
    until(lambda: any(isinstance(event, ev.Launched) for event in conducted(run)))
    child.kill()
    child.wait()
    assert state(run, "doctor") == "running" and launch.launch_here(run.dir, "doctor") == 2
    release(run, "doctor")
    until(lambda: state(run, "doctor") == "done" and not lease.is_held(run.lock_file("doctor")))
    assert run.attempts("doctor") == [1]


def test_what_a_stage_starts_does_not_hold_its_lock(run: Run) -> None:
    """posix_spawn closes nothing by itself: only close-on-exec keeps the lock from a process that outlives us."""
    fake = run.dir.parent.parent / "fakes" / "stages" / "fake.py"
    spawn = "def work(ctx):\n    os.posix_spawn('/bin/sleep', ['sleep', '20'], os.environ)\n"
    fake.write_text(fake.read_text().replace("def work(ctx):\n", spawn))
    assert launch.start_launcher(run, "doctor").wait(60) == 0
    assert state(run, "doctor") == "done" and not lease.is_held(run.lock_file("doctor"))


def test_a_stage_that_comes_after_a_newer_attempt_ends(run: Run) -> None:
    for attempt in (1, 2):
        run.config_file("doctor", attempt).parent.mkdir(parents=True, exist_ok=True)
        run.config_file("doctor", attempt).write_text("")
    argv = [sys.executable, "-m", "stages.doctor", "--run", str(run.dir), "--attempt", "1"]
    done = subprocess.run(argv, env=launch.child_environment(), capture_output=True, text=True)
    assert done.returncode == 2 and "newer attempt" in done.stderr and not run.events_file("doctor", 1).exists()


def test_a_launcher_that_comes_too_late_repeats_nothing(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert launch.launch_here(run.dir, "doctor", attempt=1) == 0
    assert launch.launch_here(run.dir, "doctor", attempt=1) == 2
    assert "was made by somebody else" in capsys.readouterr().err
    assert run.attempts("doctor") == [1] and state(run, "doctor") == "done"


@pytest.mark.slow
def test_a_fresh_attempt_killed_before_its_first_word_leaves_nothing_to_resume_from(run: Run) -> None:
    folder = run.dir / "rl_checkpoints"
    partial = [run.dir / "eval" / f"{what}.partial.json" for what in ("chat_eval", "core")]
    for path in (folder / "step-000100" / "meta.json", folder / "step-000200" / "meta.json", *partial):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    for name in ("rl", "chat_eval", "base_eval"):
        script(run, **{name: {"exit": 9}})
        assert launch.start_launcher(run, name).wait(60) == 9
    assert len(list(folder.glob("step-*"))) == 2 and all(path.exists() for path in partial)
    for name in ("rl", "chat_eval", "base_eval"):
        script(run, **{name: {"exit": 9}})
        assert launch.start_launcher(run, name, fresh=True).wait(60) == 9
    assert all(path.name.startswith(".removing-step-") for path in folder.iterdir())
    assert not any(path.exists() for path in partial)


@pytest.mark.slow
def test_under_torchrun_a_stop_is_saved_and_a_kill_leaves_no_rank(run: Run) -> None:
    """torchrun gives every rank a session of its own: killing one group would leave the others training."""
    pytest.importorskip("torch")
    run.set(["launch.nproc=2"])
    script(run, pretrain=LONG)
    child = launch.start_launcher(run, "pretrain")
    until(lambda: run.status("pretrain").step, seconds=60)
    run.request_stop("pretrain")
    assert child.wait(60) == 0 and state(run, "pretrain") == "stopped"
    child = launch.start_launcher(run, "pretrain", fresh=True)
    until(lambda: run.status("pretrain").attempt == 2 and run.status("pretrain").step, seconds=60)
    family = psutil.Process(child.pid).children(recursive=True)
    assert len(family) >= 3
    assert launch.kill_stage(run, "pretrain")
    child.wait(60)
    assert psutil.wait_procs(family, timeout=60)[1] == [] and "SIGKILL" in run.status("pretrain").reason
