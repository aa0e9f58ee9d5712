"""Runs renamed, archived, restored, deleted, copied; what is at work is refused; all runs at a glance."""

from __future__ import annotations

import os
import shutil
import threading
import time
from pathlib import Path

import pytest

from picollm.run import knowledge, lease, overview, pipeline, serving, shelf
from picollm.run.errors import UserError
from picollm.run.folder import Run
from tests.fixtures import make_runs
from tests.run.conftest import until


@pytest.fixture
def runs(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(made, tmp_path / "runs")
    monkeypatch.setenv("PICOLLM_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


def names() -> list[str]:
    return sorted(run.name for run in Run.all())


def test_rename_keeps_everything(runs: Path) -> None:
    before = [(status.name, status.state) for status in Run(runs / "finished").statuses()]
    new = shelf.rename(Run(runs / "finished"), "better")
    assert not (runs / "finished").exists() and new.dir == runs / "better"
    assert [(status.name, status.state) for status in new.statuses()] == before
    with pytest.raises(UserError, match="exists already"):
        shelf.rename(new, "failed")
    with pytest.raises(UserError, match="expected letters"):
        shelf.rename(new, "two words")
    assert shelf.rename(new, "better") is new


def test_archive_and_restore(runs: Path) -> None:
    kept = shelf.archive(Run(runs / "failed"))
    assert "failed" not in names() and shelf.is_archived(kept)
    assert [run.name for run in shelf.archived()] == ["failed"]
    with pytest.raises(UserError, match="archived already"):
        shelf.archive(kept)
    shelf.copy(Run(runs / "empty"), "failed", {})
    with pytest.raises(UserError, match="exists already"):
        shelf.restore(kept)
    shelf.delete(Run(runs / "failed"))
    assert shelf.restore(shelf.find_archived("failed")).status("tokenizer").state == "failed"
    assert "failed" in names()
    with pytest.raises(UserError, match="it is empty"):
        shelf.find_archived("failed")


def test_restored_where_something_was_written_meanwhile(runs: Path) -> None:
    kept = shelf.archive(Run(runs / "finished"))
    stub = runs / "finished" / "conversations" / "a.json"
    stub.parent.mkdir(parents=True)
    stub.write_text("{}")
    back = shelf.restore(kept)
    [aside] = runs.glob("finished.aside-*")
    assert back.exists() and (aside / "conversations" / "a.json").read_text() == "{}" and not stub.exists()
    assert str(aside) in shelf.set_aside(back) and shelf.set_aside(Run(runs / "failed")) == ""


def test_who_has_an_archived_run_open_does_not_make_its_folder_anew(runs: Path) -> None:
    run = Run(runs / "finished")
    kept = shelf.archive(run)
    for write in (lambda: shelf.write_notes(run, "late"), lambda: serving.ensure_serving(run)):
        with pytest.raises(UserError, match="renamed, archived or deleted"):
            write()
    assert not run.dir.exists()
    starting = lease.Lock(serving.serve_folder(shelf.restore(kept)) / "starting")
    assert starting.exclusive()
    with pytest.raises(UserError, match="inference process is starting"):
        shelf.archive(run)
    starting.release()
    shelf.archive(run)


@pytest.mark.parametrize("what", ["stage", "conductor", "job"])
def test_what_is_at_work_is_refused(what: str, runs: Path) -> None:
    run = Run(runs / "finished")
    file = {"stage": run.lock_file("sft"), "conductor": run.conductor_lock, "job": run.dir / "jobs/export/lock"}[what]
    lock = lease.Lock(file)
    assert lock.exclusive()
    try:
        for act in (shelf.archive, shelf.delete, lambda r: shelf.rename(r, "other")):
            with pytest.raises(UserError, match=r"at work \((sft|its conductor|job export)\)"):
                act(run)
        assert run.exists() and shelf.at_work(run)
    finally:
        lock.release()
    assert shelf.at_work(run) == ""
    shelf.archive(run)


def test_delete_says_what_goes_and_leaves_what_is_shared(runs: Path) -> None:
    run = Run(runs / "finished")
    weights = run.dir / "base_checkpoints" / "step-1" / "model.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"w" * 5000)
    other = runs / "stale" / "model.safetensors"
    os.link(weights, other)
    outside = runs.parent / "outside"
    outside.write_bytes(b"mine")
    (run.dir / "link").symlink_to(outside)
    parts = {part.name: part for part in shelf.contents(run)}
    assert (parts["base_checkpoints/"].bytes, parts["base_checkpoints/"].shared) == (5000, 5000)
    assert list(parts) == [part.name for part in sorted(parts.values(), key=lambda p: (-p.bytes, p.name))]
    freed = shelf.delete(run)
    assert freed == sum(part.bytes - part.shared for part in parts.values())
    assert other.read_bytes() == b"w" * 5000 and outside.read_bytes() == b"mine"
    assert "finished" not in names() and not list(runs.glob(".*"))


def test_what_a_killed_deletion_left_is_no_run_and_goes_with_the_next(runs: Path) -> None:
    left = runs / f"{shelf.DELETING}old-1-2"
    (left / "stages").mkdir(parents=True)
    assert f"{shelf.DELETING}old-1-2" not in names()
    shelf.delete(Run(runs / "empty"))
    assert not left.exists()


def test_a_link_is_not_followed(runs: Path) -> None:
    (runs / "linked").symlink_to(runs / "finished")
    with pytest.raises(UserError, match="is a link to"):
        shelf.delete(Run(runs / "linked"))
    assert (runs / "finished" / "config.toml").exists()


def test_a_copy_has_the_settings_and_nothing_made(runs: Path) -> None:
    run = Run(runs / "stale")
    (run.dir / "prompts.txt").write_text("My own prompt\n")
    new = shelf.copy(run, "again", {"run.seed": 7})
    assert new.wishes().run.seed == 7 and new.wishes().sft.lr == run.wishes().sft.lr
    assert new.prompts() == ["My own prompt"]
    assert not (new.dir / "stages").exists()


def test_notes(runs: Path) -> None:
    run = Run(runs / "finished")
    assert shelf.notes(run) == ""
    shelf.write_notes(run, "  lower rate\nthan before\n")
    assert shelf.notes(run) == "lower rate\nthan before"
    assert overview.summarise(run).note == "lower rate"
    shelf.write_notes(run, " \n")
    assert not (run.dir / "notes.md").exists()
    with pytest.raises(UserError, match="at most"):
        shelf.write_notes(run, "x" * 70_000)


def test_summaries_say_where_runs_stand(runs: Path) -> None:
    shutil.rmtree(runs / "running")  # a copy has been silent for as long as the tests take
    make_runs.make(runs, "running")
    held = [make_runs.hold(Run(runs / "running"), "pretrain"), make_runs.hold(Run(runs / "stalled"), "midtrain")]
    (runs / "failed" / "config.toml").write_text("[sft]\nlr = 'fast'\n")
    seen = {summary.name: summary for summary in overview.Overview().look(60)[0]}
    for lock in held:
        lock.release()
    found = {name: (summary.state, summary.stage) for name, summary in seen.items()}
    assert found["running"] == ("running", "pretrain") and (seen["running"].step, seen["running"].steps) == (160, 400)
    assert found["stalled"] == ("stalled", "midtrain")
    assert found["crashed"] == ("crashed", "sft") and "SIGKILL" in seen["crashed"].reason
    assert found["stopped"] == ("stopped", "rl")
    assert found["stale"] == ("stale", "sft")
    assert found["finished"] == ("done", "") and seen["finished"].done == 13
    assert found["empty"] == ("ready", "doctor")
    assert "failed/config.toml" in seen["failed"].problem
    assert 1 < (seen["finished"].loss or 0) < 5 and seen["finished"].bpb == pytest.approx(1.52)


def test_only_what_changed_is_read_again(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    real = overview.summarise
    monkeypatch.setattr(overview, "summarise", lambda run, touched: read.append(run.name) or real(run, touched))
    all_of_them = overview.Overview(archived=True)
    assert all_of_them.look(60)[1]
    assert len(read) == len(make_runs.KINDS)
    read.clear()
    lock = make_runs.hold(Run(runs / "running"), "pretrain")
    time.sleep(0.02)
    Run(runs / "stale").set(["sft.lr=0.8"])
    shelf.write_notes(Run(runs / "empty"), "a note")
    found = {summary.name: summary for summary in all_of_them.look(60)[0]}
    lock.release()
    assert sorted(read) == ["empty", "running", "stale", "stalled"] or sorted(read) == ["empty", "stale"]
    assert found["stale"].state == "done" and found["empty"].note == "a note"
    shelf.archive(Run(runs / "empty"))
    assert [summary.archived for summary in all_of_them.look(60)[0] if summary.name == "empty"] == [True]


def test_a_small_budget_says_what_it_has_not_read(runs: Path) -> None:
    few = overview.Overview()
    found, complete = few.look(0)
    assert not complete and len(found) == len(make_runs.KINDS) and not any(summary.read for summary in found)
    until(lambda: few.look(0.02)[1])
    found, complete = few.look(60)
    assert complete and all(summary.read for summary in found)


def test_a_run_that_goes_while_it_is_read(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread deletes and restores while another one looks: no exception, and in the end all are there."""
    monkeypatch.setattr(shelf, "PATIENCE_S", 60.0)  # whoever looks may have to wait for a core with a lock in hand
    monkeypatch.setattr(lease, "ASK_PATIENCE_S", 60.0)
    over = threading.Event()

    def churn() -> None:
        while not over.is_set():
            shelf.restore(shelf.archive(Run(runs / "finished")))

    thread = threading.Thread(target=churn)
    thread.start()
    seen = overview.Overview()
    try:
        for _ in range(20):
            seen.look(1)
    finally:
        over.set()
        thread.join()
    assert "finished" in {summary.name for summary in seen.look(60)[0]}


def test_every_stage_is_explained() -> None:
    assert set(knowledge.KNOWLEDGE) == set(pipeline.NAMES)
    for name in pipeline.NAMES:
        known = knowledge.knowledge(name)
        assert known.insight.count(". ") >= 1 and known.insight.endswith(".") and known.makes.endswith(".")
        assert set(known.typical) == {"pocket", "speedrun"} and len(known.trouble) >= 2
    assert len({known.insight for known in knowledge.KNOWLEDGE.values()}) == len(pipeline.NAMES)
