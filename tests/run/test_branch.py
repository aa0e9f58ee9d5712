"""A run on another one's base, with fake stages (conftest.py): real processes, folders and events."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from picollm import cli, cli_show
from picollm.run import conductor, failures, pipeline
from picollm.run import config as settings
from picollm.run import events as ev
from picollm.run.branch import branch
from picollm.run.errors import UserError
from picollm.run.folder import Run
from tests.run.conftest import lines, make_done, script, started, state, until, write_attempt

BEFORE = pipeline.NAMES[: pipeline.NAMES.index("sft")]


@pytest.fixture
def base(run: Run) -> Run:
    """All is done up to midtraining, which has a checkpoint; the plan filled in the depth."""
    plan = {"values": {"model.depth": 4, "pretrain.steps": 50, "sft.steps": 9}, "seconds": {}}
    (run.dir / "plan.json").write_text(json.dumps(plan))
    make_done(run, *BEFORE)
    (run.dir / "stages/identity/identity.jsonl").write_text("{}\n")
    a_checkpoint(run, "midtrain", "mid_checkpoints/step-000009")
    return run


def a_checkpoint(run: Run, name: str, place: str, tokenizer: str = "hash of tokenizer") -> Path:
    folder = run.dir / place
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights of " + name.encode())
    (folder / "meta.json").write_text(json.dumps({"tokenizer": tokenizer}))
    finished = run.finished("tokenizer")
    assert finished is not None
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    done = ev.Finished(seconds=3.0, paths={"checkpoint": place}, artifacts={"checkpoint": digest})
    write_attempt(run, name, lines(started(run, name), done))
    return folder


@pytest.fixture
def with_tokenizer(base: Run) -> Run:
    """The tokenizer's artifact has the name under which checkpoints know it."""
    done = ev.Finished(
        seconds=1.0, paths={"made": "made/tokenizer"}, artifacts={"tokenizer": "hash of tokenizer", "shards": "s"}
    )
    write_attempt(base, "tokenizer", lines(started(base, "tokenizer"), done))
    for name in BEFORE[BEFORE.index("tokenizer_eval") : -1]:
        make_done(base, name)
    shutil.rmtree(base.dir / "mid_checkpoints")
    a_checkpoint(base, "midtrain", "mid_checkpoints/step-000009")
    return base


def changed(*sets: str) -> dict[str, Any]:
    return settings.parse_sets(sets)


def states(run: Run) -> dict[str, str]:
    return {status.name: status.state for status in run.statuses()}


def test_what_came_before_is_done_and_says_from_where(with_tokenizer: Run) -> None:
    new = branch(with_tokenizer, "n", "sft", changed("sft.lr=0.5"))
    found = states(new)
    assert [name for name in pipeline.NAMES if found[name] == "done"] == list(BEFORE[1:])
    assert found["doctor"] == found["sft"] == "ready" and found["rl"] == "waiting"
    assert {new.status(name).reason for name in BEFORE[1:]} == {"from r"}
    assert new.wishes().sft.lr == 0.5 and new.config().model.depth == 4 and new.config().sft.steps == 9
    taken = new.origin()
    assert taken is not None and (taken.run, taken.stage, taken.dir) == ("r", "sft", str(with_tokenizer.dir))
    done = with_tokenizer.finished("midtrain")
    assert done is not None and taken.stages["midtrain"].artifacts == done.artifacts
    assert (new.dir / "stages/identity/identity.jsonl").exists()
    assert '"reason": "from r"' in cli_show.status_json(new) and "from r" in cli_show.status_table(new)
    assert {path.name for path in new.dir.parent.iterdir()} == {"r", "n"}


def test_what_the_report_shows_of_the_stages_comes_along(with_tokenizer: Run) -> None:
    (with_tokenizer.dir / "samples/pretrain").mkdir(parents=True)
    (with_tokenizer.dir / "samples/pretrain/step-000009.jsonl").write_text("{}\n")
    make_done(with_tokenizer, "sft", "rl", "chat_eval")
    kept = failures.write(with_tokenizer, "sft", "spelling", [{"index": 0}])
    early, late = branch(with_tokenizer, "early", "sft", {}), branch(with_tokenizer, "late", "report", {})
    assert failures.kept(early) == {} and failures.read(failures.kept(late)["sft"]["spelling"]) == [{"index": 0}]
    assert (early.dir / "samples/pretrain/step-000009.jsonl").read_text() == "{}\n"
    kept.unlink()
    assert failures.kept(late)


def test_the_new_run_lives_without_the_other_one(with_tokenizer: Run) -> None:
    new = branch(with_tokenizer, "n", "sft", {})
    weights = "mid_checkpoints/step-000009/model.safetensors"
    assert os.stat(new.dir / weights).st_ino == os.stat(with_tokenizer.dir / weights).st_ino
    rows = "stages/identity/identity.jsonl"
    (with_tokenizer.dir / rows).write_text("edited in place")
    assert (new.dir / rows).read_text() == "{}\n"
    before = states(new)
    shutil.rmtree(with_tokenizer.dir)
    assert states(new) == before and (new.dir / weights).read_bytes() == b"weights of midtrain"
    with pytest.raises(UserError, match=r"no run 'r' in .*\(runs there: n\)"):
        Run.open("r")


def test_on_another_disk_checkpoints_are_copied(with_tokenizer: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: object, target: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    new = branch(with_tokenizer, "n", "sft", {})
    weights = "mid_checkpoints/step-000009/model.safetensors"
    assert os.stat(new.dir / weights).st_ino != os.stat(with_tokenizer.dir / weights).st_ino
    assert state(new, "midtrain") == "done"


@pytest.mark.parametrize(
    ("stage", "sets", "said"),
    [
        ("sft", ["midtrain.lr=0.5"], r"midtrain would be stale: midtrain\.lr was 1\.0, is now 0\.5; .*--from midtrain"),
        ("rl", [], r"'sft' is ready, and 'rl' is made from what it makes"),
        ("sft", ["run.profile=smoke"], r"r was made with profile 'pocket'"),
        ("sft", ["tokenizer.vocab_size=900"], r"tokenizer would be stale: .*--from tokenizer"),
        ("nonsense", [], r"unknown stage 'nonsense'"),
    ],
)
def test_what_cannot_be_taken_over_is_refused(with_tokenizer: Run, stage: str, sets: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        branch(with_tokenizer, "n", stage, changed(*sets))
    assert [path.name for path in with_tokenizer.dir.parent.iterdir()] == ["r"]


def test_what_only_comes_before_is_left_to_be_made(with_tokenizer: Run) -> None:
    with_tokenizer.set(["base_eval.sample_tokens=9"])
    assert state(with_tokenizer, "base_eval") == "stale"
    new = branch(with_tokenizer, "n", "sft", {})
    assert states(new)["base_eval"] == "ready" and states(new)["midtrain"] == "done"


def test_two_runs_of_one_name_are_refused(with_tokenizer: Run) -> None:
    branch(with_tokenizer, "n", "sft", {})
    with pytest.raises(UserError, match="run 'n' exists already"):
        branch(with_tokenizer, "n", "midtrain", {})


def test_damaged_weights_are_refused(with_tokenizer: Run) -> None:
    (with_tokenizer.dir / "mid_checkpoints/step-000009/model.safetensors").write_bytes(b"something else")
    with pytest.raises(UserError, match=r"the weights of 'midtrain' have sha256 .* make that stage again"):
        branch(with_tokenizer, "n", "sft", {})


def test_another_tokenizer_is_refused(with_tokenizer: Run) -> None:
    shutil.rmtree(with_tokenizer.dir / "mid_checkpoints")
    a_checkpoint(with_tokenizer, "midtrain", "mid_checkpoints/step-000009", tokenizer="another")
    with pytest.raises(UserError, match=r"'midtrain' was trained with another tokenizer \(another\)"):
        branch(with_tokenizer, "n", "sft", {})


def test_a_newer_format_is_refused(with_tokenizer: Run, capsys: Any) -> None:
    (with_tokenizer.dir / "format").write_text("7\n")
    assert cli.invoke(["run", "--from", "sft", "--base", "r"]) == 2
    assert "run format '7' is newer" in capsys.readouterr().err


def test_settings_of_the_plan_leave_it_to_be_made_and_keep_the_sizes(with_tokenizer: Run) -> None:
    new = branch(with_tokenizer, "n", "sft", changed("sft.rows=5"))
    found = states(new)
    assert found["preflight"] == "waiting" and not (new.dir / "plan.json").exists()
    assert found["pretrain"] == found["midtrain"] == "done"
    assert (new.wishes().model.depth, new.wishes().pretrain.steps, new.wishes().sft.steps) == (4, 50, 0)


def test_a_stage_made_again_is_ones_own(with_tokenizer: Run) -> None:
    new = branch(with_tokenizer, "n", "sft", {})
    done = ev.Finished(seconds=1.0, artifacts={"checkpoint": "other"})
    write_attempt(new, "midtrain", lines(started(new, "midtrain", 2), done), attempt=2)
    assert new.inherited("midtrain") is None and new.inherited("pretrain") is not None
    assert new.status("midtrain").reason == ""


def test_a_run_on_a_run_on_a_base_names_who_made_it(with_tokenizer: Run) -> None:
    branch(with_tokenizer, "second", "sft", {})
    third = branch(Run.open("second"), "third", "midtrain", {})
    taken = third.origin()
    assert taken is not None and taken.run == "second" and {one.run for one in taken.stages.values()} == {"r"}


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--base", "r"], "--base needs --from STAGE"),
        (["--base", "r", "--from", "sft", "--profile", "smoke"], "--base brings its own profile"),
        (["--base", "none", "--from", "sft"], "no run 'none'"),
    ],
)
def test_the_command_line_says_what_is_missing(with_tokenizer: Run, capsys: Any, argv: list[str], said: str) -> None:
    assert cli.invoke(["run", *argv]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.slow
def test_it_is_run_to_its_end_and_only_what_is_new_is_made(run: Run, capfd: Any) -> None:
    script(run)
    assert cli.invoke(["run", "--run", "r"]) == 0
    capfd.readouterr()
    assert cli.invoke(["run", "--from", "sft", "--base", str(run.dir), "--set", "sft.lr=0.3"]) == 0
    out = capfd.readouterr().out
    assert "run r-sft: everything before sft is what r made" in out
    new = Run.open("r-sft")
    until(lambda: set(states(new).values()) == {"done"}, what="all stages")
    made = [name for name in pipeline.NAMES if not new.inherited(name)]
    assert made == ["doctor", "sft", "rl", "chat_eval", "report"]
    conductor.plan_request(new, list(pipeline.NAMES))  # nothing is stale
