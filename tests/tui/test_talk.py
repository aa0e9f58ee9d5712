"""Compare and Chat against a stand-in for the inference process."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from picollm.run import serving
from picollm.run.errors import UserError
from tests.tui.conftest import NARROW, WIDE, shown, until

ANSWERS = {
    "base": "And then the split of the split of the split of the split of the",
    "sft": "It splits a string into a list.",
    "rl": "It returns a list of the words in the string.",
}


class FakeClient:
    """Streams word by word; notes what it was asked."""

    asked: list[tuple[str, Any, dict[str, Any]]] = []  # noqa: RUF012
    pause = 0.005

    def __init__(self, address: serving.Address) -> None:
        pass

    def astream_chat(self, model: str, messages: list[dict[str, str]], **knobs: Any):
        self.asked.append((model, messages, knobs))
        return self._words(model)

    def astream_completion(self, model: str, prompt: str, **knobs: Any):
        self.asked.append((model, prompt, knobs))
        return self._words(model)

    async def _words(self, model: str):
        words = ANSWERS[model].split(" ")
        for number, word in enumerate(words):
            await asyncio.sleep(self.pause)
            yield serving.Delta(text=(" " if number else "") + word)
        reason = "length" if model == "base" else "stop"
        yield serving.Delta(finish_reason=reason, tok_s=123.4, tokens=len(words))


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeClient]:
    FakeClient.asked, FakeClient.pause = [], 0.005
    monkeypatch.setattr(serving, "ensure_serving", lambda run: serving.Address(uds="nowhere"))
    monkeypatch.setattr(serving, "Client", FakeClient)
    return FakeClient


async def opened(pilot, tab: str) -> Any:
    app = pilot.app
    await until(pilot, lambda: tab in app.main.panes and len(app.main.view.models) == 4)
    pane = app.main.panes[tab]
    await until(pilot, lambda: len(pane.models) == 4)
    return pane


@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["120x40", "80x24"])
async def test_compare_asks_both_with_the_same_seed(size, a_run, an_app, fake) -> None:
    a_run("finished")
    app = an_app("finished", tab="compare")
    async with app.run_test(size=size) as pilot:
        pane = await opened(pilot, "compare")
        await pilot.press("n", "n", "n", "n", "enter")
        await until(pilot, lambda: pane.left.finish == "length" and pane.right.finish == "stop" and not pane.busy)
        measured = " ".join(pane.right.plain.split())
        assert "ended properly" in measured and "123.4 tok/s" in measured
        assert "words" in pane.left.plain and "repeats" in pane.left.plain
    by_model = {model: (what, knobs) for model, what, knobs in fake.asked}
    assert by_model["base"][0] == "What does str.split do?"
    assert by_model["rl"][0] == [{"role": "user", "content": "What does str.split do?"}]
    assert by_model["base"][1] == by_model["rl"][1] and by_model["base"][1]["seed"] == 1


async def test_the_right_model_can_be_chosen(a_run, an_app, fake) -> None:
    a_run("finished")
    app = an_app("finished", tab="compare")
    async with app.run_test(size=WIDE) as pilot:
        pane = await opened(pilot, "compare")
        assert pane.right_model == "rl"
        await pilot.press("f2")
        assert pane.right_model == "mid"
        await pilot.press("f2", "enter")
        await until(pilot, lambda: pane.right.answer == ANSWERS["sft"])


async def test_one_key_carries_on_into_chat(a_run, an_app, fake) -> None:
    run = a_run("finished")
    app = an_app("finished", tab="compare")
    async with app.run_test(size=WIDE) as pilot:
        pane = await opened(pilot, "compare")
        await pilot.press("i", *"Hi q", "enter")
        await until(pilot, lambda: pane.right.finish == "stop")
        await pilot.press("escape", "c")
        await until(pilot, lambda: app.main.tab == "chat")
        chat = app.main.panes["chat"]
        await until(pilot, lambda: [turn.content for turn in chat.conversation.turns] == ["Hi q", ANSWERS["rl"]])
        await pilot.press(*"more", "enter")
        await until(pilot, lambda: len(chat.conversation.turns) == 4 and not chat.busy)
        assert fake.asked[-1][0] == "rl" and len(fake.asked[-1][1]) == 3
        file = run.dir / "conversations" / f"{chat.conversation.id}.json"
        await until(pilot, lambda: file.exists() and len(json.loads(file.read_text())["turns"]) == 4)


async def test_chat_stops_edits_and_begins_anew(a_run, an_app, fake) -> None:
    a_run("finished")
    fake.pause = 0.2
    app = an_app("finished", tab="chat")
    async with app.run_test(size=NARROW) as pilot:
        chat = await opened(pilot, "chat")
        await pilot.press("i", *"What?", "enter")
        await until(pilot, lambda: len(chat.conversation.turns) == 2 and chat.conversation.turns[1].content != "")
        await pilot.press("escape")
        await until(pilot, lambda: not chat.busy)
        assert chat.conversation.turns[1].finish_reason == "cancel"
        await until(pilot, lambda: "stopped by you" in shown(app))
        await pilot.press("f4")
        assert chat.box.text == "What?" and chat.conversation.turns == []
        await pilot.press("ctrl+n")
        assert chat.conversation.turns == []


async def test_earlier_conversations_open(a_run, an_app) -> None:
    a_run("finished")
    app = an_app("finished", tab="chat")
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot, "chat")
        await pilot.press("f5")
        await until(pilot, lambda: "What does str.split do?" in shown(app))
        await pilot.press("enter")
        await until(pilot, lambda: "It returns a list of the words in the string." in shown(app))


async def test_sampling_is_checked_and_taken(a_run, an_app, fake) -> None:
    a_run("finished")
    app = an_app("finished", tab="compare")
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot, "compare")
        await pilot.press("f3")
        await until(pilot, lambda: "Sampling" in shown(app))
        await pilot.press("end", *["backspace"] * 5, *"hot", "enter")
        await until(pilot, lambda: "chat.temperature" in shown(app))
        await pilot.press(*["backspace"] * 5, *"0.0", "enter")
        await until(pilot, lambda: "temperature 0 " in shown(app))
        await pilot.press("enter")
        await until(pilot, lambda: len(fake.asked) == 2)
        assert fake.asked[0][2]["temperature"] == 0.0


async def test_a_process_that_cannot_start_is_said(a_run, an_app, monkeypatch) -> None:
    a_run("finished")

    def refuse(run: object) -> None:
        raise UserError("the inference process ended at once: no checkpoint")

    monkeypatch.setattr(serving, "ensure_serving", refuse)
    app = an_app("finished", tab="chat")
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot, "chat")
        await pilot.press("i", *"Hi", "enter")
        await until(pilot, lambda: "no checkpoint" in shown(app))


async def test_nobody_to_talk_to_yet(a_run, an_app) -> None:
    a_run("failed")
    app = an_app("failed", tab="chat")
    async with app.run_test(size=NARROW) as pilot:
        await until(pilot, lambda: "Nobody to talk to yet" in shown(app))
        await pilot.press("7")
        await until(pilot, lambda: "No model to compare yet" in shown(app))
