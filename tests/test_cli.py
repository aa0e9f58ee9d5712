"""The command line as people and scripts meet it: real processes, fake stages (tests/run/conftest.py)."""

# ruff: noqa: F811  pytest passes fixtures by the names that were imported

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from picollm import cli, cli_follow
from picollm.run import conductor, event_file, lease, pipeline, recheck
from picollm.run import config as settings
from picollm.run import events as ev
from picollm.run.errors import UserError
from picollm.run.folder import Run, StageStatus
from tests.run.conftest import (  # noqa: F401  two are fixtures
    lines,
    make_done,
    release,
    run,
    runs,
    script,
    started,
    state,
    until,
    write_attempt,
)
from tests.run.test_serving import SERVER


def call(*argv: str, capsys: Any) -> tuple[int, str, str]:
    code = cli.invoke(list(argv))
    out, err = capsys.readouterr()
    return code, out, err


def start(*argv: str, **options: Any) -> subprocess.Popen[str]:
    """The command line as a process, output in pipes."""
    argv = (sys.executable, "-m", "picollm.cli", *argv)
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def forge_all(run: Run) -> None:
    make_done(run, *pipeline.NAMES)


# light ----------------------------------------------------------------------------------------------------------------


def test_the_command_line_loads_nothing_heavy() -> None:
    code = (
        "import sys, picollm.cli; "
        "heavy = {'torch', 'numpy', 'pyarrow', 'textual', 'rich', 'httpx', 'stages', 'tui'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_command_has_help(capsys: Any) -> None:
    names = ["run", "resume", "stop", "status", "runs", "plan", "doctor", "chat", "compare", "config", "identity"]
    for name in [*names, "serve", "web"]:
        code, out, _ = call(name, "--help", capsys=capsys)
        assert code == 0 and "Usage: picollm" in out


# mistakes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "argv, said",
    [
        (["bogus"], "No such command"),
        (["status", "--bogus"], "No such option"),
        (["chat", "--top-k", "many"], "--top-k"),
        (["status"], "no runs in"),
        (["status", "--run", "zz"], "no run 'zz'"),
        (["resume", "--run", "zz"], "start it with: picollm run --run zz"),
        (["stop", "--run", "zz"], "no run 'zz'"),
        (["chat", "--run", "zz"], "no run 'zz'"),
        (["serve"], "no runs in"),
        (["serve", "--run", "zz"], "no run 'zz'"),
        (["web", "--port", "70000"], "--port"),
        (["run", "--profile", "huge"], "unknown profile 'huge'"),
        (["run", "--set", "sft.lrr=1"], "unknown key 'sft.lrr'"),
        (["run", "--run", "../up"], "a name has no slash; runs are made in "),
        (["plan", "--run", "else/where"], "a name has no slash; runs are made in "),
        (["status", "--run", "else/where"], "else/where (no config.toml); runs lie in "),
        (["run", "--from", "sft", "--base", "else/where"], "else/where (no config.toml); runs lie in "),
        (["run", "--run", "else/../a b"], "a name has no slash"),
        (["run", "--run", "a b"], "run name 'a b'"),
        (["run", "--only", "sfft"], "unknown stage 'sfft'"),
        (["run", "--only", "sft", "--from", "rl"], "exclude each other"),
        (["run", "--config", "absent.toml"], "cannot read settings file"),
        (["config", "--set", "x"], "expected table.key=value"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(runs: Path, capsys: Any, argv: list[str], said: str) -> None:
    code, out, err = call(*argv, capsys=capsys)
    assert code == 2 and out == ""
    assert err.startswith("error: ") and err.count("\n") == 1 and said in err
    assert Run.all() == []


@pytest.mark.parametrize("path", ["{runs}/a", "{runs}/../runs/a/", "here/a"])
def test_a_path_into_the_runs_folder_names_a_new_run(runs: Path, monkeypatch: Any, capsys: Any, path: str) -> None:
    runs.mkdir()
    (runs.parent / "here").symlink_to(runs)
    monkeypatch.chdir(runs.parent)
    path = path.format(runs=runs)
    assert call("status", "--run", path, capsys=capsys)[2].rstrip().endswith("start it with: picollm run --run a")
    made = cli.prepare(path, "smoke", None, [])
    assert (made.name, made.dir) == ("a", runs / "a") == (Run.open(path).name, Run.open("a").dir)
    assert cli.prepare(path, None, None, ["run.seed=7"]).wishes().run.seed == 7 == Run.open("a").wishes().run.seed
    with pytest.raises(UserError, match="run 'a' exists already"):
        Run.create(path, Run.open("a").wishes())
    with pytest.raises(UserError, match="run name 'a b'"):
        Run.create(f"{path.rstrip('/')} b", Run.open("a").wishes())


def test_an_unexpected_exception_is_one_line_and_a_file(runs: Path, capsys: Any, monkeypatch: Any) -> None:
    def boom() -> None:
        raise ZeroDivisionError("deep inside")

    monkeypatch.setattr(Run, "all", boom)
    code, _, err = call("runs", capsys=capsys)
    assert code == 1 and err.count("\n") == 1 and "ZeroDivisionError: deep inside" in err
    kept = Path(err.strip().rpartition(" is in ")[2])
    assert "def boom" in kept.read_text() or "in boom" in kept.read_text()


def test_a_run_folder_that_cannot_be_made_is_one_line(runs: Path, capsys: Any) -> None:
    runs.write_text("a file where the runs folder should be")
    code, _, err = call("run", capsys=capsys)
    assert code == 2 and "cannot write" in err and err.count("\n") == 1


# reading --------------------------------------------------------------------------------------------------------------


def test_status_in_both_forms(run: Run, capsys: Any) -> None:
    make_done(run, "doctor")
    code, out, _ = call("status", "--json", capsys=capsys)
    found = json.loads(out)
    assert code == 0 and found["run"] == "r" and found["conductor"] is False
    assert [stage["name"] for stage in found["stages"]] == list(pipeline.NAMES)
    first = found["stages"][0]
    assert {"name", "state", "step", "steps", "started", "seconds", "eta", "reason", "attempt"} <= set(first)
    assert (first["state"], first["seconds"], found["stages"][1]["state"]) == ("done", 3.0, "ready")
    _, out, _ = call("status", "--run", "r", capsys=capsys)
    assert "\x1b" not in out and re.search(r"^doctor +done +3\.0 s", out, re.M)
    run.set(["run.seed=5"])
    _, out, _ = call("status", capsys=capsys)
    assert "run.seed was 1337, is now 5" in out


def test_status_counts_no_steps_of_what_is_done(run: Run, capsys: Any) -> None:
    finished = ev.Finished(seconds=3.0, paths={}, artifacts={})
    write_attempt(run, "doctor", lines(started(run, "doctor"), ev.Progress(step=0, steps=2217), finished))
    write_attempt(
        run, "preflight", lines(started(run, "preflight"), ev.Progress(step=4, steps=9), ev.Failed(error="x"))
    )
    _, out, _ = call("status", capsys=capsys)
    assert "2217" not in out and re.search(r"^doctor +done +3\.0 s", out, re.M)
    assert re.search(r"^preflight +failed +4/9 ", out, re.M)


def test_runs_are_listed_broken_ones_too(run: Run, capsys: Any) -> None:
    broken = Run.create("broken", settings.load(environ={}))
    (broken.dir / "config.toml").write_text("[sftt]\n")
    code, out, _ = call("runs", capsys=capsys)
    assert code == 0 and "unknown table [sftt]" in out and re.search(r"^r +pocket +0/13", out, re.M)


def test_config_says_where_each_value_comes_from(run: Run, tmp_path: Path, capsys: Any) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text("[rl]\nsteps = 7\n")
    _, out, _ = call(
        "config", "--profile", "smoke", "--config", str(mine), "--set", "sft.lr=0.1", "--diff", capsys=capsys
    )
    assert re.search(r"^sft\.lr = 0\.1 +# --set", out, re.M) and re.search(
        r"^model\.depth = 2 +# profile smoke", out, re.M
    )
    assert re.search(rf"^rl\.steps = 7 +# {re.escape(str(mine))}", out, re.M) and "seq_len = 128" in out
    assert "data.source" not in out
    run.set(["sft.lr=0.3"])
    _, out, _ = call("config", "--run", "r", capsys=capsys)
    assert re.search(r"^sft\.lr = 0\.3 +# r/config\.toml", out, re.M) and re.search(
        r"^rl\.lr = [\d.]+ +# default", out, re.M
    )
    _, out, _ = call("config", "--template", capsys=capsys)
    assert out == settings.template()


def test_identity_rows_are_built_edited_signed_and_verified(tmp_path: Path, capsys: Any) -> None:
    file, facts = tmp_path / "me.jsonl", tmp_path / "facts.jsonl"
    facts.write_text('{"prompt": "Where is the key?", "answer": "Under the mat."}\n')
    new = ["--out", str(file), "--name", "Ada", "--maker", "the Byron family", "--facts", str(facts)]
    code, out, _ = call("identity", "build", *new, capsys=capsys)
    assert code == 0 and "name Ada, maker the Byron family" in out
    assert all(text in file.read_text() for text in ("Ada", "The Byron family", "Under the mat."))
    assert call("identity", "verify", str(file), capsys=capsys)[0] == 0
    file.write_text(file.read_text().replace("Ada", "Eve"))
    code, _, err = call("identity", "verify", str(file), capsys=capsys)
    assert code == 2 and "the file was changed" in err
    assert call("identity", "sign", str(file), "--name", "Eve", capsys=capsys)[0] == 0
    code, out, _ = call("identity", "verify", str(file), capsys=capsys)
    assert code == 0 and "rows verified, name Eve, maker the Byron family" in out
    code, out, err = call("identity", "sign", str(facts), capsys=capsys)
    assert code == 0 and "1 rows signed" in out and "wants at least 1,000 rows" in err
    for argv in (
        ["verify", str(tmp_path / "absent")],
        ["verify", "ftp://example.org/me.jsonl"],
        ["burn", str(file)],
        ["verify", str(file), "--name", "Ada"],
        ["build", str(file)],
        ["build", "--out", str(file), "--name", "{x}"],
    ):
        code, _, err = call("identity", *argv, capsys=capsys)
        assert code == 2 and err.startswith("error: ") and err.count("\n") == 1, argv


# running --------------------------------------------------------------------------------------------------------------


def test_plan_runs_what_it_needs_and_shows_the_outcome(runs: Path, capfd: Any) -> None:
    code = cli.invoke(["plan", "--run", "p", "--profile", "smoke", "--set", "model.depth=3"])
    out, _ = capfd.readouterr()
    assert code == 0 and Run.open("p").wishes().run.profile == "smoke"
    assert re.search(r"^model\.depth +4 +you set 3", out, re.M) and re.search(r"^ +bf16 +1,400 +<", out, re.M)
    assert re.search(r"^pretrain +12\.5 s +- +waiting", out, re.M)
    assert re.search(r"^preflight +- +(\d+\.\d s|\d+m \d\ds) +done", out, re.M)


def test_in_the_plan_what_is_at_work_at_the_same_time_counts_once(run: Run, capsys: Any) -> None:
    run.set(["data.source=climbmix", "data.shards=9", "data.first_shards=4"])
    (run.dir / "plan.json").write_text(json.dumps({"seconds": {"dataset": 100, "pretrain": 1000}}))
    for name, begin in (("dataset", 1000.0), ("pretrain", 1040.0)):
        done = lines(started(run, name), ev.Finished(seconds=60.0), start=begin, every=60.0)
        write_attempt(run, name, done)
    _, out, _ = call("plan", "--run", "r", capsys=capsys)
    assert re.search(r"^all +17m 30s +1m 40s", out, re.M)


def test_doctor_in_a_throwaway_run_leaves_nothing(runs: Path, capsys: Any) -> None:
    code, out, _ = call("doctor", capsys=capsys)
    assert code == 0 and re.search(r"^ok +python +3\.11", out, re.M) and not runs.exists()


def test_one_check_is_made_again_beside_the_stage(run: Run, capsys: Any) -> None:
    code, out, _ = call("doctor", "--run", "r", "--only", "python", "--only", "file locks", capsys=capsys)
    assert code == 0 and re.findall(r"^ok +(\w+)", out, re.M) == ["python", "file"]
    assert not run.attempts("doctor") and "python" in (recheck.folder(run.dir) / "events.jsonl").read_text()
    code, _, err = call("doctor", "--only", "weather", capsys=capsys)
    assert code == 2 and "unknown check 'weather': expected one of python" in err


def test_doctor_fails_when_a_check_fails(run: Run, capsys: Any) -> None:
    script(run, doctor={"check": "fail"})
    code, out, _ = call("doctor", "--run", "r", capsys=capsys)
    assert code == 1 and "fail" in out
    script(run, doctor={"error": "cannot look"})
    code, _, err = call("doctor", "--run", "r", capsys=capsys)
    assert code != 0 and "Traceback" not in err


@pytest.mark.slow
def test_a_whole_run_from_nothing(runs: Path) -> None:
    child = start("run", "--run", "whole", "--profile", "smoke", "--nproc", "1")
    out, err = child.communicate(timeout=240)
    assert child.returncode == 0, err
    assert "\x1b" not in out and len(re.findall(r" done in ", out)) == 13
    assert Run.open("whole").wishes().launch.nproc == 1
    again = start("resume", "--run", "whole")
    assert again.wait(60) == 0
    assert Run.open("whole").attempts("sft") == [1]


@pytest.mark.slow
def test_made_twice_at_once_it_is_one_run_with_two_followers(runs: Path) -> None:
    argv = ("run", "--run", "twice", "--profile", "smoke")
    children = [start(*argv) for _ in range(3)]
    for child in children:
        _, err = child.communicate(timeout=240)
        assert child.returncode == 0, err
    found = Run.open("twice")
    assert {tuple(found.attempts(name)) for name in pipeline.NAMES} == {(1,)}
    assert not (found.dir / "revisions").exists()


def test_whoever_comes_second_goes_on_with_the_run_of_the_first(runs: Path, monkeypatch: Any) -> None:
    create = Run.create

    def beaten(name: str, config: settings.Config) -> Run:
        create(name, settings.load("smoke", environ={}))
        return create(name, config)

    monkeypatch.setattr(Run, "create", beaten)
    found = cli.prepare("r", "smoke", None, ["sft.lr=0.5"])
    assert found.wishes().sft.lr == 0.5 and [path.name for path in (found.dir / "revisions").iterdir()] == ["001.toml"]
    with pytest.raises(UserError, match="profile 'smoke', which cannot change"):
        cli.prepare("q", "pocket", None, [])


@pytest.mark.slow
def test_failures_name_the_reason_and_whose_fault(run: Run) -> None:
    make_done(run, *(name for name in pipeline.NAMES if name != "report"))
    script(run, report={"error": "no ink"})
    child = start("run", "--run", "r")
    out, err = child.communicate(timeout=60)
    assert child.returncode == 2 and err == "error: report failed: no ink\n" and "report         failed: no ink" in out
    script(run, report={"bug": "boom"})
    child = start("resume")
    _, err = child.communicate(timeout=60)
    assert child.returncode == 1 and "RuntimeError: boom; see attempt-002.console.log" in err
    script(run, report={"exit": 3})
    child = start("run", "--run", "r", "--only", "report")
    _, err = child.communicate(timeout=60)
    assert child.returncode == 1 and "report crashed: exit code 3" in err
    script(run)
    assert start("resume").wait(60) == 0


def test_stale_is_refused_with_the_reason(run: Run, capsys: Any) -> None:
    forge_all(run)
    code, _, err = call("run", "--run", "r", "--set", "sft.lr=0.5", capsys=capsys)
    assert code == 2 and "sft (sft.lr was 0.8, is now 0.5)" in err and "--from sft" in err
    code, _, err = call("run", "--run", "r", "--profile", "smoke", capsys=capsys)
    assert code == 2 and "made with profile 'pocket'" in err


def test_a_config_file_on_an_existing_run_is_a_revision(run: Run, tmp_path: Path, capsys: Any) -> None:
    forge_all(run)
    mine = tmp_path / "mine.toml"
    mine.write_text("[chat]\ntemperature = 0.2\n")
    code, _, _ = call("run", "--run", "r", "--config", str(mine), "--set", "chat.top_k=3", capsys=capsys)
    assert code == 0 and run.wishes().chat.temperature == 0.2 and run.wishes().chat.top_k == 3
    mine.write_text('[run]\nprofile = "smoke"\n')
    code, _, err = call("run", "--run", "r", "--config", str(mine), capsys=capsys)
    assert code == 2 and "cannot change" in err


def test_another_number_of_ranks_makes_nothing_stale(run: Run, capsys: Any) -> None:
    forge_all(run)
    code, out, err = call("run", "--run", "r", "--nproc", "2", capsys=capsys)
    assert code == 0 and "done: 13 of 13" in out and err == "" and run.wishes().launch.nproc == 2
    assert {tuple(run.attempts(name)) for name in pipeline.NAMES} == {(1,)}


@pytest.mark.slow
def test_only_and_from_make_again(run: Run) -> None:
    forge_all(run)
    assert start("run", "--run", "r", "--only", "report").wait(60) == 0
    assert run.attempts("report") == [1, 2] and run.attempts("chat_eval") == [1]
    assert start("run", "--run", "r", "--from", "chat_eval", "--fresh").wait(60) == 0
    assert run.attempts("report") == [1, 2, 3] and run.attempts("chat_eval") == [1, 2] and run.attempts("rl") == [1]


def following(run: Run, do: dict[str, Any]) -> subprocess.Popen[str]:
    make_done(run, *(name for name in pipeline.NAMES if name != "report"))
    script(run, report=do)
    child = start("run", "--run", "r")
    until(lambda: run.status("report").phase == "train", what="report starts")
    return child


def joined(run: Run) -> subprocess.Popen[str]:
    """One who asks to go on with what already runs; returns when the conductor has heard it."""
    child = start("resume", "--run", "r")
    assert child.stdout and "report" in child.stdout.readline()
    until(lambda: not any((run.dir / "conductor" / "requests").glob("*.json")))
    return child


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupting_saves_and_exits_3(run: Run, number: int) -> None:
    child = following(run, {"steps": 100_000, "sleep": 0.01})
    child.send_signal(number)
    out, _ = child.communicate(timeout=60)
    assert child.returncode == 3 and "go on with: picollm resume --run r" in out
    assert state(run, "report") == "stopped" and run.status("report").step > 0


def test_interrupting_twice_kills(run: Run) -> None:
    child = following(run, {"steps": 3, "deaf": True})
    child.send_signal(signal.SIGINT)
    until(lambda: state(run, "report") == "stopping")
    child.send_signal(signal.SIGINT)
    out, _ = child.communicate(timeout=60)
    assert child.returncode == 3 and "killing: report" in out and state(run, "report") == "crashed"


def test_hanging_up_ends_only_the_follower(run: Run) -> None:
    child = following(run, {"hold": True})
    child.send_signal(signal.SIGHUP)
    assert child.wait(60) == 129 and state(run, "report") == "running"
    release(run, "report")
    until(lambda: state(run, "report") == "done")


def test_a_closed_pipe_ends_only_the_follower_and_silently(run: Run) -> None:
    child = following(run, {"hold": True})
    assert child.stdout and child.stderr
    child.stdout.close()
    release(run, "report")
    until(lambda: state(run, "report") == "done")
    assert child.wait(60) == 141 and child.stderr.read() == ""


def test_stop_from_elsewhere_ends_the_follower_with_3(run: Run, capsys: Any) -> None:
    child = following(run, {"steps": 100_000, "sleep": 0.01})
    code, out, _ = call("stop", capsys=capsys)
    assert code == 0 and "asked to save and stop: report" in out
    _, err = child.communicate(timeout=60)
    assert child.returncode == 3 and "stopped" in err
    assert call("stop", capsys=capsys)[1] == "nothing runs\n"


@pytest.mark.parametrize("do, code, said", [({"bug": "boom"}, 1, "boom"), ({"error": "no ink"}, 2, "no ink")])
def test_coming_late_one_still_hears_how_it_ended(run: Run, do: dict[str, Any], code: int, said: str) -> None:
    first = following(run, {"hold": True, "last": do})
    late = joined(run)
    release(run, "report")
    _, err = late.communicate(timeout=60)
    assert late.returncode == code and err.startswith("error: report failed: ") and said in err
    assert first.wait(60) == code and run.attempts("report") == [1]


def test_called_off_while_the_conductor_boots_is_a_stop(run: Run, monkeypatch: Any, capsys: Any) -> None:
    """The request is withdrawn before anybody has read it; the conductor then finds nothing to do."""
    forge_all(run)
    spawned = conductor.launch.spawn_detached

    def stop_first(argv: list[str], console: Path) -> Any:
        assert conductor.stop(run) == []
        return spawned(argv, console)

    monkeypatch.setattr(conductor.launch, "spawn_detached", stop_first)
    run.stage_dir("report").rename(run.dir / "aside")
    code, _, err = call("run", "--run", "r", capsys=capsys)
    assert code == 3 and "stopped; go on with: picollm resume --run r" in err
    assert run.attempts("report") == []


@pytest.mark.slow
def test_the_follower_replaces_a_killed_conductor(run: Run) -> None:
    child = following(run, {"hold": True})
    from tests.run.test_conductor import conductor_pid, words

    os.kill(conductor_pid(run), signal.SIGKILL)
    until(lambda: words(run).count("started") == 2, what="another one")
    release(run, "report")
    out, err = child.communicate(timeout=60)
    assert child.returncode == 0, err
    assert "another one takes over" in out and run.attempts("report") == [1]


def test_a_conductor_that_comes_as_another_leaves_is_no_reason_to_ask_again(run: Run, monkeypatch: Any) -> None:
    """Each of two who ask starts one; the second may find that all is over, and says so."""
    make_done(run, *(name for name in pipeline.NAMES if name != "report"))
    asked: list[conductor.Request] = []
    monkeypatch.setattr(conductor, "ask", lambda run, request: asked.append(request))
    says = iter([("started",), ("finished",)])

    def is_held(path: Path) -> bool:
        """Looked at before the second one took it; what that one says stands there as soon as we have looked."""
        if path == run.conductor_lock:
            for what in next(says, ()):
                event_file.append(run.conductor_events, ev.Conductor(what=what))
        return False

    follower = cli_follow.Follower(run, conductor.Request(stages=["report"]))
    write_attempt(run, "report", lines(started(run, "report"), ev.Failed(error="no ink", code=2)))
    event_file.append(run.conductor_events, ev.Conductor(what="failed"))
    monkeypatch.setattr(lease, "is_held", is_held)
    assert follower.follow() == 2 and asked == [conductor.Request(stages=["report"])]


def test_one_stage_asked_for_while_another_runs_comes_next_and_is_waited_for_alone(run: Run) -> None:
    make_done(run, *(name for name in pipeline.NAMES if name not in ("chat_eval", "report")))
    script(run, chat_eval={"hold": True}, report={"hold": True})
    first = start("run", "--run", "r")
    until(lambda: run.status("chat_eval").step)
    other = start("run", "--run", "r", "--only", "tokenizer_eval")
    queues = lambda: [e.stages for e in event_file.read_events(run.conductor_events) if isinstance(e, ev.Queue)]  # noqa: E731
    until(lambda: any("tokenizer_eval" in stages for stages in queues()), what="the conductor hears it")
    release(run, "chat_eval")
    out, err = other.communicate(timeout=60)
    assert "done: 1 of 1 stages" in out and err == ""
    assert run.attempts("tokenizer_eval") == [1, 2]
    until(lambda: state(run, "report") == "running")
    conductor.stop(run)
    assert first.wait(60) == 3


@pytest.mark.slow
def test_a_second_follower_joins(run: Run) -> None:
    child = following(run, {"hold": True})
    other = joined(run)
    release(run, "report")
    assert child.wait(60) == 0 and other.wait(60) == 0 and run.attempts("report") == [1]


def test_progress_is_said_now_and_then(run: Run, capsys: Any, monkeypatch: Any) -> None:
    wanted = r"report +train  step \d+/100000  loss 0\.\d{4}  1,000 tok/s  .* left"
    real = cli_follow.Follower._progress

    def progress(follower: cli_follow.Follower, status: StageStatus) -> str:
        if re.search(wanted, text := real(follower, status)):
            release(run, "report")
        return text

    monkeypatch.setattr(cli_follow.Follower, "_progress", progress)
    monkeypatch.setattr(cli_follow, "PROGRESS_EVERY_S", 0.3)
    make_done(run, *(name for name in pipeline.NAMES if name != "report"))
    script(run, report={"steps": 100_000, "sleep": 0.02, "cut": True})
    code, out, _ = call("run", "--run", "r", capsys=capsys)
    assert code == 0 and re.search(wanted, out)


# talking --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def talking(run: Run) -> Run:
    (run.dir.parent.parent / "fakes" / "stages" / "serve.py").write_text(SERVER)
    (run.dir / "base_checkpoints").mkdir()
    return run


def test_chat_needs_a_model(run: Run, capsys: Any) -> None:
    code, _, err = call("chat", "-p", "hi", capsys=capsys)
    assert code == 2 and "has no model yet" in err and not (run.dir / "jobs").exists()
    for command in ("serve", "web"):
        code, _, err = call(command, capsys=capsys)
        assert code == 2 and err == "error: run 'r' has no model yet; make one with: picollm run --run r\n"


def test_one_answer(talking: Run, capsys: Any) -> None:
    code, out, _ = call("chat", "-p", "hi", "--seed", "7", "--temperature", "0", "--top-k", "2", capsys=capsys)
    assert (code, out) == (0, "You said hi 7 0.0 2\n")
    code, out, _ = call("chat", "-p", "hi", "--model", "base", capsys=capsys)
    assert out == "You said hi 1 0.7 50\n"
    for model, said in (("rl", "not made yet; there is sft, base"), ("gpt", "unknown model")):
        code, _, err = call("chat", "-p", "hi", "--model", model, capsys=capsys)
        assert code == 2 and said in err
    assert call("stop", "--serving", capsys=capsys)[1].endswith("inference process ended\n")
    assert not lease.is_held(talking.dir / "jobs" / "serve" / "lock")


def test_a_conversation(talking: Run) -> None:
    child = start("chat", stdin=subprocess.PIPE)
    out, err = child.communicate("one\n\ntwo\n/new\nthree\n/quit\nnever\n", timeout=60)
    assert child.returncode == 0, err
    assert out.splitlines() == [f"You said {word} 1 0.7 50" for word in ("one", "two", "three")]


def test_compare_shows_base_and_chat_with_measures(talking: Run, capsys: Any) -> None:
    (talking.dir / "prompts.txt").write_text("# mine\nfirst\n\nsecond\n")
    code, out, _ = call("compare", capsys=capsys)
    assert code == 0 and re.findall(r"^### (.*)$", out, re.M) == ["first", "second"]
    assert out.count("[base] You said") == out.count("[sft] You said") == 2
    assert len(re.findall(r"^    6 words, \d+ characters, repetition 0%, ended by itself", out, re.M)) == 2
    assert out.count("cut off") == 2
