"""The whole way through the app, by keys alone: a new run, launched, watched, stopped, resumed; its models compared; a
conversation. The stages are processes that do next to nothing, the models a stand-in."""

from __future__ import annotations

from typing import Any

import pytest
from textual.widgets import Input

from picollm.run import serving
from picollm.run.folder import Run
from tests.run.conftest import runs as fake_runs  # noqa: F401  (a fixture)
from tests.run.conftest import script
from tests.tui.conftest import WIDE, shown, until
from tests.tui.test_talk import ANSWERS, FakeClient
from tui import asks
from tui.app import PicollmApp

PATIENCE = 240.0

pytestmark = pytest.mark.timeout(900)  # dozens of processes, one after another


async def test_from_nothing_to_a_conversation(fake_runs, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setattr(serving, "ensure_serving", lambda run: serving.Address(uds="nowhere"))
    monkeypatch.setattr(serving, "Client", FakeClient)
    create = Run.create

    def scripted(name: str, *how: Any) -> Run:
        run = create(name, *how)
        script(run, pretrain={"steps": 10_000_000, "sleep": 0.01})  # before anything of it can be launched
        return run

    monkeypatch.setattr(Run, "create", scripted)
    app = PicollmApp(asks.Options(run="demo"))
    view = lambda stage: app.main.view.stage(stage).state  # noqa: E731
    async with app.run_test(size=WIDE) as pilot:
        # A new run, from the form.
        await pilot.press("0")
        await until(pilot, lambda: "No run yet" in shown(app))
        await pilot.press("n")
        await until(pilot, lambda: "New run" in shown(app))
        await pilot.press("enter")
        app.screen.query_one(Input).value = "mine"
        await pilot.press("enter")
        await until(pilot, lambda: app.screen.form.name == "mine")
        await pilot.press("g")
        await until(pilot, lambda: app.main.view.name == "mine" and app.main.view.exists, PATIENCE)
        run = Run.open("mine")

        # Watched while it trains.
        await until(pilot, lambda: view("pretrain") == "running", PATIENCE)
        await pilot.press("2")
        await until(pilot, lambda: "Loss" in app.main.plain, PATIENCE)
        await pilot.press("4")
        await until(pilot, lambda: "console line of pretrain" in shown(app), PATIENCE)

        # Stopped, and resumed where it was.
        await pilot.press("x")
        await until(pilot, lambda: view("pretrain") == "stopped", PATIENCE)
        step = run.status("pretrain").step
        script(run, pretrain={"steps": step + 20})
        await pilot.press("r")
        await until(pilot, lambda: view("report") == "done", PATIENCE)
        assert run.attempts("pretrain") == [1, 2] and run.status("pretrain").step == step + 20

        # The models side by side.
        await pilot.press("7")
        await until(pilot, lambda: "compare" in app.main.panes and len(app.main.panes["compare"].models) == 4)
        compare = app.main.panes["compare"]
        await pilot.press("n", "enter")
        await until(pilot, lambda: compare.b.answer.text == ANSWERS["rl"] and not compare.busy)
        assert compare.a.answer.text == ANSWERS["base"]

        # On into a conversation.
        await pilot.press("c")
        await until(pilot, lambda: app.main.tab == "chat" and ANSWERS["rl"] in " ".join(shown(app).split()))
        await pilot.press("i", *"and now", "enter")
        chat = app.main.panes["chat"]
        await until(pilot, lambda: len(chat.conversation.turns) == 4 and not chat.busy)
        await pilot.press("escape", "q")
    asked = [(model, what) for model, what, _ in FakeClient.asked]
    assert asked[-1][0] == "rl" and [turn["role"] for turn in asked[-1][1]] == ["user", "assistant", "user"]
    assert list((run.dir / "conversations").glob("*.json"))
