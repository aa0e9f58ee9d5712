"""The tab Runs and the form of a new run: the table, what is done to runs, live checks, what a run would take."""

from __future__ import annotations

import itertools
import shutil
import time

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from textual.widgets import Input

from picollm.run import config as settings
from picollm.run import forecast, overview, pipeline, shelf
from picollm.run.errors import UserError
from picollm.run.folder import Run
from tests.fixtures import make_runs
from tests.tui.conftest import NARROW, WIDE, shown, until
from tui import actions, conversations, table
from tui.form import NAME, PROFILE, START, Form
from tui.screens.new_run import NewRunScreen
from tui.widgets import takes

summaries = st.builds(
    overview.Summary,
    name=st.text(st.characters(codec="ascii", categories=("L", "N")), min_size=1, max_size=64),
    dir=st.uuids().map(str),
    profile=st.sampled_from(["pocket", "speedrun"]),
    state=st.sampled_from(["running", "stalled", "stopping", "stopped", "failed", "crashed", "done", "stale", "ready"]),
    stage=st.sampled_from(["", *pipeline.NAMES]),
    step=st.integers(0, 10**8),
    steps=st.integers(0, 10**8),
    loss=st.none() | st.floats(),
    bpb=st.none() | st.floats(),
    left=st.none() | st.floats(0, 1e9),
    queue=st.sampled_from(["", "SFT +3", "waits: data"]),
    touched=st.floats(0, 2e9),
    note=st.text(max_size=20),
    archived=st.booleans(),
    read=st.booleans(),
    problem=st.sampled_from(["", "config.toml:3: unknown table [sftt]"]),
)


# the table, without a screen ------------------------------------------------------------------------------------------


@hypothesis.settings(max_examples=40, deadline=None)
@given(st.lists(summaries, max_size=8), st.integers(20, 240), st.sampled_from(table.ORDERS))
def test_any_runs_fit_any_width(found: list[overview.Summary], width: int, order: str) -> None:
    rows = table.arranged(found, order)
    assert sorted(one.dir for one in rows) == sorted(one.dir for one in found)
    columns = table.columns(width, rows)
    for one in rows:
        assert table.line(one, columns, width, 1.9e9, True, False).cell_len == width
        table.detail(one, 1.9e9)
    assert table.head(columns, order).cell_len <= max(width, 40)
    table.counts(found, rows, order, "x")


def test_more_room_shows_more_columns() -> None:
    shown_at = [set(table.columns(width, [])) for width in range(20, 200)]
    assert all(before <= after for before, after in itertools.pairwise(shown_at))
    assert {"name", "state", "age"} <= set(table.columns(56, [])) and "queue" in table.columns(116, [])


def test_orders_and_words() -> None:
    def one(name: str, **more: object) -> overview.Summary:
        return overview.Summary(name=name, dir=name, **more)  # type: ignore[arg-type]

    found = [one("b", bpb=1.2, touched=5.0, state="done"), one("a", touched=9.0, state="failed", stage="sft"),
             one("c", bpb=1.1, touched=1.0, state="running", stage="rl"), one("z", archived=True, bpb=0.5)]  # fmt: skip

    still = [one(name, state="stalled") for name in "ab"]
    assert "at work" not in table.counts(still, still, "name", "").plain
    assert "! 2 stalled" in table.counts(still, still, "name", "").plain
    assert "1 at work  ! 2 stalled" in table.counts([*found, *still], [], "name", "").plain

    def names(order: str, words: str = "") -> str:
        return "".join(one.name for one in table.arranged(found, order, words))

    assert names("activity") == "cabz" and names("name") == "abcz"
    assert names("state") == "cabz" and names("bpb") == "cbaz"
    assert names("name", "failed") == "a" and names("name", "SFT") == "a" and names("name", "archived") == "z"


# the form, without a screen -------------------------------------------------------------------------------------------


def test_every_knob_is_a_field() -> None:
    form = Form("x")
    keys = [field.key for field in form.fields(everything=True)]
    assert set(keys) == set(settings.knobs()) | {NAME} and len(keys) == len(set(keys))
    for field in form.fields(everything=True):
        assert field.about and field.group
        if field.key not in (NAME, PROFILE):
            assert form.check(field.key, form.shown(field.key)) == form.value(field.key), field.key
            for choice in field.choices:
                form.check(field.key, choice)
    few = [field.key for field in form.fields()]
    assert set(few) <= set(keys) and len(few) < 12 and "data.shards" not in few
    form.set("data.source", "climbmix")
    assert "data.shards" in [field.key for field in form.fields()]
    assert {field.key for field in form.fields(find="learning rate matri")} == {"pretrain.matrix_lr"}


@pytest.mark.parametrize("profile", settings.profile_names())
def test_a_profile_says_what_it_is_for(profile: str) -> None:
    about = {field.key: field.about for field in Form("x", profile).fields()}[PROFILE]
    assert about == settings.profile_about(profile) and len(about) > 40


def test_bounds_and_choices_come_from_the_schema() -> None:
    fields = {field.key: field for field in Form("x").fields(everything=True)}
    assert fields["model.depth"].bounds == "at least 0, at most 64" and fields["model.depth"].unit == "layers"
    assert fields["machine.precision"].choices == ("auto", "fp32", "bf16")
    assert fields["launch.nproc"].bounds == "at least 1, at most 64" and not fields["launch.nproc"].choices


@pytest.mark.parametrize(
    ("key", "text", "words"),
    [("sft.lr", "fast", "sft.lr = 'fast': expected `float`"), ("model.depth", "65", "<= 64"),
     (NAME, "two words", "letters"), (NAME, "demo", "there is a run 'demo' already"),
     ("sft.mixture", "identity", "sft.mixture")],
)  # fmt: skip
def test_what_is_wrong_is_said_and_not_taken(key: str, text: str, words: str) -> None:
    form = Form("x", taken=["demo"])
    before = form.shown(key)
    with pytest.raises(UserError) as error:
        form.set(key, text)
    assert words in str(error.value) and "--set" not in str(error.value)
    assert form.shown(key) == before and not form.touched


def test_a_profile_changes_all_but_what_was_changed_by_hand() -> None:
    form = Form("x")
    form.set("sft.lr", "0.5")
    form.set("run.seed", "1337")
    assert form.changes == {"sft.lr": 0.5}
    form.set(PROFILE, "speedrun")
    config = form.config()
    assert (config.run.profile, config.model.depth, config.sft.lr) == ("speedrun", 24, 0.5)
    form.reset("sft.lr")
    assert form.config() == settings.load("speedrun")
    assert form.tried("run.seed", "5").config().run.seed == 5 and not form.touched


@pytest.mark.parametrize("profile", settings.profile_names())
def test_what_it_takes_is_known_for_every_profile(profile: str) -> None:
    form = Form("x", profile)
    places = [place for place in forecast.places([]) if place.kind in ("cpu", "h100") and place.count in (1, 8)]
    assert {place.kind for place in places} == {"cpu", "h100"}
    console = Console(width=50, file=open("/dev/null", "w"))  # noqa: SIM115
    for place in places:
        try:
            found: object = forecast.forecast(form.config(), place)
        except UserError as error:
            assert place.kind == "cpu" and "takes" in str(error)
            found = str(error)
        with console.capture() as capture:
            console.print(*takes.blocks(found, place, 10 << 30))  # type: ignore[arg-type]
        assert ("Where the time goes" in capture.get()) is not isinstance(found, str)
        if place.kind == "h100":
            assert "$" in capture.get() and "tok/s" in capture.get()


def test_a_measurement_of_this_machine_comes_first(runs, monkeypatch) -> None:
    run = make_runs.make(runs, "finished")
    assert not [place for place in forecast.places([run]) if place.measured]
    plan = run.plan()
    assert plan is not None
    plan.notes = {"light_s": 0.1, "torch_s": 3.0, "train_flops_s": 1e11, "decode_flops_s": 5e10,
                  "text_bytes": 2_500_000, "memory_bytes": 20 << 30, "device": "cpu"}  # fmt: skip
    monkeypatch.setattr(Run, "plan", lambda self: plan)
    monkeypatch.setattr(forecast.platform, "node", lambda: "elsewhere")
    place = forecast.places([run])[0]
    assert place.measured and place.source == "finished" and place.here
    every = forecast.places([run])
    chosen = [every[forecast.first_place(every, profile)] for profile in ("pocket", "speedrun")]
    assert chosen[0] == place and not chosen[1].measured, "another profile has a model of another speed"
    found = forecast.forecast(settings.load("pocket"), place)
    assert found.note == "measured by run finished" and 60 < found.eta_s < 900
    later = forecast.forecast(settings.load("pocket"), place, "sft")
    assert later.seconds["pretrain"] == 0 and later.seconds["sft"] == found.seconds["sft"]
    assert later.eta_s == pytest.approx(found.eta_s - sum(found.seconds[name] for name in pipeline.NAMES[1:9]))


def test_a_conversation_does_not_make_a_folder_of_a_run_that_is_gone(tmp_path) -> None:
    (tmp_path / "mine").mkdir()
    keeper, kept = conversations.Keeper(), conversations.begin("rl")
    keeper.hold(kept)
    for folder in (tmp_path / "mine" / "conversations", tmp_path / "gone" / "conversations"):
        with pytest.raises(UserError, match="not kept: no run in"):
            keeper.write(folder, kept.id)
        assert not folder.exists()
    (tmp_path / "mine" / "config.toml").touch()
    keeper.write(tmp_path / "mine" / "conversations", kept.id)
    assert conversations.kept(tmp_path / "mine" / "conversations") == [kept]


# on a screen ----------------------------------------------------------------------------------------------------------


def said(app) -> str:
    """The messages on the screen."""
    return " ".join(message.message for message in app._notifications)


async def open_runs(app, pilot) -> None:
    await until(pilot, lambda: app.main.view.exists)
    await open_list(pilot)


async def open_list(pilot) -> None:
    await pilot.press("0")
    await until(pilot, lambda: "runs" in pilot.app.main.panes and pilot.app.main.panes["runs"].known)


@pytest.mark.parametrize("size", [WIDE, NARROW, (60, 20)], ids=["120x40", "80x24", "60x20"])
async def test_the_list_says_how_runs_stand(size, a_run, an_app) -> None:
    for kind in ("finished", "running", "failed", "empty"):
        a_run(kind)
    app = an_app("finished")
    async with app.run_test(size=size) as pilot:
        await open_runs(app, pilot)
        await until(pilot, lambda: all(word in shown(app) for word in ("▶ running", "✗ failed", "✓ done", "○ new")))
        assert "4 runs" in shown(app) and not app.main.rail.display
        pane = app.main.panes["runs"]
        pane.selected = ""
        await pilot.press("home", "j", "j", "k")
        assert pane.run is pane.rows[1]
        await pilot.press("slash", *"fail", "enter")
        await until(pilot, lambda: [one.name for one in pane.rows] == ["failed"])
        await pilot.press("enter")
        await until(pilot, lambda: app.main.tab == "stage" and app.main.view.name == "failed")


async def test_rename_archive_restore_note_delete(a_run, an_app, runs) -> None:
    a_run("finished")
    a_run("stopped")
    app = an_app("finished")
    async with app.run_test(size=WIDE) as pilot:
        await open_runs(app, pilot)
        pane = app.main.panes["runs"]

        async def pick(name: str) -> None:
            await until(pilot, lambda: name in {one.name for one in pane.rows})
            pane.selected = next(one.dir for one in pane.rows if one.name == name)
            pane.draw()

        await pick("stopped")
        await pilot.press("e")
        await until(pilot, lambda: "Notes on stopped" in shown(app))
        await pilot.press(*"hot", "ctrl+s")
        await until(pilot, lambda: shelf.notes(Run(runs / "stopped")) == "hot")
        await pilot.press("m")
        await until(pilot, lambda: "Rename stopped" in shown(app))
        await pilot.press("ctrl+u", *"fin ished")
        await until(pilot, lambda: "expected letters" in shown(app))
        await pilot.press("enter", "ctrl+u", *"cold", "enter")
        await until(pilot, lambda: (runs / "cold" / "config.toml").exists())
        await pick("cold")
        await until(pilot, lambda: "hot" in pane.query_one("#runs-detail").plain)
        await pilot.press("a")
        await until(pilot, lambda: "cold" not in {one.name for one in pane.rows})
        await pilot.press("A")
        await pick("cold")
        await until(pilot, lambda: "archived" in shown(app))
        await pilot.press("a")
        await until(pilot, lambda: (runs / "cold").exists())
        await until(pilot, lambda: [one.archived for one in pane.rows if one.name == "cold"] == [False])
        await pick("cold")
        await pilot.press("D")
        await until(pilot, lambda: "y deletes it" in shown(app) and "are freed" in shown(app))
        await pilot.press("escape")
        assert (runs / "cold").exists()
        await pilot.press("D")
        await until(pilot, lambda: "y deletes it" in shown(app))
        await pilot.press("y")
        await until(pilot, lambda: not (runs / "cold").exists())
        await pick("finished")
        await pilot.press("D")
        await until(pilot, lambda: "y deletes it" in shown(app))
        await pilot.press("y")
        await until(pilot, lambda: not (runs / "finished").exists() and app.main.view.name != "finished")
        await until(pilot, lambda: app.main.tab == "runs", what="the open run went: the tabs show another one")


async def test_renamed_the_open_run_stays_selected_in_the_list(a_run, an_app, runs) -> None:
    for kind in ("finished", "stopped", "failed"):
        a_run(kind)
    app = an_app("stopped")
    async with app.run_test(size=WIDE) as pilot:
        await open_runs(app, pilot)
        pane = app.main.panes["runs"]
        await until(pilot, lambda: pane.run is not None and pane.run.name == "stopped")
        await pilot.press("m")
        await until(pilot, lambda: "Rename stopped" in shown(app))
        await pilot.press("ctrl+u", *"cold", "enter")
        await until(pilot, lambda: app.main.view.exists and app.main.view.name == "cold" and app.main.tab == "runs")
        await until(pilot, lambda: pane.run is not None and pane.run.dir == str(runs / "cold") == pane._open)


async def test_the_only_run_is_gone_from_the_screen_when_it_is_deleted(a_run, an_app, runs) -> None:
    a_run("finished").dir.rename(runs / "demo")
    app = an_app("demo", stage="sft")
    async with app.run_test(size=WIDE) as pilot:
        await until(pilot, lambda: app.main.detail is not None and app.main.detail.stage == "sft")
        await pilot.press("2")
        await until(pilot, lambda: "Loss" in app.main.plain)
        await open_runs(app, pilot)
        await pilot.press("D")
        await until(pilot, lambda: "y deletes it" in shown(app))
        await pilot.press("y")
        await until(pilot, lambda: app.main.view.known and not app.main.view.exists and app.main.tab == "runs")
        assert not (runs / "demo").exists() and "train" not in app.main.panes
        app.action_select_stage("sft")
        await app.main.show_tab("train")
        await until(pilot, lambda: "has not trained yet" in app.main.plain)
        assert not app.main.detail.curves


async def test_a_run_that_was_taken_away_elsewhere_is_gone_and_not_made_anew(a_run, an_app, runs, monkeypatch) -> None:
    run = a_run("stopped")
    asked: list[object] = []
    monkeypatch.setattr("picollm.run.conductor.ask", lambda *given: asked.append(given))
    app = an_app("stopped")
    async with app.run_test(size=WIDE) as pilot:
        await until(pilot, lambda: app.main.view.exists and app.main.view.stage(app.main.stage).state == "stopped")
        await pilot.press("R")
        await until(pilot, lambda: "starts over" in shown(app))
        kept = shelf.archive(run)
        await pilot.press("y")
        await until(pilot, lambda: "no run in" in said(app))
        await until(pilot, lambda: app.main.view.gone and "The run stopped is gone" in shown(app))
        assert "no such run" not in shown(app) and "0 shows the runs" in shown(app)
        for key in ("g", "s", "f", "r", "R"):
            app.clear_notifications()
            await pilot.press(key)
            await until(pilot, lambda: "stopped is gone" in said(app), what=key)
        await open_list(pilot)
        await until(pilot, lambda: "No run is left" in shown(app))
        assert not asked and not run.dir.exists()
        shelf.restore(kept)
        await until(pilot, lambda: app.main.view.exists and not app.main.view.gone)


async def test_keys_that_launch_and_stop_mean_the_selected_run(a_run, an_app, monkeypatch) -> None:
    a_run("finished")
    a_run("running")
    asked = []

    def stop(run: Run, kill: bool = False) -> list[str]:
        asked.append((run.name, kill))
        return ["pretrain"]

    monkeypatch.setattr("picollm.run.conductor.stop", stop)
    app = an_app("finished")
    async with app.run_test(size=WIDE) as pilot:
        await open_runs(app, pilot)
        pane = app.main.panes["runs"]
        await until(pilot, lambda: [one.state for one in pane.rows if one.name == "running"] == ["running"])
        pane.selected = next(one.dir for one in pane.rows if one.name == "running")
        await pilot.press("x")
        await until(pilot, lambda: "Stop running?" in shown(app))
        await pilot.press("y")
        await until(pilot, lambda: asked == [("running", False)])
        await pilot.press("s")
        await until(pilot, lambda: "choose the stage in Pipeline (1)" in said(app))


async def test_a_new_run_from_the_form(runs, an_app, monkeypatch) -> None:
    asked = []
    monkeypatch.setattr("picollm.run.conductor.ask", lambda run, request: asked.append((run.name, request.stages)))
    app = an_app("nothing")
    async with app.run_test(size=WIDE) as pilot:
        await pilot.press("0")
        await until(pilot, lambda: "No run yet" in shown(app))
        await pilot.press("n")
        await until(pilot, lambda: "New run" in shown(app) and "Where the time goes" in shown(app))
        box = app.screen.query_one(Input)
        await pilot.press("enter")
        box.value = "two words"
        await until(pilot, lambda: "expected letters" in shown(app))
        await pilot.press("enter")
        assert box.display, "what is wrong is not taken"
        box.value = "mine"
        await pilot.press("enter", "j", "right")
        await until(pilot, lambda: app.screen.form.name == "mine" and app.screen.form.profile != "pocket")
        await pilot.press("slash", *"seed", "enter", "j", "enter")
        await until(pilot, lambda: box.display)
        box.value = "7"
        await until(pilot, lambda: "‹" in shown(app) or "seed" in shown(app))
        await pilot.press("enter", "g")
        await until(pilot, lambda: bool(asked))
        await until(pilot, lambda: app.main.view.name == "mine")
    config = Run.open("mine").wishes()
    assert config.run.profile != "pocket" and asked == [("mine", list(pipeline.NAMES))]
    usual = settings.flat(settings.load(config.run.profile))
    assert {key for key, value in settings.flat(config).items() if value != usual[key]} <= {"run.seed", "chat.seed"}


async def test_a_duplicate_keeps_what_was_changed(a_run, an_app, runs) -> None:
    a_run("stale")
    app = an_app("stale")
    async with app.run_test(size=WIDE) as pilot:
        await open_runs(app, pilot)
        await pilot.press("d")
        await until(pilot, lambda: "Duplicate of stale" in shown(app))
        form = app.screen.form
        assert form.name == "stale-2" and form.value("sft.lr") == 0.123 and START in [one.key for one in form.fields()]
        assert form.beginnings == ("tokenizer", "tokenizer_eval", "pretrain", "base_eval", "midtrain", "sft")
        form.set("run.seed", "9")
        await pilot.press("escape")
        await until(pilot, lambda: "You changed something" in shown(app))
        await pilot.press("w")
        await until(pilot, lambda: (runs / "stale-2" / "config.toml").exists())
        await until(pilot, lambda: app.main.view.name == "stale-2")
    made = Run.open("stale-2").wishes()
    assert (made.sft.lr, made.run.seed) == (0.123, 9)


async def test_read_only_makes_and_changes_nothing(a_run, an_app, runs) -> None:
    a_run("finished")
    a_run("failed")
    app = an_app("finished", readonly=True)
    async with app.run_test(size=WIDE) as pilot:
        await open_runs(app, pilot)
        for key in ("n", "d", "e", "m", "a", "D", "g", "x", "r"):
            await pilot.press(key)
            await pilot.pause(0.02)
            assert app.screen is app.main, key
        await until(pilot, lambda: "read-only" in said(app))
    assert sorted(path.name for path in runs.iterdir()) == ["failed", "finished"]


async def test_many_runs_are_shown_at_once(a_run, an_app, runs, monkeypatch) -> None:
    a_run("finished")
    for number in range(60):
        shutil.copytree(a_run("empty").dir if not number else runs / "empty", runs / f"run-{number:03d}")
    app = an_app("finished")
    async with app.run_test(size=WIDE) as pilot:
        await open_runs(app, pilot)
        pane = app.main.panes["runs"]
        assert len(pane.rows) == 62, "all names are there with the first look"
        await until(pilot, lambda: all(one.read for one in pane.rows))
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now)  # no age changes while we look
        await pilot.press("end")
        assert pane.run is pane.rows[-1]
        drawn = dict(pane.query_one("#runs-lines")._drawn)
        await pilot.press("k")
        after = pane.query_one("#runs-lines")._drawn
        assert sum(after[key] is not drawn[key] for key in after) == 2, "a key draws two lines anew"


def test_the_form_answers_to_each_of_its_keys_once() -> None:
    rows = actions.of("form")
    assert all(hasattr(NewRunScreen, f"action_{row.base}") for row in rows)
    keys = [key for row in rows for key in row.keys]
    assert len(keys) == len(set(keys)) and not [key for key in keys if "alt" in key]
