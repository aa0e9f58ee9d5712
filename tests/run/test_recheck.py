"""Checks made again: by their own process, beside the pipeline, and put together with what was found before."""

from __future__ import annotations

from pathlib import Path

import pytest

from picollm.run import config as settings
from picollm.run import event_file, recheck
from picollm.run import events as ev
from picollm.run.checks import CHECKS
from picollm.run.errors import UserError
from picollm.run.folder import Run


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("PICOLLM_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("PICOLLM_HOME", str(tmp_path / "home"))
    return Run.create("r", settings.load("pocket", environ={}))


def found(run_dir: Path, alive: bool = False) -> recheck.Found:
    return recheck.newest([], event_file.read_events(recheck.folder(run_dir) / "events.jsonl"), alive)


def test_one_check_in_a_process_touches_no_stage(run: Run) -> None:
    before = [status.state for status in run.statuses()]
    assert recheck.start(run.dir, ["python", "file locks"]).wait(60) == 0
    assert [(check.name, check.status) for check in found(run.dir).checks] == [("python", "ok"), ("file locks", "ok")]
    assert [status.state for status in run.statuses()] == before and not run.attempts("doctor")


def test_all_checks_before_there_is_a_run(run: Run, tmp_path: Path) -> None:
    absent = tmp_path / "runs" / "not-yet"
    assert recheck.check(absent, [], "pocket") in (0, 1)
    assert [check.name for check in found(absent).checks] == list(CHECKS) and not absent.exists()


def test_settings_that_cannot_be_read_are_one_line(run: Run) -> None:
    (run.dir / "config.toml").write_text("[[[")
    assert recheck.check(run.dir, ["python"], "") == 2
    assert "not valid TOML" in found(run.dir).problem and not found(run.dir).awaited


def test_an_unknown_check_is_named(run: Run) -> None:
    with pytest.raises(UserError, match=r"unknown check 'pulse'.*python"):
        recheck.start(run.dir, ["pulse"])


def test_the_later_word_counts_and_what_is_to_come_is_known() -> None:
    def check(name: str, status: str, time: float) -> ev.Check:
        one = ev.Check(name=name, status=status, found=status)
        one.time = time
        return one

    of_stage = [check("network", "warn", 5.0), check("python", "ok", 5.0), check("disk", "ok", 50.0)]
    again = [ev.Phase(name="network,disk,gpu"), check("network", "ok", 9.0), check("disk", "fail", 10.0)]
    going = recheck.newest(of_stage, again, alive=True)
    assert [(one.name, one.status) for one in going.checks] == [("python", "ok"), ("disk", "ok"), ("network", "ok")]
    assert going.awaited == ("gpu",) and not going.problem
    killed = recheck.newest(of_stage, again, alive=False)
    assert not killed.awaited and "before gpu" in killed.problem
