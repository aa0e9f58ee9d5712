"""The Doctor tab: what is wrong first, with its cure; checks made again from the keys."""

from __future__ import annotations

import pytest

from picollm.run import lease
from picollm.run.checks import CHECKS
from tests.tui.conftest import NARROW, WIDE, until


async def test_all_checks_again_and_one_selected(a_run, an_app, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PICOLLM_HOME", str(tmp_path / "home"))
    run = a_run("finished")
    app = an_app("finished", tab="doctor")
    async with app.run_test(size=WIDE) as pilot:
        await until(pilot, lambda: "fix: nothing to do" in app.main.plain)
        await pilot.press("a")

        def new() -> bool:
            return all(name in app.main.plain for name in CHECKS) and "no route to the hub" not in app.main.plain

        await until(pilot, new)  # the doctor's stage found that, before
        pane = app.main.panes["doctor"]
        events = run.dir / "jobs" / "doctor" / "events.jsonl"
        await until(pilot, lambda: b'"finished"' in events.read_bytes() and not pane._found.awaited)
        await until(pilot, lambda: not lease.is_held(events.parent / "lock"))
        await pilot.press(*["K"] * 20)
        first = pane.selected
        await pilot.press("J")
        assert pane.selected != first and CHECKS[pane.selected].about[:30] in app.main.plain
        size = events.stat().st_size
        await pilot.press("enter")
        await until(pilot, lambda: events.read_bytes()[size:].count(b'"finished"') == 1)
        assert events.read_bytes()[size:].count(b'"check"') == 1
    assert run.status("doctor").state == "done" and run.attempts("doctor") == [1]


async def test_before_there_is_a_run_this_machine_can_be_checked(
    runs, an_app, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PICOLLM_HOME", str(tmp_path / "home"))
    app = an_app("demo", tab="doctor")
    async with app.run_test(size=NARROW) as pilot:
        await until(pilot, lambda: "a checks this machine now" in " ".join(app.main.plain.split()))
        await pilot.press("a")
        await until(pilot, lambda: "hub token" in app.main.plain)
    assert list(runs.iterdir()) == []


async def test_a_fix_can_be_copied(a_run, an_app, monkeypatch: pytest.MonkeyPatch) -> None:
    a_run("finished")
    app = an_app("finished", tab="doctor")
    copied: list[str] = []
    monkeypatch.setattr(app, "copy", lambda text, what: copied.append(text))
    async with app.run_test(size=WIDE) as pilot:
        await until(pilot, lambda: "fix: nothing to do" in app.main.plain)
        await pilot.press("c")
        assert copied == ["nothing to do for profile pocket"]


async def test_readonly_checks_nothing(a_run, an_app, monkeypatch: pytest.MonkeyPatch) -> None:
    run = a_run("finished")
    app = an_app("finished", tab="doctor", readonly=True)
    said: list[str] = []
    monkeypatch.setattr(app, "complain", said.append)
    async with app.run_test(size=WIDE) as pilot:
        await until(pilot, lambda: "fix: nothing to do" in app.main.plain)
        await pilot.press("a", "enter")
        await until(pilot, lambda: len(said) == 2)
    assert not (run.dir / "jobs").exists()
