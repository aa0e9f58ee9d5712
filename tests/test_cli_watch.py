"""`picollm watch`: plain lines of what happens, until the run rests."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from picollm import cli, cli_watch
from picollm.run import events as ev
from tests.fixtures import make_runs


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PICOLLM_RUNS", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("kind", "code", "words"),
    [
        ("finished", 0, "done: 13 of 13 stages"),
        ("failed", 2, "point data.source at some text"),
        ("crashed", 1, "SFT crashed; go on with: picollm resume --run crashed"),
        ("stopped", 3, "RL stopped, step 16 of 40"),
        ("stale", 3, "sft.lr was 0.8, is now 0.123"),
        ("empty", 3, "start it with: picollm run --run empty"),
    ],
)
def test_how_a_run_rests_is_said_and_is_the_exit_code(kind, code, words, runs, capsys) -> None:
    make_runs.make(runs, kind)
    assert cli.invoke(["watch", "--run", kind]) == code
    said = capsys.readouterr().out
    assert words in said and "\x1b" not in said
    assert all(re.match(r"\d\d:\d\d:\d\d  \S", line) for line in said.splitlines())


def test_from_the_beginning_it_tells_everything_once_and_in_order(runs, capsys) -> None:
    make_runs.make(runs, "stopped")
    assert cli.invoke(["watch", "--run", "stopped", "--all", "--every", "30"]) == 3
    said = [line[10:] for line in capsys.readouterr().out.splitlines()]
    wanted = ["Doctor: started", "Doctor: check network warn: no route to the hub, wanted only for profiles that "
              "download; to do: nothing to do for profile pocket", "Pretrain: started", "Pretrain: step 1 of 400",
              "Pretrain: evaluation val at step 50: bpb", "Pretrain: checkpoint of step 100, 24.0 MiB",
              "Pretrain: step 400 of 400", "Pretrain: done in 1m 36s, loss 2.11",
              "RL: stopped and saved at step 16"]  # fmt: skip
    places = [next(number for number, line in enumerate(said) if line.startswith(words)) for words in wanted]
    assert places == sorted(places)
    assert said.count("Pretrain: started") == 1
    assert sum(line.startswith("Pretrain: step") for line in said) == 5  # the first, every 30 s of 96, the last


def test_what_happens_while_it_watches(runs) -> None:
    run = make_runs.make(runs, "running")
    lock = make_runs.hold(run, "pretrain")
    command = [sys.executable, "-m", "picollm.cli", "watch", "--run", "running", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watcher:
        assert watcher.stdout is not None
        assert "Pretrain running, step 160 of 400" in json.loads(watcher.stdout.readline())["text"]
        script = make_runs.Script(run, "pretrain", 1, time.time())
        script.seq = 10_000
        script.say(ev.Metrics(step=161, values={"loss": 2.5, "tok_s": 41_000.0, "step_s": 2.0}))
        script.say(ev.Progress(step=161, steps=400))
        script.say(ev.Warning(text="training far slower than planned"))
        script.say(ev.Failed(error="no space left", hint="free some", code=1))
        with open(run.events_file("pretrain", 1), "ab") as file:
            file.write(b"\n".join(script.lines) + b"\n")
        lock.release()
        lines = [json.loads(line) for line in watcher.stdout]
    assert watcher.returncode == 1
    assert [line["type"] for line in lines] == ["progress", "warning", "failed", "end"]
    assert lines[0]["text"] == "step 161 of 400, loss 2.5, 41,000 tokens per second, 7m 58s left"
    assert lines[0]["metrics"]["loss"] == 2.5 and lines[0]["step"] == 161
    assert lines[2]["error"] == "no space left" and lines[3]["code"] == 1


def test_a_stage_alone(runs, capsys) -> None:
    make_runs.make(runs, "failed")
    assert cli.invoke(["watch", "--run", "failed", "--stage", "doctor"]) == 0
    assert cli.invoke(["watch", "--run", "failed", "--stage", "nothing"]) == 2
    assert "'nothing'" in capsys.readouterr().err


def test_numbers_that_are_none() -> None:
    progress = ev.Progress(step=3, steps=9)
    assert cli_watch.sentence(progress, {"loss": None}) == "step 3 of 9"
    evaluation = ev.Eval(name="val", step=0, values={"bpb": None, "accuracy": 0.5, "accuracy_low": 0.1, "low": 0.1})
    assert cli_watch.sentence(evaluation, {}) == "evaluation val: bpb not a number, accuracy 0.5"
