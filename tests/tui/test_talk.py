"""Compare and Chat against a stand-in for the inference process."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import msgspec
import pytest
from rich.console import Console

from picollm.run import serving, votes
from picollm.run.errors import UserError
from picollm.run.folder import Run
from picollm.run.stream import Token, ToolCall
from tests.endpoint import HOSTILE
from tests.tui.conftest import NARROW, WIDE, shown, until
from tui import asks, conversations, export
from tui.screens.ask import PickScreen
from tui.screens.voice import VoiceScreen
from tui.voices import Known, Voice
from tui.widgets import compare
from tui.widgets.differ import difference

ANSWERS = {
    "base": "And then the split of the split of the split of the split of the",
    "mid": "It is a method.",
    "sft": "It splits a string into a list.",
    "rl": "It returns a list of the words in the string.",
}


class FakeClient:
    """Streams word by word, each a token of its own; notes what it was asked. "27 plus" makes it call its tool."""

    asked: list[tuple[str, Any, dict[str, Any]]] = []  # noqa: RUF012
    pause = 0.005
    halt_at, go_on = -1, asyncio.Event()
    """Before this word it waits until it may go on."""

    def __init__(self, address: object) -> None:
        pass

    def astream_chat(self, model: str, messages: list[dict[str, str]], **knobs: Any):
        self.asked.append((model, messages, knobs))
        return self._words(model, messages[-1]["content"])

    def astream_completion(self, model: str, prompt: str, **knobs: Any):
        self.asked.append((model, prompt, knobs))
        return self._words(model, prompt)

    async def _words(self, model: str, prompt: str):
        words = ANSWERS[model.partition("@")[0]].split(" ")
        if "27 plus" in prompt:
            yield serving.Delta(calls=(ToolCall("27+45", "72"),))
        for number, word in enumerate(words):
            await asyncio.sleep(self.pause)
            if number == self.halt_at:
                await self.go_on.wait()
            written = (" " if number else "") + word
            other = Token(written, -0.1, ((written, -0.1), (" otherwise", -2.5)))
            yield serving.Delta(text=written, seen=(Token(" rare", -4.6) if number == 1 else other,))
        reason = "length" if model == "base" else "stop"
        yield serving.Delta(finish_reason=reason, tok_s=123.4, tokens=len(words), first_token_s=0.038,
                            prompt_tokens=90)  # fmt: skip


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeClient]:
    FakeClient.asked, FakeClient.pause = [], 0.005
    FakeClient.halt_at, FakeClient.go_on = -1, asyncio.Event()
    monkeypatch.setattr(serving, "ensure_serving", lambda run: serving.Address(uds="nowhere"))
    monkeypatch.setattr(serving, "Client", FakeClient)
    return FakeClient


async def opened(pilot, tab: str) -> Any:
    app = pilot.app
    await until(pilot, lambda: tab in app.main.panes and len(app.main.view.models) == 4)
    pane = app.main.panes[tab]
    await until(pilot, lambda: len(pane.models) == 4)
    return pane


def checkpoint(run: Run, folder: str, step: int) -> None:
    """A whole one, as far as anybody can see who does not load it."""
    path = run.dir / folder / f"step-{step:06d}"
    path.mkdir(parents=True)
    (path / "manifest.json").write_text("{}")
    (path / "meta.json").write_text(json.dumps({"shape": {"seq_len": 256}, "score": 1.5}))


@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["120x40", "80x24"])
async def test_compare_asks_both_with_the_same_seed(size, a_run, an_app, fake) -> None:
    a_run("finished")
    app = an_app("finished", tab="compare")
    async with app.run_test(size=size) as pilot:
        pane = await opened(pilot, "compare")
        await pilot.press("n", "n", "n", "n", "enter")
        await until(pilot, lambda: (pane.a.answer.finish, pane.b.answer.finish) == ("length", "stop") and not pane.busy)
        measured = " ".join(pane.b.plain.split())
        assert "ended properly" in measured and "123.4 tok/s" in measured and "first token 38 ms" in measured
        assert "words" in pane.a.plain and "repeats" in pane.a.plain
    by_model = {model: (what, knobs) for model, what, knobs in fake.asked}
    assert by_model["base"][0] == "What does str.split do?"
    assert by_model["rl"][0] == [{"role": "user", "content": "What does str.split do?"}]
    shared = ("seed", "temperature", "top_k", "max_tokens")
    assert [by_model["base"][1][key] for key in shared] == [by_model["rl"][1][key] for key in shared]
    assert by_model["base"][1]["seed"] == 1


async def test_either_side_can_be_anybody_and_what_differs_is_told(a_run, an_app, fake) -> None:
    a_run("finished")
    other = a_run("stopped")
    checkpoint(other, "base_checkpoints", 200)
    app = an_app("finished", tab="compare")
    async with app.run_test(size=WIDE) as pilot:
        pane = await opened(pilot, "compare")
        assert pane.b.title == "rl"
        await pilot.press("b")
        await until(pilot, lambda: "Who answers as B" in shown(app))
        await pilot.press(*"stopped base", "enter")
        await until(pilot, lambda: pane.b.title == "stopped/base@200")
        assert "continues the text · Pretrain, step 200, 1.500 bits per byte" in " ".join(pane.b.plain.split())
        await pilot.press("enter")
        await until(pilot, lambda: pane.b.answer.text == ANSWERS["base"])
        await until(pilot, lambda: {asked[0] for asked in fake.asked} == {"base", "base@200"})
        await pilot.press("d")
        await until(pilot, lambda: "What they are" in shown(app) and "step" in shown(app))
        await pilot.press("d")
        await until(pilot, lambda: "What they are" not in shown(app))


async def test_stepping_and_watching_go_through_the_checkpoints_of_a_run(a_run, an_app, fake, monkeypatch) -> None:
    run = a_run("finished")
    for step in (100, 200, 300):
        checkpoint(run, "base_checkpoints", step)
    app = an_app("finished", tab="compare")
    async with app.run_test(size=WIDE) as pilot:
        pane = await opened(pilot, "compare")
        await pilot.press("enter")
        await until(pilot, lambda: pane.a.answer.text == ANSWERS["base"] and not pane.busy)
        monkeypatch.setattr(compare, "PAUSE_S", 3600.0)
        await pilot.press("left_curly_bracket")
        monkeypatch.setattr(compare, "PAUSE_S", 0.01)
        await pilot.press("left_curly_bracket")
        await until(pilot, lambda: pane.a.title == "base@200" and pane.a.answer.text == ANSWERS["base"])
        assert [asked[0] for asked in fake.asked].count("base@300") == 0, "only where it ends is asked"
        fake.asked.clear()
        await pilot.press("w")
        await until(pilot, lambda: pane.b.title == "rl" and not pane.busy)
        order = ["base@100", "base@200", "base@300", "base", "mid", "sft", "rl"]
        assert [title for title, _ in pane.b.trail] == order[:-1]
        asked = [model for model, _, _ in fake.asked]
        assert sorted(asked) == sorted([*order, "base@200"]), "A answers once, each checkpoint once"


async def test_a_vote_is_kept_in_the_run(a_run, an_app, fake, monkeypatch) -> None:
    run = a_run("finished")
    before = len(votes.read(run))
    app = an_app("finished", tab="compare")
    said: list[str] = []
    monkeypatch.setattr(app, "complain", said.append)
    async with app.run_test(size=WIDE) as pilot:
        pane = await opened(pilot, "compare")
        await pilot.press("v")
        await until(pilot, lambda: said == ["a vote needs two answers: ask first, and let both finish"])
        await pilot.press("enter")
        await until(pilot, lambda: bool(pane.a.answer.finish and pane.b.answer.finish) and not pane.busy)
        await pilot.press("v")
        await until(pilot, lambda: "Which is better?" in shown(app))
        await pilot.press("enter")
        await until(pilot, lambda: "first say which is better" in shown(app))
        await pilot.press("b", "down", "2", "j", "right", "right", "tab", *"why", "enter")
        await until(pilot, lambda: len(votes.read(run)) > before)
    vote = votes.read(run)[-1]
    assert (vote.winner, vote.note, vote.a.model, vote.b.model) == ("b", "why", "finished/base", "finished/rl")
    assert vote.a.scores == {"follows": 2} and vote.b.scores == {"follows": 2}
    assert vote.b.answer == ANSWERS["rl"] and vote.sampling["seed"] == 1


async def test_one_key_carries_on_into_chat(a_run, an_app, fake) -> None:
    run = a_run("finished")
    app = an_app("finished", tab="compare")
    async with app.run_test(size=WIDE) as pilot:
        pane = await opened(pilot, "compare")
        await pilot.press("i", *"Hi q", "enter")
        await until(pilot, lambda: pane.b.answer.finish == "stop" and not pane.busy)
        await pilot.press("escape", "c")
        await until(pilot, lambda: app.main.tab == "chat")
        chat = app.main.panes["chat"]
        await until(pilot, lambda: [turn.content for turn in chat.conversation.turns] == ["Hi q", ANSWERS["rl"]])
        await until(pilot, lambda: app.focused is chat.box)
        await pilot.press(*"more", "enter")
        await until(pilot, lambda: len(chat.conversation.turns) == 4 and not chat.busy)
        assert fake.asked[-1][0] == "rl" and len(fake.asked[-1][1]) == 3
        file = run.dir / "conversations" / f"{chat.conversation.id}.json"
        await until(pilot, lambda: file.exists() and len(json.loads(file.read_text())["turns"]) == 4)


async def test_chat_stops_edits_and_begins_anew(a_run, an_app, fake) -> None:
    a_run("finished")
    fake.halt_at = 2
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
        await until(pilot, lambda: chat.box.text == "What?" and chat.conversation.turns == [])
        await pilot.press("ctrl+n")
        assert chat.conversation.turns == []


async def test_an_answer_can_be_made_again_looked_into_and_copied(a_run, an_app, fake, monkeypatch) -> None:
    run = a_run("finished")
    checkpoint(run, "rl_checkpoints", 40)
    app = an_app("finished", tab="chat")
    copied: list[tuple[str, str]] = []
    monkeypatch.setattr(app, "copy", lambda words, what: copied.append((words, what)))
    async with app.run_test(size=(200, 50)) as pilot:
        chat = await opened(pilot, "chat")
        await pilot.press("i", *"27 plus 45", "enter")
        await until(pilot, lambda: not chat.busy and len(chat.conversation.turns) == 2)
        await until(pilot, lambda: "calculator  27+45 = 72" in shown(app) and "first token 38 ms" in shown(app))
        await pilot.press("escape", "a")
        await until(pilot, lambda: not chat.busy and "answer 2, the earlier" in shown(app))
        turn = chat.conversation.turns[-1]
        assert [each[2]["seed"] for each in fake.asked] == [1, 2] and len(turn.earlier) == 1
        assert turn.calls == [ToolCall("27+45", "72")]
        await pilot.press("t", "right", "l", "h")
        await until(pilot, lambda: "token 2 of" in shown(app))
        assert "1.0 %" in shown(app) and "“ rare”" in shown(app) and "perplexity" in shown(app)
        await pilot.press("l")
        await until(pilot, lambda: "“ otherwise”" in shown(app) and "90.5 %" in shown(app))
        await pilot.press("t", "Y", "p", "p", "Y")
        assert copied == [(ANSWERS["rl"], "the answer of rl"), ("27 plus 45", "your message")]
        assert "100 tokens" in shown(app), "the context: 90 of the prompt and 10 of the answer"


async def test_a_base_models_words_are_no_markdown_and_steer_no_terminal(a_run, an_app, fake, monkeypatch) -> None:
    a_run("finished")
    monkeypatch.setitem(ANSWERS, "base", "# not\x1b[2J a *heading*")
    app = an_app("finished", tab="chat")
    async with app.run_test(size=WIDE) as pilot:
        chat = await opened(pilot, "chat")
        chat.voice = app.talker().voice("base")
        await chat.send("Once")
        await until(pilot, lambda: not chat.busy and "# not\ufffd[2J a *heading*" in shown(app))
        assert not chat.query("Markdown")


async def test_the_name_of_a_model_steers_no_terminal(a_run, an_app) -> None:
    here = str(a_run("finished").dir)
    hostile = Known(voice=Voice(url="http://x/v1", model="text\x1b[2J[bold]"))
    app = an_app("finished")
    async with app.run_test(size=WIDE) as pilot:
        app.push_screen(VoiceScreen("Who answers", [hostile], here))
        await until(pilot, lambda: "x/text\ufffd[2J[bold]" in shown(app))
        app.push_screen(PickScreen("Earlier conversations", [("id", "Hi", hostile.voice.title(here))]))
        await until(pilot, lambda: "Hi  x/text\ufffd[2J[bold]" in shown(app))
        app.complain("refused \x1b[2J[bold]")
        await until(pilot, lambda: [note.message for note in app._notifications] == ["refused \ufffd[2J[bold]"])
        app.complain("refused \x1b[2J[bold]")
        await pilot.pause()
        assert len(app._notifications) == 1, "it stands there"
    console = Console(width=120)
    with console.capture() as capture:
        console.print(*difference(hostile.voice, hostile.voice, here))
    assert capture.get().count("x/text\ufffd[2J[bold]") == 2 and "\x1b" not in capture.get()


async def test_nothing_of_a_hostile_answer_is_lost_and_none_of_it_steers(a_run, an_app, fake, monkeypatch) -> None:
    """Deep lists, HTML and open fences would be passed over as Markdown; half of a character cannot be sent at all."""
    a_run("finished")
    monkeypatch.setitem(ANSWERS, "rl", HOSTILE.replace("x" * 10_000, "") + "\ud83d end")
    fake.pause = 0
    app = an_app("finished", tab="chat")
    async with app.run_test(size=(120, 90)) as pilot:
        chat = await opened(pilot, "chat")
        await pilot.press("i", *"Hi", "enter")
        await until(pilot, lambda: not chat.busy and "def f(:" in shown(app))
        seen = shown(app)
        assert all(words in seen for words in ("level 29", "<script>", "[bold red]", "日本語", "שלום", "\ufffd end"))
        assert not any(letter in seen for letter in "\x1b\x07\x9b\u202e\ud83d")
        await until(pilot, lambda: len(conversations.kept(app.conversations_folder())) > 0)


@pytest.mark.parametrize("tab", ["compare", "chat"])
async def test_an_endless_answer_does_not_hold_the_app(tab, a_run, an_app, fake, monkeypatch) -> None:
    """Of what nobody can read only the end is drawn; the rest is there to copy."""
    a_run("finished")
    monkeypatch.setitem(ANSWERS, "rl", " ".join(["word"] * 30_000))
    fake.pause = 0
    app = an_app("finished", tab=tab)
    async with app.run_test(size=WIDE) as pilot:
        pane = await opened(pilot, tab)
        await pilot.press(*("enter",) if tab == "compare" else ("i", *"Hi", "enter"))
        await until(pilot, lambda: "word word word" in shown(app))
        await until(pilot, lambda: not pane.busy and "30,000 words" in shown(app), 240)
        drawn = pane.b if tab == "compare" else pane.turns.views[-1].query_one(".words")
        assert "the first 129,999 characters are not drawn" in " ".join(drawn.plain.split())
        await pilot.press("escape", "home")
        await until(pilot, lambda: "129,999" in shown(app) or "you\n" in shown(app))


async def test_a_conversation_is_on_disk_while_it_is_answered(a_run, an_app, fake, monkeypatch) -> None:
    run = a_run("finished")
    monkeypatch.setattr("tui.widgets.chat.KEEP_S", 0.05)
    fake.pause, fake.halt_at = 0.06, 8
    before = {one.id for one in conversations.kept(run.dir / "conversations")}
    app = an_app("finished", tab="chat")

    def kept() -> list[conversations.Conversation]:
        return [one for one in conversations.kept(run.dir / "conversations") if one.id not in before]

    async with app.run_test(size=NARROW) as pilot:
        chat = await opened(pilot, "chat")
        await pilot.press("i", *"What?", "enter")
        await until(pilot, lambda: bool(kept()) and chat.busy)  # as a kill -9 would leave it
        await until(pilot, lambda: len(kept()[0].turns) == 2)
        assert kept()[0].turns[0].content == "What?" and ANSWERS["rl"].startswith(kept()[0].turns[1].content)
        assert kept()[0].turns[1].finish_reason == "cut"
        fake.go_on.set()
        await until(pilot, lambda: not chat.busy and kept()[0].turns[1].finish_reason == "stop")


def test_a_copied_run_keeps_its_conversations_to_itself(tmp_path) -> None:
    """Who answered is the run's own model, wherever its folder lies; files from before said where it lay then."""
    mine, copy = tmp_path / "mine" / "conversations", tmp_path / "copy" / "conversations"
    voice = Voice(model="rl", run=str(mine.parent))
    kept = conversations.begin("rl")
    kept.voice, kept.turns = voice, [conversations.Turn(role="user", content="Hi")]
    conversations.save(mine, kept)
    file = f"{kept.id}.json"
    assert kept.voice == voice and str(tmp_path) not in (mine / file).read_text()
    older = json.loads((mine / file).read_text()) | {"voice": {"model": "rl", "run": str(mine.parent)}}
    for text in ((mine / file).read_text(), json.dumps(older)):
        copy.mkdir(parents=True, exist_ok=True)
        (copy / file).write_text(text)
        assert conversations.load(copy / file).voice == Voice(model="rl", run=str(copy.parent))


def test_an_answer_that_was_to_be_replaced_outlives_a_kill(tmp_path) -> None:
    first = conversations.Earlier(content="one", model="sft")
    kept = conversations.begin("rl")
    wordless = conversations.Turn(role="assistant", content="", model="rl", finish_reason="stop", earlier=[first])
    kept.turns = [
        conversations.Turn(role="user", content="Hi"),
        conversations.Turn(role="assistant", content="", model="rl", tokens=3, tok_s=1.5, earlier=[first]),
        wordless,
        conversations.Turn(role="assistant", content="half"),
        conversations.Turn(role="assistant", content=""),
    ]
    conversations.save(tmp_path, kept)
    _, answer, silent, half = conversations.load(tmp_path / f"{kept.id}.json").turns
    assert answer == conversations.Turn(role="assistant", content="one", model="sft", finish_reason="stop")
    assert silent == wordless, "it ended so"
    assert (half.content, half.finish_reason) == ("half", "cut")


@pytest.mark.parametrize("how", ["refused", "stopped"])
async def test_an_answer_stays_where_no_word_comes_of_another(how, a_run, an_app, fake, monkeypatch) -> None:
    a_run("finished")
    app = an_app("finished", tab="chat")

    async def silence(self: FakeClient, model: str, prompt: str):
        if how == "refused":
            raise UserError("the inference process is gone")
        await asyncio.sleep(3600)
        yield serving.Delta()

    async with app.run_test(size=WIDE) as pilot:
        chat = await opened(pilot, "chat")
        await pilot.press("i", *"What?", "enter")
        await until(pilot, lambda: not chat.busy and "ended properly" in shown(app))
        before = msgspec.structs.replace(chat.conversation.turns[-1])
        monkeypatch.setattr(fake, "_words", silence)
        await pilot.press("escape", "a")
        await until(pilot, lambda: len(fake.asked) == 2)
        if how == "stopped":
            await until(pilot, lambda: "waiting for the model" in shown(app))
            await pilot.press("escape")
        await until(pilot, lambda: not chat.busy and "ended properly" in shown(app) and ANSWERS["rl"] in shown(app))
        assert len(chat.conversation.turns) == 2 and chat.conversation.turns[-1] == before
        file = app.conversations_folder() / f"{chat.conversation.id}.json"
        await until(pilot, lambda: conversations.load(file).turns[-1] == before)


async def test_of_a_long_answer_the_end_and_the_name_stay_in_view(a_run, an_app, fake, monkeypatch) -> None:
    a_run("finished")
    monkeypatch.setitem(ANSWERS, "rl", "word\n" * 60 + "the last")
    fake.pause = 0
    app = an_app("finished", tab="compare")
    async with app.run_test(size=NARROW) as pilot:
        pane = await opened(pilot, "compare")
        await pilot.press("enter")
        await until(pilot, lambda: not pane.busy and "the last" in shown(app) and "first token 38 ms" in shown(app))
        assert "B rl" in shown(app) and pane.b.scroll_y == pane.b.max_scroll_y > 0
        await pilot.press("home")
        await until(pilot, lambda: pane.b.scroll_y == 0)
        pane.b.draw()
        assert pane.b.scroll_y == 0, "what a person scrolled to stays"


async def test_another_stage_leaves_the_conversation_where_it_is(a_run, an_app, fake, monkeypatch) -> None:
    a_run("finished")
    monkeypatch.setitem(ANSWERS, "rl", "word\n\n" * 100)
    app = an_app("finished", tab="chat")
    async with app.run_test(size=NARROW) as pilot:
        chat = await opened(pilot, "chat")
        await chat.send("Hi")
        await until(pilot, lambda: not chat.busy and chat.turns.scroll_y == chat.turns.max_scroll_y > 0)
        await pilot.press("escape", "k")
        await until(pilot, lambda: app.main.stage != "report")
        assert chat.turns.scroll_y == chat.turns.max_scroll_y


async def test_earlier_conversations_open(a_run, an_app) -> None:
    run = a_run("finished")
    kept = [one.title for one in conversations.kept(run.dir / "conversations")]
    app = an_app("finished", tab="chat")
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot, "chat")
        await pilot.press("f5")
        await until(pilot, lambda: "What does str.split do?" in shown(app))
        await pilot.press(*["down"] * kept.index("What does str.split do?"), "enter")
        await until(pilot, lambda: "It returns a list of the words in the string" in shown(app))


async def test_pictures_of_compare_and_chat_show_answers(a_run, fake) -> None:
    a_run("finished")
    sides = await export._draw(asks.Options(run="finished", tab="compare"), "compare", (160, 40), None, True)
    assert "ended&#160;properly" in sides and "list&#160;of&#160;the&#160;words" in sides
    chat = await export._draw(asks.Options(run="finished", tab="chat"), "chat", (160, 40), None, False)
    assert "new&#160;conversation" not in chat and "you" in chat


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
