"""The Train pane as a person uses it: every key does what its row says, on fixture runs."""

from __future__ import annotations

import shutil
from dataclasses import replace

import msgspec

from picollm.run import events as ev
from picollm.run.folder import Run
from tests.fixtures import make_runs
from tests.tui.conftest import WIDE, shown, until
from tui.bridge import RunChanged
from tui.widgets.chart import LABELS
from tui.widgets.train_keys import GAP


async def on_charts(pilot, stage: str = "") -> object:
    """The pane, with everything drawn."""
    app = pilot.app
    await until(pilot, lambda: app.main.view.exists and app.main.detail is not None)
    if stage:
        app.action_select_stage(stage)
    await app.main.show_tab("train")
    pane = app.main.panes["train"]
    await until(pilot, lambda: drawn(pane), what="no charts")
    return pane


def drawn(pane) -> bool:
    return bool(pane.charts) and not pane._stale() and "┴" in pane.plain


async def test_focus_full_screen_zoom_crosshair_and_back(a_run, an_app) -> None:
    a_run("finished")
    app = an_app("finished")
    async with app.run_test(size=WIDE) as pilot:
        pane = await on_charts(pilot, "sft")
        assert pane.look.focused == "loss" and "▸ Loss" in pane.plain and "step 160 of 160" in pane.plain
        await pilot.press("n")
        second = pane.look.focused
        assert second != "loss"
        await until(pilot, lambda: pane.plain.count("▸") == 1 and drawn(pane))
        await pilot.press("p", "enter")
        await until(pilot, lambda: pane.alone and pane.plain.count("└") == 1 and not app.main.rail.display)
        await pilot.press("plus", "plus")
        await until(pilot, lambda: pane.look.window is not None and drawn(pane))
        assert pane.look.window.high == 160 and pane.look.window.low == 120
        await pilot.press("left")
        assert (pane.look.window.low, pane.look.window.high) == (110, 150)
        await pilot.press("c", "left", "left")
        await until(pilot, lambda: "crosshair at" in pane.plain)
        assert 140 < pane.look.cross < 150
        for _ in range(3):  # crosshair, full screen, window
            await pilot.press("escape")
        await until(pilot, lambda: pane.look.cross is None and not pane.alone and pane.look.window is None)
        await until(pilot, lambda: app.main.rail.display)


async def test_a_click_chooses_the_chart_and_puts_the_crosshair_there(a_run, an_app) -> None:
    a_run("finished")
    app = an_app("finished")
    async with app.run_test(size=WIDE) as pilot:
        pane = await on_charts(pilot, "sft")
        columns, width, height = pane._grid()
        assert columns == 2
        middle = width + GAP + LABELS + pane.view_of(pane.charts[1], width, height).columns // 2
        left = pane.content_region.x - pane.region.x
        await pilot.click(pane, offset=(left + middle, 4))
        assert pane.look.focused == pane.charts[1].series and abs(pane.look.cross - 80) < 4
        await pilot.click(pane, offset=(left + middle, 4), times=2)
        await until(pilot, lambda: pane.alone and drawn(pane))


async def test_units_smoothing_log_scale_and_y_by_hand(a_run, an_app) -> None:
    a_run("finished")
    app = an_app("finished")
    async with app.run_test(size=WIDE) as pilot:
        pane = await on_charts(pilot, "sft")
        before = pane.plain
        await pilot.press("m")
        await until(pilot, lambda: "X: time" in pane.plain and drawn(pane))
        await until(pilot, lambda: "0:00" in pane.plain)
        await pilot.press("m", "e", "L")
        await until(pilot, lambda: "smoothing 0.98" in pane.plain and "log Y" in pane.plain and drawn(pane))
        await pilot.press("L", "right_square_bracket", "right_square_bracket", "u")
        await until(pilot, lambda: "Y " in pane.plain.splitlines()[0] and drawn(pane))
        low, high = pane.look.ys["loss"].low, pane.look.ys["loss"].high
        await pilot.press("d", "left_square_bracket")
        assert pane.look.ys["loss"].high - pane.look.ys["loss"].low > high - low
        await pilot.press("a", "E")
        await until(pilot, lambda: drawn(pane) and pane.plain == before)
        await pilot.press("a")
        await until(pilot, lambda: "so far" in pane.plain)


async def test_a_filter_shows_what_matches_and_says_when_nothing_does(a_run, an_app) -> None:
    a_run("finished")
    app = an_app("finished")
    async with app.run_test(size=WIDE) as pilot:
        pane = await on_charts(pilot, "sft")
        await pilot.press("slash", *"^le", "enter")
        await until(pilot, lambda: [one.series for one in pane.charts] == ["lr"] and "filter ^le" in pane.plain)
        await pilot.press("slash", "left_parenthesis", "enter")
        await until(pilot, lambda: "not a regular expression" in shown(app))
        await pilot.press("escape", "slash", *"xyz", "enter")
        await until(pilot, lambda: "No chart matches xyz" in pane.plain)
        await pilot.press("escape")
        await until(pilot, lambda: len(pane.charts) > 3 and drawn(pane))


async def test_another_run_is_laid_over_and_both_are_exported(made, a_run, an_app) -> None:
    run = a_run("finished")
    shutil.copytree(made / "finished", run.dir.parent / "earlier")
    app = an_app("finished")
    async with app.run_test(size=WIDE) as pilot:
        pane = await on_charts(pilot, "sft")
        await pilot.press("v")
        await until(pilot, lambda: "earlier" in shown(app))
        await pilot.press("enter")
        await until(pilot, lambda: "a earlier" in pane.plain and drawn(pane))
        assert len(pane.traces("loss")) == 2
        await pilot.press("w", "W")
        folder = run.dir / "exports"
        await until(pilot, lambda: {path.suffix for path in folder.glob("sft-*")} == {".csv", ".svg"})
        table = next(folder.glob("*.csv")).read_text().splitlines()
        assert table[0].startswith("step,elapsed_s,") and "loss" in table[0] and len(table) == 161
        await pilot.press("v")
        await until(pilot, lambda: "take it away" in shown(app))
        await pilot.press("enter")
        await until(pilot, lambda: "a earlier" not in pane.plain)


async def test_a_spike_keeps_its_mark_and_its_words_when_it_is_over(a_run, an_app) -> None:
    run: Run = a_run("finished")
    script = make_runs.Script(run, "midtrain", 1, 0.0)
    script.say(ev.Note(step=2, text="loss is below pretraining's last since step 2"))
    with open(run.events_file("midtrain", 1), "ab") as out:
        out.write(b"\n".join(script.lines) + b"\n")
    app = an_app("finished")
    async with app.run_test(size=(120, 41)) as pilot:
        pane = await on_charts(pilot, "midtrain")
        lines = pane.plain.splitlines()
        axis = next(line for line in lines if "└" in line)
        assert "1" in axis and "2" not in axis
        assert any(line.startswith(" 1 step 1: loss spiked to 7.20") for line in lines)
        await pilot.resize_terminal(120, 54)
        await until(pilot, lambda: drawn(pane) and " 2 step 2: loss is below" in pane.plain)
        assert " 1 step 1: loss spiked to 7.20" in pane.plain


async def test_that_tokens_are_not_known_is_said_once(a_run, an_app) -> None:
    a_run("finished")
    app = an_app("finished")
    async with app.run_test(size=WIDE) as pilot:
        pane = await on_charts(pilot, "sft")
        for unit in ("time", "step", "time"):
            await pilot.press("m")
            await until(pilot, lambda unit=unit: pane.look.unit == unit)
        assert sum("tokens and FLOPs are not known" in note.message for note in app._notifications) == 1


async def test_read_only_writes_nothing(a_run, an_app) -> None:
    run = a_run("finished")
    app = an_app("finished", readonly=True)
    async with app.run_test(size=WIDE) as pilot:
        await on_charts(pilot, "sft")
        await pilot.press("w", "W")
        await until(pilot, lambda: sum("read-only" in note.message for note in app._notifications) == 2)
        assert not (run.dir / "exports").exists()


async def test_a_step_that_is_no_number_alarms_and_new_steps_arrive(a_run, an_app) -> None:
    run: Run = a_run("running")
    script = make_runs.Script(run, "pretrain", 1, 0.0)
    app = an_app("running")
    async with app.run_test(size=WIDE) as pilot:
        pane = await on_charts(pilot)
        assert "not finite" not in pane.plain and "of 400" in pane.plain
        script.say(ev.Metrics(step=161, values={"loss": None, "lr": 0.01}))
        script.say(ev.Metrics(step=162, values={"loss": 2.125, "lr": 0.01}))
        with open(run.events_file("pretrain", 1), "ab") as out:
            out.write(b"\n".join(script.lines) + b"\n")
        await until(pilot, lambda: "loss not finite" in pane.plain and "2.125" in pane.plain and "162" in pane.plain)
        await until(pilot, lambda: any("└" in line and "!" in line for line in pane.plain.splitlines()))


async def test_a_stage_chosen_by_hand_stays_when_train_had_shown_it_before(a_run, an_app) -> None:
    a_run("running")
    app = an_app("running")
    async with app.run_test(size=WIDE) as pilot:
        await on_charts(pilot)
        await until(pilot, lambda: app.main.stage == "pretrain")
        app.reader.close()
        app.reader.join()  # from here on it is told what there is by nobody else
        view = app.main.view

        async def now(active: str, stage: str) -> None:
            states = [msgspec.structs.replace(status, state="done" if status.name == "pretrain" else status.state)
                      for status in view.stages]  # fmt: skip
            states = [msgspec.structs.replace(status, state="running") if status.name == active else status
                      for status in states]  # fmt: skip
            app.post_message(RunChanged(replace(view, stages=tuple(states), notice=f"{active} {stage}")))
            await until(pilot, lambda: app.main.view.notice == f"{active} {stage}" and app.main.stage == stage)

        await now("pretrain", "pretrain")
        await pilot.press("1")
        await now("midtrain", "midtrain")
        app.action_select_stage("pretrain")
        await now("midtrain", "pretrain")
        while app.main.stage != "midtrain":
            await pilot.press("j")
        await now("sft", "sft")


async def test_what_has_not_trained_says_what_to_do(a_run, an_app) -> None:
    a_run("failed")
    app = an_app("failed")
    async with app.run_test(size=(60, 20)) as pilot:
        await until(pilot, lambda: app.main.view.exists)
        app.action_select_stage("pretrain")
        await app.main.show_tab("train")
        await until(pilot, lambda: "has not trained yet" in app.main.plain)


async def test_the_first_chart_has_the_focus_until_a_key_is_pressed(a_run, an_app) -> None:
    a_run("finished")
    app = an_app("finished", tab="train", stage="rl")
    async with app.run_test(size=WIDE) as pilot:
        await until(pilot, lambda: app.main.tab == "train" and "Reward" in app.main.plain)
        pane = app.main.panes["train"]
        whole = pane.detail
        for key, focused in (("", "reward"), ("c", "loss")):
            part = replace(whole, curves={"loss": whole.curves["loss"]})
            pane.update_from(app.main.view, "rl", part)
            assert pane.look.focused == "loss"
            if key:
                await pilot.press(key)
            pane.update_from(app.main.view, "rl", whole)
            assert pane.look.focused == focused
