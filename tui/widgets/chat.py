"""Chat: talk to what the run made; every conversation is kept on disk in the run folder."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from rich.console import RenderableType
from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.worker import Worker

from picollm.run.errors import UserError
from tui import actions, conversations, state
from tui.conversations import Conversation, Turn
from tui.figures import clock
from tui.talk import Sampling, Talker
from tui.widgets.answer import measured
from tui.widgets.frame import OneLine
from tui.widgets.lines import LinesView, empty_state, rows, text
from tui.widgets.prompt_box import PromptBox
from tui.widgets.tones import tone

if TYPE_CHECKING:
    from tui.app import PicollmApp

FLUSH_S = 0.08


class ChatPane(Vertical):
    """The conversation, and the box to write in."""

    app: PicollmApp

    DEFAULT_CSS = """
    ChatPane #chat-turns { height: 1fr; }
    ChatPane #chat-how { margin-top: 1; }
    ChatPane #chat-box { margin-top: 1; }
    """

    def __init__(self, talker: Callable[[], Talker], folder: Callable[[], Path], sampling: Sampling,
                 id: str | None = None) -> None:  # fmt: skip
        super().__init__(id=id)
        self._talker, self._folder = talker, folder
        self.sampling = sampling
        self.models: tuple[str, ...] = ()
        self.model = ""
        self.conversation = conversations.begin()
        self.writing = False
        self.error = ""
        self._worker: Worker[None] | None = None

    def compose(self) -> ComposeResult:
        yield LinesView(id="chat-turns")
        yield OneLine(id="chat-how")
        yield PromptBox("Enter: write, then send · ^j new line · esc leaves", id="chat-box")

    def on_mount(self) -> None:
        self.turns = self.query_one("#chat-turns", LinesView)
        self.box = self.query_one("#chat-box", PromptBox)
        self._draw()

    def on_resize(self) -> None:
        self._draw()

    def update_from(self, view: state.RunView) -> None:
        if view.models != self.models or not self.model:
            self.models = view.models
            if self.model not in self.models:
                self.model = state.best_chat_model(self.models) or (self.models[0] if self.models else "")
            self._draw()

    def _draw(self) -> None:
        if not self.is_mounted or not hasattr(self, "turns"):
            return
        found: list[RenderableType] = []
        for number, turn in enumerate(self.conversation.turns):
            last = number == len(self.conversation.turns) - 1
            if turn.role == "user":
                found += [text(("you", "second")), rows([("", turn.content)], 0), Text("")]
                continue
            found.append(text((turn.model or "model", "title")))
            body = text(turn.content)
            if last and self.writing:
                body.append("▏" if turn.content else "▏ waiting for the model …", tone("accent"))
            found.append(rows([("", body)], 0))
            if turn.finish_reason:
                found.append(rows([("", measured(turn.content, turn.finish_reason, turn.tok_s))], 0))
            found.append(Text(""))
        if self.error:
            found.append(text((self.error, "bad")))
        if not found:
            found = self._empty()
        at_end = self.turns.scroll_offset.y >= self.turns.max_scroll_y - 1
        self.turns.show(found)
        if at_end or self.writing:
            self.turns.scroll_end(animate=False)
        s = self.sampling
        self.query_one("#chat-how", OneLine).set_line(
            text((self.model or "no model", "strong"),
                 (f"  temperature {s.temperature:g}  top-k {s.top_k}  seed {s.seed}  at most {s.max_tokens} tokens",
                  "faint"), ("  system prompt set" if s.system else "", "faint"))
        )  # fmt: skip

    def _empty(self) -> list[RenderableType]:
        if not self.models:
            return empty_state("Nobody to talk to yet", "A chat model is here as soon as Midtrain is done;",
                               "SFT and RL make it better.")  # fmt: skip
        note = "The base model continues your text; it does not answer." if self.model == "base" else ""
        key, earlier = actions.find("next_model").first, actions.find("conversations").first
        return empty_state(f"A new conversation with {self.model}", note or "Write below.",
                           f"{key} chooses another model, {earlier} opens an earlier conversation.")  # fmt: skip

    @property
    def busy(self) -> bool:
        return self._worker is not None and not self._worker.is_finished

    @on(PromptBox.Sent, "#chat-box")
    def _sent(self, event: PromptBox.Sent) -> None:
        event.stop()
        self.send(event.value)

    def send(self, words: str) -> None:
        """One more turn of this conversation."""
        if not self.model:
            self.error = "no model yet: Midtrain makes the first one that answers"
            self._draw()
            return
        if self.busy:
            self.error = f"an answer is being written: {actions.find('back').first} stops it"
            self._draw()
            return
        self.error = ""
        self.box.clear()
        self.conversation.turns.append(Turn(role="user", content=words))
        self.conversation.model = self.model
        self._worker = self.run_worker(self._answer(), exit_on_error=False)

    async def _answer(self) -> None:
        conversation = self.conversation
        asked = conversation.messages()
        sampling = msgspec.structs.replace(self.sampling)
        turn = Turn(role="assistant", content="", model=self.model, sampling=sampling)
        conversation.turns.append(turn)
        self.writing = True
        self._draw()
        loop = asyncio.get_running_loop()
        flushed = loop.time()
        try:
            async for piece in self._talker().answer(self.model, asked, sampling):
                turn.content += piece.text
                turn.finish_reason = piece.finish_reason or turn.finish_reason
                turn.tok_s = piece.tok_s or turn.tok_s
                if loop.time() - flushed > FLUSH_S:
                    flushed = loop.time()
                    self._draw()
        except asyncio.CancelledError:
            turn.finish_reason = "cancel"
            raise
        except UserError as error:
            self.error, turn.finish_reason = str(error), "error"
            if not turn.content:
                conversation.turns.remove(turn)
        finally:
            self.writing = False
            if self.is_attached:
                self._draw()
                self._keep(conversation)

    def _keep(self, conversation: Conversation) -> None:
        """Write the conversation, in a thread."""
        copy = msgspec.structs.replace(conversation, turns=list(conversation.turns))

        def write() -> None:
            try:
                conversations.save(self._folder(), copy)
            except UserError as error:
                self.app.call_from_thread(self._say, str(error))

        self.run_worker(write, thread=True, group="keep", exit_on_error=False)

    def _say(self, words: str) -> None:
        self.error = words
        self._draw()

    def cancel(self) -> bool:
        """Stop the answer; what is there of it stays. False when none was being written."""
        if not self.busy or self._worker is None:
            return False
        self._worker.cancel()
        return True

    # keys (tui/actions/chat.py) -------------------------------------------------------------------------------------

    def do_ask(self) -> None:
        """The box sends by itself, so that Enter elsewhere leads to it."""
        self.do_type_text()

    def do_type_text(self) -> None:
        self.box.focus()

    def do_settings(self) -> None:
        self.app.choose_sampling()

    def do_conversations(self) -> None:
        self.app.work(self._find_conversations)

    def _find_conversations(self) -> str | None:
        """In a thread: read the folder, then offer the list."""
        found = conversations.kept(self._folder())
        if not found:
            return "no conversation kept yet"
        now = time.time()
        rows = [(one.id, one.title, f"{one.model}, {clock(now - one.created)} ago") for one in found]
        self.app.call_from_thread(self._offer_conversations, rows)
        return None

    def _offer_conversations(self, rows: list[tuple[str, str, str]]) -> None:
        from tui.screens.ask import PickScreen

        self.app.push_screen(PickScreen("Earlier conversations", rows), self._open_conversation)

    def _open_conversation(self, identity: str | None) -> None:
        if identity is None:
            return

        def read() -> None:
            found = conversations.load(self._folder() / f"{identity}.json")
            self.app.call_from_thread(self.open, found)

        self.app.work(read)

    def do_new_conversation(self) -> None:
        self.cancel()
        self.conversation = conversations.begin(self.model)
        self.error = ""
        self._draw()
        self.box.focus()

    def do_edit_last(self) -> None:
        """Take the last message, and the answer to it, back into the box."""
        self.cancel()
        turns = self.conversation.turns
        for number in range(len(turns) - 1, -1, -1):
            if turns[number].role == "user":
                self.box.load_text(turns[number].content)
                self.box.move_cursor(self.box.document.end)
                kept = turns[:number]
                self.conversation = conversations.begin(self.model)
                self.conversation.turns = kept
                self._draw()
                self.box.focus()
                return

    def do_next_model(self) -> None:
        if self.models:
            index = self.models.index(self.model) + 1 if self.model in self.models else 0
            self.model = self.models[index % len(self.models)]
            self._draw()

    def open(self, conversation: Conversation) -> None:
        """Go on with a conversation that was kept."""
        self.cancel()
        self.conversation = conversation
        if conversation.model in self.models:
            self.model = conversation.model
        self._draw()

    def carry_on(self, model: str, prompt: str, answer: str, finish: str | None, tok_s: float | None) -> None:
        """Begin with a prompt and, when there is one, the answer that Compare showed."""
        self.cancel()
        self.model = model or self.model
        self.conversation = conversations.begin(self.model)
        self.error = ""
        if answer:
            self.conversation.turns = [
                Turn(role="user", content=prompt),
                Turn(role="assistant", content=answer, model=self.model, finish_reason=finish or "cancel", tok_s=tok_s,
                     sampling=msgspec.structs.replace(self.sampling)),
            ]  # fmt: skip
            self._keep(self.conversation)
        else:
            self.box.load_text(prompt)
        self._draw()
        self.box.focus()
