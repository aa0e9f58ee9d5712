"""Chat: talk to what the run made; every conversation is kept on disk in the run folder."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from rich.console import RenderableType
from textual import on
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.worker import Worker

from picollm.run.errors import UserError
from tui import actions, conversations, state, voices
from tui.conversations import Conversation, Earlier, Turn
from tui.figures import clock
from tui.talk import Sampling, Talker
from tui.voices import Known, Voice
from tui.widgets.answer import Answer, Pace
from tui.widgets.chat_side import context_line, side_blocks
from tui.widgets.frame import OneLine
from tui.widgets.lines import LinesView, empty_state, text
from tui.widgets.prompt_box import PromptBox
from tui.widgets.turn import TurnView
from tui.widgets.turns import MOST_SHOWN, Turns

if TYPE_CHECKING:
    from tui.app import PicollmApp

KEEP_S = 2.0  # an answer is written to disk on the way, so that little is lost with the app
ROOMY = 110  # columns from which there is room for a panel beside the conversation


class ChatPane(Vertical):
    """The conversation, and the box to write in."""

    app: PicollmApp

    DEFAULT_CSS = """
    ChatPane #chat-body { height: 1fr; }
    ChatPane #chat-side { width: 36; margin-left: 2; display: none; }
    ChatPane.roomy #chat-side { display: block; }
    ChatPane #chat-error { height: auto; max-height: 4; display: none; }
    ChatPane #chat-how { margin-top: 1; }
    ChatPane #chat-box { margin-top: 1; }
    """

    def __init__(self, talker: Callable[[], Talker], folder: Callable[[], Path], sampling: Sampling,
                 id: str | None = None) -> None:  # fmt: skip
        super().__init__(id=id)
        self._talker, self._folder = talker, folder
        self.sampling = sampling
        self.models: tuple[str, ...] = ()
        self.voice: Voice | None = None
        self.known: dict[Voice, Known] = {}
        self.conversation = conversations.begin()
        self._answers: dict[int, Answer] = {}  # by id of their turn: what is not kept on disk
        self._worker: Worker[None] | None = None
        self._keeper = conversations.Keeper()

    def compose(self) -> ComposeResult:
        with Horizontal(id="chat-body"):
            yield Turns(id="chat-turns")
            yield LinesView(id="chat-side")
        yield LinesView(id="chat-error")
        yield OneLine(id="chat-how")
        yield PromptBox("Enter: write, then send · ^j new line · esc leaves", id="chat-box")

    async def on_mount(self) -> None:
        self.turns = self.query_one("#chat-turns", Turns)
        self.box = self.query_one("#chat-box", PromptBox)
        await self._rebuild()

    def on_resize(self) -> None:
        self.set_class(self.size.width >= ROOMY, "roomy")
        self._draw()

    @property
    def here(self) -> str:
        return str(self._talker().run.dir)

    @property
    def model(self) -> str:
        """Who answers, as the screen names them."""
        return self.voice.title(self.here) if self.voice else ""

    @property
    def busy(self) -> bool:
        return self._worker is not None and not self._worker.is_finished

    async def update_from(self, view: state.RunView) -> None:
        if view.models == self.models:
            return
        fresh = not self.models
        self.models = view.models
        best = state.best_chat_model(self.models) or (self.models[0] if self.models else "")
        own = self.voice is not None and self.voice.run == self.here and self.voice.model not in self.models
        if best and (self.voice is None or (own and "@" not in self.voice.model)):
            self.voice = self._talker().voice(best)
        found = await asyncio.to_thread(voices.of_run, self._talker().run, self.models)
        self.known |= {known.voice: known for known in found}
        if fresh and not self.conversation.turns:
            await self._rebuild()
        self._draw()

    # drawing --------------------------------------------------------------------------------------------------------

    async def _rebuild(self) -> None:
        """The messages anew."""
        await self.turns.fill(self.conversation.turns, self._answers)
        self._draw()

    def _draw(self) -> None:
        if not self.is_mounted or not hasattr(self, "turns"):
            return
        self.turns.say_empty(self._empty())
        s = self.sampling
        context = context_line(self.conversation, self.known.get(self.voice) if self.voice else None)
        line = text((self.model or "no model", "strong"), ("  ", "plain"))
        line.append_text(context)
        hidden = len(self.conversation.turns) - MOST_SHOWN
        line.append_text(
            text((f"  temperature {s.temperature:g}  top-k {s.top_k}  seed {s.seed}  at most {s.max_tokens} tokens",
                  "faint"), ("  system prompt set" if s.system else "", "faint"),
                 (f"  {hidden} older messages are in the file" if hidden > 0 else "", "faint"))
        )  # fmt: skip
        self.query_one("#chat-how", OneLine).set_line(line)
        if self.has_class("roomy"):
            known = self.known.get(self.voice) if self.voice else None
            side = side_blocks(self.conversation, self.model, known, s, self.app.readonly)
            self.call_after_refresh(self.query_one("#chat-side", LinesView).show, side)

    def redress(self) -> None:
        """In the colours of another theme."""
        self._draw()
        for view in self.turns.views:
            view.draw()

    def _empty(self) -> list[RenderableType]:
        model, earlier = (actions.find(name, "chat").first for name in ("choose_model", "conversations"))
        if self.voice is None:
            return empty_state("Nobody to talk to yet", "A chat model is here as soon as Midtrain is done;",
                               "SFT and RL make it better.", f"Models of other runs: {model}.")  # fmt: skip
        note = "The base model continues your text; it does not answer." if self.voice.continues else "Write below."
        return empty_state(f"A new conversation with {self.model}", note,
                           f"{model} chooses another model, {earlier} opens an earlier conversation.")  # fmt: skip

    def _say(self, words: str) -> None:
        view = self.query_one("#chat-error", LinesView)
        view.display = bool(words)
        self.call_after_refresh(view.show, [text((words, "bad"))] if words else [])

    # writing --------------------------------------------------------------------------------------------------------

    @on(PromptBox.Sent, "#chat-box")
    async def _sent(self, event: PromptBox.Sent) -> None:
        event.stop()
        await self.send(event.value)

    async def send(self, words: str) -> None:
        """One more turn of this conversation."""
        if self.voice is None:
            self._say("no model yet: Midtrain makes the first one that answers")
        elif self.busy:
            self._say(f"an answer is being written: {actions.find('back').first} stops it")
        else:
            self.box.clear()
            self.conversation.turns.append(Turn(role="user", content=words))
            self._begin(self.voice)

    def _begin(self, voice: Voice, last: Turn | None = None) -> None:
        """Ask for an answer to what the conversation ends with, or for another one in the place of the last."""
        self._say("")
        self.turns.forget()
        self.conversation.model, self.conversation.voice = voice.title(self.here), voice
        earlier: list[Earlier] = []
        if last is not None:
            earlier = [*last.earlier, Earlier(content=last.content, model=last.model, sampling=last.sampling)]
        sampling = msgspec.structs.replace(self.sampling, seed=self.sampling.seed + len(earlier))
        turn = Turn(role="assistant", content="", model=self.model, plain=voice.continues, sampling=sampling,
                    earlier=earlier)  # fmt: skip
        self._worker = self.run_worker(self._answer(voice, turn, sampling, last))

    async def _answer(self, voice: Voice, turn: Turn, sampling: Sampling, last: Turn | None) -> None:
        """Write an answer into `turn`. Where no word of it comes, the `last` one keeps its place."""
        conversation, answer = self.conversation, Answer()
        if last is not None:
            conversation.turns.pop()
        asked = conversation.messages()
        conversation.turns.append(turn)
        self._keep(conversation)
        kept, pace = time.monotonic(), Pace()
        self._answers[id(turn)] = answer
        view: TurnView | None = None
        try:
            await self._rebuild()
            view = self.turns.views[-1]
            await view.begin()
            async for piece in self._talker().answer(voice, asked, sampling, tokens=True):
                answer.take(piece)
                _keep_figures(turn, answer)
                if time.monotonic() - kept > KEEP_S:
                    kept = time.monotonic()
                    self._keep(conversation)
                if pace.due:
                    begun = time.monotonic()
                    await view.write()
                    self.turns.follow()
                    await pace.drawn(begun)
        except asyncio.CancelledError:
            turn.finish_reason = "cancel"
            if not turn.content and last is not None:
                conversation.turns[-1] = last
            raise
        except Exception as error:  # what is no UserError is a fault of ours: said too
            turn.finish_reason = "error"
            self._say(str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}")
            if not turn.content:
                conversation.turns[-1:] = [last] if last is not None else []
        finally:
            if self.is_attached:
                if view is not None and view.is_attached:
                    await view.end()
                    self.turns.follow()
                if conversation.turns[-1] is not turn and conversation is self.conversation:
                    await self._rebuild()
                self._draw()
                self._keep(conversation)

    def _keep(self, conversation: Conversation) -> None:
        """Write the conversation, in a thread; not where the app is to change nothing."""
        if self.app.readonly:
            return
        self._keeper.hold(conversation)

        def write() -> None:
            try:
                self._keeper.write(self._folder(), conversation.id)
            except UserError as error:
                self.app.call_from_thread(self._say, str(error))

        self.run_worker(write, thread=True, group="keep")

    def cancel(self) -> bool:
        """Stop the answer; what is there of it stays. False when none was being written."""
        if not self.busy or self._worker is None:
            return False
        self._worker.cancel()
        return True

    # keys (tui/actions/chat.py) -------------------------------------------------------------------------------------

    def do_ask(self) -> None:
        self.box.focus()

    def do_settings(self) -> None:
        self.app.choose_sampling()

    def do_choose_model(self) -> None:
        from tui.screens.voice import offer

        offer(self.app, "Who answers", self.voice, self._take)

    def _take(self, known: Known) -> None:
        self.voice = known.voice
        self.known[known.voice] = known
        self._draw()

    async def do_again(self) -> None:
        """Another answer in the place of the last, whose words the conversation keeps."""
        turns = self.conversation.turns
        if self.busy:
            raise UserError(f"an answer is being written: {actions.find('back').first} stops it")
        if not turns or self.voice is None:
            raise UserError("nothing to answer again yet")
        self._begin(self.voice, turns[-1] if turns[-1].role == "assistant" else None)

    async def do_edit_last(self) -> None:
        """Take a message, and what came after it, out of a copy of the conversation and into the box."""
        self.cancel()
        turns = self.conversation.turns
        mine = [number for number, turn in enumerate(turns) if turn.role == "user"]
        if not mine:
            raise UserError("nothing to edit yet")
        at = next((n for n in mine if turns[n] is self.turns.chosen), mine[-1])
        self.box.load_text(turns[at].content)
        self.box.move_cursor(self.box.document.end)
        self.conversation = conversations.begin(self.model)
        self.conversation.turns = turns[:at]
        self.turns.forget()
        await self._rebuild()
        self.box.focus()

    async def do_new_conversation(self) -> None:
        self.cancel()
        await self.open(conversations.begin(self.model))
        self.box.focus()

    async def do_markdown(self) -> None:
        self.turns.as_markdown = not self.turns.as_markdown
        if not self.busy:
            await self._rebuild()

    async def do_next_turn(self) -> None:
        await self.turns.step(1)

    async def do_previous_turn(self) -> None:
        await self.turns.step(-1)

    async def do_tokens(self) -> None:
        if self.turns.token is not None:
            await self.turns.mark(None, None)
            return
        answers = [turn for turn in self.conversation.turns if turn.role == "assistant"]
        if not answers or self.busy:
            raise UserError("no whole answer to look into yet")
        await self.turns.mark(self.turns.chosen if self.turns.chosen in answers else answers[-1], 0)

    async def do_token_right(self) -> None:
        await self.turns.move_token(1)

    async def do_token_left(self) -> None:
        await self.turns.move_token(-1)

    def do_copy_turn(self) -> None:
        answers = [turn for turn in self.conversation.turns if turn.role == "assistant"]
        turn = self.turns.chosen or (answers[-1] if answers else None)
        if turn is None:
            raise UserError("nothing to copy yet")
        self.app.copy(turn.content, "your message" if turn.role == "user" else f"the answer of {turn.model}")

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

        self.app.push_screen(PickScreen("Earlier conversations", rows), self._open_kept)

    def _open_kept(self, identity: str | None) -> None:
        if identity is None:
            return

        def read() -> None:
            found = conversations.load(self._folder() / f"{identity}.json")
            self.app.call_from_thread(self.call_later, self.open, found)

        self.app.work(read)

    async def open(self, conversation: Conversation) -> None:
        """Go on with a conversation, with whom it was had where they are still there."""
        self.cancel()
        self.conversation = conversation
        self.turns.forget()
        self._answers = {}
        if conversation.voice is not None:
            self.voice = conversation.voice
        elif conversation.model in self.models:
            self.voice = self._talker().voice(conversation.model)
        self._say("")
        await self._rebuild()

    async def carry_on(self, voice: Voice, prompt: str, answer: Answer | None) -> None:
        """Begin with a prompt and, when there is one, the answer that Compare showed."""
        self.cancel()
        self.voice = voice
        self.conversation = conversations.begin(self.model)
        self.turns.forget()
        self._answers = {}
        self._say("")
        if answer is not None and answer.text:
            turn = Turn(role="assistant", content="", model=self.model, plain=voice.continues,
                        sampling=msgspec.structs.replace(self.sampling))  # fmt: skip
            _keep_figures(turn, answer)
            turn.finish_reason = answer.finish or "cancel"
            self._answers[id(turn)] = answer
            self.conversation.voice = voice
            self.conversation.turns = [Turn(role="user", content=prompt), turn]
            self._keep(self.conversation)
        else:
            self.box.load_text(prompt)
        await self._rebuild()
        self.box.focus()


def _keep_figures(turn: Turn, answer: Answer) -> None:
    """What is kept of an answer on disk."""
    turn.content, turn.calls = answer.text, list(answer.calls)
    turn.finish_reason, turn.tok_s, turn.first_token_s = answer.finish, answer.tok_s, answer.first_token_s
    turn.tokens, turn.prompt_tokens, turn.cut_tokens = answer.tokens, answer.prompt_tokens, answer.cut_tokens
