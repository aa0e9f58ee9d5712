"""Every tab on runs that ended in every way; robustness against what a run folder can look like."""

from __future__ import annotations

import json
import shutil

import pytest
import textual.app
from textual import events
from textual._wait import wait_for_idle

from picollm.run.folder import Run
from tests.tui.conftest import NARROW, WIDE, shown, until
from tui import actions, asks
from tui.app import PicollmApp
from tui.preferences import Preferences


@pytest.mark.parametrize("kind", ["crashed", "failed", "torn", "stale"])
async def test_every_tab_says_something(kind: str, a_run, an_app) -> None:
    """`test_pictures` has the other kinds and sizes."""
    a_run(kind)
    app = an_app(kind)
    async with app.run_test(size=NARROW) as pilot:
        await until(pilot, lambda: app.main.view.exists and app.main.detail is not None)
        for number, tab in enumerate(actions.TABS):
            app.main.rail.focus()
            await pilot.press(str(number))
            await until(pilot, lambda tab=tab: app.main.tab == tab.name)
            rail = app.main.rail.size.width
            await until(
                pilot,
                lambda rail=rail: sum(bool(line[rail:].strip(" ▕")) for line in shown(app).splitlines()[2:-1]) >= 2,
                what=f"{kind} {tab.name} is blank:\n{shown(app)}",
            )
            assert kind in shown(app).splitlines()[0]
            await pilot.press("escape")


@pytest.mark.parametrize(
    ("kind", "stage", "word"),
    [("running", "pretrain", "running"), ("stalled", "midtrain", "stalled"), ("crashed", "sft", "crashed"),
     ("failed", "tokenizer", "failed"), ("stopped", "rl", "stopped"), ("stale", "sft", "stale")],
)  # fmt: skip
async def test_the_app_opens_where_things_stand(kind: str, stage: str, word: str, a_run, an_app) -> None:
    a_run(kind)
    app = an_app(kind)
    async with app.run_test(size=WIDE) as pilot:
        await until(pilot, lambda: app.main.stage == stage)
        await until(pilot, lambda: f" {word}" in app.main.plain)

        def row() -> str:
            return next((line for line in app.main.rail.plain.splitlines() if line.startswith("▌")), "")

        await until(pilot, lambda: word in row() or "run 40 %" in row(), what=app.main.rail.plain)


async def test_reason_of_a_failure_is_on_the_screen(a_run, an_app) -> None:
    a_run("failed")
    app = an_app("failed")
    async with app.run_test(size=WIDE) as pilot:
        await until(pilot, lambda: "point data.source at some text" in app.main.plain)
        assert "r  continues it" in app.main.plain


async def test_curves_appear(a_run, an_app) -> None:
    a_run("finished")
    app = an_app("finished", tab="train", stage="rl")
    async with app.run_test(size=WIDE) as pilot:
        for title in ("Loss", "Reward", "Rollout length", "Bits per byte", "Tokens per second"):
            await until(pilot, lambda title=title: title in app.main.plain)
        await pilot.press("z")
        await until(pilot, lambda: "Reward" in app.main.plain and "Loss" not in app.main.plain)


async def test_doctor_shows_cures_first(a_run, an_app) -> None:
    a_run("finished")
    app = an_app("finished", tab="doctor")
    async with app.run_test(size=WIDE) as pilot:
        await until(pilot, lambda: "fix: nothing to do" in app.main.plain)
        assert app.main.plain.index("network") < app.main.plain.index("python")


async def test_machine_says_in_words_that_there_is_no_gpu(a_run, an_app) -> None:
    a_run("finished")
    app = an_app("finished", tab="machine")
    async with app.run_test(size=NARROW) as pilot:
        await until(pilot, lambda: "No GPU on this machine" in app.main.plain)


async def test_log_follows_and_searches(a_run, an_app) -> None:
    run = a_run("finished")
    app = an_app("finished", tab="log", stage="sft")
    async with app.run_test(size=NARROW) as pilot:
        await until(pilot, lambda: "warning: this is a fixture" in shown(app))
        with open(run.console_file("sft", 1), "a") as more:
            more.write("and one line more\n")
        await until(pilot, lambda: "and one line more" in shown(app))
        await pilot.press("slash", *"line 7 of", "enter")
        await until(pilot, lambda: "sft: line 7 of" in shown(app))
        await pilot.press("escape", "t")
        await until(pilot, lambda: "and one line more" in shown(app))


async def test_report_is_rendered(a_run, an_app) -> None:
    a_run("finished")
    app = an_app("finished", tab="report")
    async with app.run_test(size=WIDE) as pilot:
        await until(pilot, lambda: "What each step added" in shown(app))


async def test_no_run_yet_says_how_to_begin(runs, an_app) -> None:
    app = an_app("demo")
    async with app.run_test(size=NARROW) as pilot:
        words = "g makes the run demo with profile pocket, every stage on the left in order: about 5 min"
        await until(pilot, lambda: words in " ".join(app.main.plain.split()))
    assert list(runs.iterdir()) == []


async def test_broken_settings_are_said_and_the_rest_lives(a_run, an_app) -> None:
    run = a_run("finished")
    app = an_app("finished")
    async with app.run_test(size=WIDE) as pilot:
        await until(pilot, lambda: app.main.view.exists)
        good = (run.dir / "config.toml").read_text()
        (run.dir / "config.toml").write_text("[sft]\nlr = 'fast'\n")
        await until(pilot, lambda: "config.toml" in app.main.view.problem)
        assert len(app.main.view.stages) == 13
        await pilot.press("j", "2", "4", "0")
        (run.dir / "config.toml").write_text(good)
        await until(pilot, lambda: not app.main.view.problem and app.main.view.exists)


async def test_broken_from_the_start(a_run, an_app) -> None:
    run = a_run("torn")
    (run.dir / "config.toml").write_text("[[[")
    (run.dir / "plan.json").write_text("{")
    app = an_app("torn")
    async with app.run_test(size=NARROW) as pilot:
        await until(pilot, lambda: "not valid TOML" in app.main.view.problem)
        await until(pilot, lambda: "config.toml" in app.main.plain)


async def test_a_run_deleted_under_the_app(a_run, an_app) -> None:
    run = a_run("finished")
    app = an_app("finished", tab="train", stage="sft")
    async with app.run_test(size=WIDE) as pilot:
        await until(pilot, lambda: "Loss" in app.main.plain)
        shutil.rmtree(run.dir / "stages")
        await until(pilot, lambda: app.main.view.stage("sft").state == "waiting")
        shutil.rmtree(run.dir)
        await until(pilot, lambda: not app.main.view.exists)


async def test_stages_move_by_key_and_narrow_rail_keeps_words(a_run, an_app) -> None:
    a_run("stopped")
    app = an_app("stopped")
    async with app.run_test(size=NARROW) as pilot:
        await until(pilot, lambda: app.main.stage == "rl")
        await pilot.press("k", "up", "j")
        await until(pilot, lambda: app.main.stage == "sft")
        assert "✓ SFT" in app.main.rail.plain and "done" in app.main.rail.plain
        assert "■ RL" in app.main.rail.plain and "stop" in app.main.rail.plain


async def test_typing_in_a_box_types(a_run, an_app) -> None:
    a_run("finished")
    app = an_app("finished", tab="chat")
    async with app.run_test(size=WIDE) as pilot:
        await until(pilot, lambda: "chat" in app.main.panes and app.main.view.exists)
        await pilot.press("escape", "i", *"quit g 123?")
        await until(pilot, lambda: app.main.panes["chat"].box.text == "quit g 123?")
        assert app.main.tab == "chat" and app.is_running


async def test_other_runs_can_be_opened(a_run, an_app) -> None:
    a_run("finished")
    a_run("failed")
    app = an_app("finished")
    async with app.run_test(size=WIDE) as pilot:
        await until(pilot, lambda: app.main.view.exists)
        await pilot.press("o")
        await until(pilot, lambda: "newest first" in shown(app))
        names = [run.name for run in Run.all()]
        await pilot.press(*["down"] * names.index("failed"), "enter")
        await until(pilot, lambda: app.main.view.name == "failed" and "failed" in shown(app).splitlines()[0])


async def test_a_note_is_written_at_the_curve(a_run, an_app) -> None:
    run = a_run("finished")
    file = run.events_file("midtrain", max(run.attempts("midtrain")))
    lines = file.read_bytes().split(b"\n")
    word = b'{"type":"note","step":2,"text":"loss spiked to 7.10","v":1,"seq":9999,"time":1.0}'
    file.write_bytes(b"\n".join([*lines[:-2], word, *lines[-2:]]))
    app = an_app("finished", tab="train", stage="midtrain")
    async with app.run_test(size=WIDE) as pilot:
        await until(pilot, lambda: "2: loss spiked to 7.10" in app.main.plain)


async def test_what_another_run_made_says_so(a_run, an_app) -> None:
    run = a_run("finished")
    taken = {"run": "other", "dir": "/runs/other", "attempt": max(run.attempts("midtrain"))}
    origin = {"run": "other", "dir": "/runs/other", "stage": "sft", "made": "", "stages": {"midtrain": taken}}
    (run.dir / "base.json").write_text(json.dumps(origin))
    app = an_app("finished", tab="stage", stage="midtrain")
    async with app.run_test(size=WIDE) as pilot:
        await until(pilot, lambda: "from other" in app.main.plain)


def at_once(app, *keys: str) -> None:
    """Type these as one burst, as a slow line delivers them: nothing waits for what the ones before do."""
    for key in keys:
        app._driver.send_message(events.Key(key, key if len(key) == 1 else None))


async def test_what_is_typed_ahead_goes_where_the_keys_before_it_lead(a_run, an_app, runs) -> None:
    a_run("finished")
    app = an_app("finished")
    async with app.run_test(size=WIDE) as pilot:
        await until(pilot, lambda: app.main.view.exists)
        at_once(app, "8", "i", *"quit0?", "escape", "0")
        await until(pilot, lambda: app.main.tab == "runs")
        assert app.main.panes["chat"].box.text == "quit0?" and app.is_running
        at_once(app, "m", "ctrl+u", *"quit", "enter", "1")
        await until(pilot, lambda: app.main.view.exists and app.main.view.name == "quit" and app.main.tab == "stage")
        assert (runs / "quit").exists() and app.is_running


async def test_what_is_typed_behind_a_key_that_failed_is_forgotten(a_run, an_app) -> None:
    """It was meant for what that key would have led to."""
    run = a_run("finished")
    shutil.rmtree(run.dir / "stages")
    app = an_app("finished", readonly=True)
    async with app.run_test(size=WIDE) as pilot:
        await until(pilot, lambda: app.main.view.exists)
        at_once(app, "0", "m", "ctrl+u", *"quit", "enter")
        await until(pilot, lambda: any("read-only" in one.message for one in app._notifications))
        await pilot.pause(0.2)
        assert app.is_running and app.main.tab == "runs"
        at_once(app, "4", "m", "q")
        await until(pilot, lambda: any("no logs yet" in one.message for one in app._notifications))
        await pilot.press("1")
        assert app.is_running and app.main.tab == "stage"


async def test_what_is_typed_ahead_through_the_tour_keeps_its_order(a_run, monkeypatch) -> None:
    a_run("finished")
    monkeypatch.setattr(textual.app, "wait_for_idle", wait_for_idle)  # the app alone keeps the order
    app = PicollmApp(asks.Options(run="finished"), look=Preferences(theme="dark", toured=False))
    async with app.run_test(size=WIDE) as pilot:
        await until(pilot, lambda: app.main.view.exists and "1 of 4" in shown(app))
        at_once(app, "8", "i", *"quit0?", "escape", "0")
        await until(pilot, lambda: app.main.tab == "runs")
        assert app.main.panes["chat"].box.text == "quit0?" and app.is_running
