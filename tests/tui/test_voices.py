"""Choosing who answers."""

from __future__ import annotations

from textual.widgets import Input

from tests.endpoint import ForeignEndpoint
from tests.tui.conftest import WIDE, shown, until
from tui.screens.voice import VoiceScreen
from tui.voices import Known, Voice


async def test_an_address_that_is_typed_is_asked_for_its_models(a_run, an_app, monkeypatch) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    run = a_run("finished")
    app, taken = an_app("finished"), []
    with ForeignEndpoint() as server:
        async with app.run_test(size=WIDE) as pilot:
            await until(pilot, lambda: app.main.view.exists)
            here = Known(voice=Voice(model="sft", run=str(run.dir)))
            app.push_screen(VoiceScreen("Who answers", [here], str(run.dir)), taken.append)
            await until(pilot, lambda: isinstance(app.screen, VoiceScreen) and bool(app.screen.query(Input)))
            box = app.screen.query_one(Input)
            box.value = "finished/sf"
            await until(pilot, lambda: "sft" in shown(app) and "nothing of that name" not in shown(app))
            box.value = "nobody"
            await until(pilot, lambda: "nothing of that name" in shown(app))
            box.value = server.url
            await until(pilot, lambda: "asks that address" in shown(app))
            await pilot.press("enter")
            await until(pilot, lambda: "/plain" in shown(app))
            await pilot.press("enter")
            await until(pilot, lambda: bool(taken))
    assert taken[0].voice.url == server.url and not app.failures
