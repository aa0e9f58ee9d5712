"""Compare: the same prompt and the same seed to the base model and to a chat model, side by side."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType
from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.worker import Worker

from picollm.run.errors import UserError
from tui import actions, state
from tui.talk import Sampling, Talker
from tui.widgets.answer import measured
from tui.widgets.frame import OneLine
from tui.widgets.lines import LinesView, empty_state, heading, text
from tui.widgets.prompt_box import PromptBox
from tui.widgets.tones import tone

if TYPE_CHECKING:
    from tui.app import PicollmApp

FLUSH_S = 0.08


class AnswerPane(LinesView):
    """One model's answer. Text is flushed a dozen times a second, not per token."""

    def __init__(self, id: str, note: str) -> None:
        super().__init__(id=id)
        self.model, self.note = "", note
        self.answer = ""
        self.finish: str | None = None
        self.tok_s: float | None = None
        self.tokens: int | None = None
        self.error = ""
        self.writing = False

    def reset(self, model: str) -> None:
        self.model, self.answer, self.finish, self.tok_s, self.tokens = model, "", None, None, None
        self.error, self.writing = "", False
        self.draw()

    def draw(self) -> None:
        """Heading, answer, measures."""
        found: list[RenderableType] = [heading(self.model or "–", self.note), Text("")]
        if self.error:
            found.append(text((self.error, "bad")))
        body = text((self.answer, "plain"))
        if self.writing:
            body.append("▏", tone("accent"))
        found += [body, Text("")]
        if self.writing and not self.answer:
            found.append(text(("waiting for the model …", "faint")))
        if self.answer or self.finish:
            found.append(measured(self.answer, self.finish, self.tok_s, self.tokens))
        self.show(found)
        if self.writing:
            self.scroll_end(animate=False)


class ComparePane(Vertical):
    """Prompt list, box for one's own prompt, two answers."""

    app: PicollmApp

    DEFAULT_CSS = """
    ComparePane #compare-prompts { height: auto; max-height: 9; margin-bottom: 1; }
    ComparePane #compare-answers { height: 1fr; margin-top: 1; }
    ComparePane #compare-left { width: 1fr; margin-right: 2; }
    ComparePane #compare-right { width: 1fr; }
    ComparePane #compare-how { margin-top: 1; }
    ComparePane #compare-empty { display: none; }
    ComparePane.empty > * { display: none; }
    ComparePane.empty > #compare-empty { display: block; }
    """

    def __init__(self, talker: Callable[[], Talker], sampling: Sampling, id: str | None = None) -> None:
        super().__init__(id=id)
        self._talker = talker
        self.sampling = sampling
        self.prompts: tuple[str, ...] = ()
        self.models: tuple[str, ...] = ()
        self.chosen = 0
        self.own = ""
        self.right_model = ""
        self._asked = ""
        self._workers: list[Worker[None]] = []

    def compose(self) -> ComposeResult:
        yield LinesView(id="compare-empty")
        yield LinesView(id="compare-prompts")
        yield PromptBox("i: your own prompt, Enter asks", id="compare-own")
        yield OneLine(id="compare-how")
        with Horizontal(id="compare-answers"):
            yield AnswerPane("compare-left", "continues the text")
            yield AnswerPane("compare-right", "answers")

    def on_mount(self) -> None:
        self.left = self.query_one("#compare-left", AnswerPane)
        self.right = self.query_one("#compare-right", AnswerPane)
        self._draw()

    @property
    def prompt(self) -> str:
        """What would be asked now."""
        if self.own:
            return self.own
        return self.prompts[self.chosen] if self.prompts else ""

    @property
    def busy(self) -> bool:
        return any(not worker.is_finished for worker in self._workers)

    def update_from(self, view: state.RunView) -> None:
        self.prompts = view.prompts
        self.chosen = min(self.chosen, max(0, len(self.prompts) - 1))
        if view.models != self.models or not self.right_model:
            self.models = view.models
            best = state.best_chat_model(self.models) or ""
            self.right_model = best if not self.right_model or self.right_model not in self.models else self.right_model
        self._draw()

    def _draw(self) -> None:
        if not self.is_mounted or not hasattr(self, "left"):
            return
        nothing = not self.models
        self.set_class(nothing, "empty")
        if nothing:
            self.query_one("#compare-empty", LinesView).show(
                empty_state(
                    "No model to compare yet",
                    "As soon as Pretrain is done, the base model answers here;",
                    "after Midtrain, the chat model beside it.",
                )
            )
            return
        lines: list[RenderableType] = []
        narrow = self.app.size.width < 100
        for number, prompt in enumerate(self.prompts):
            chosen = number == self.chosen and not self.own
            if narrow and number != self.chosen:
                continue
            place = f" {number + 1}/{len(self.prompts)} " if narrow else ""
            line = text(("▌ " if chosen else "  ", "accent"), (place, "faint"),
                        (prompt, "strong" if chosen else "faint"))  # fmt: skip
            line.truncate(max(10, self.size.width - 2), overflow="ellipsis")
            lines.append(line)
        self.query_one("#compare-prompts", LinesView).show(lines)
        s = self.sampling
        self.query_one("#compare-how", OneLine).set_line(
            text(("both: ", "faint"), (f"seed {s.seed}", "plain"),
                 (f"  temperature {s.temperature:g}  top-k {s.top_k}  at most {s.max_tokens} tokens", "faint"))
        )  # fmt: skip
        if not self._asked:
            self.left.model = "base" if "base" in self.models else ""
            self.right.model = self.right_model
            self.right.note = "answers" if self.right_model else "no chat model yet"
            self.left.draw()
            self.right.draw()

    def on_resize(self) -> None:
        self._draw()

    # keys (tui/actions/compare.py) ----------------------------------------------------------------------------------

    def do_next_prompt(self) -> None:
        self.step(1)

    def do_previous_prompt(self) -> None:
        self.step(-1)

    def do_ask(self) -> None:
        self.ask()

    def do_type_text(self) -> None:
        self.query_one(PromptBox).focus()

    def do_settings(self) -> None:
        self.app.choose_sampling()

    async def do_carry_on(self) -> None:
        """Go on in Chat with the prompt and the chat model's answer."""
        model, prompt, pane = self.carry()
        if not model or not prompt:
            raise UserError("nothing to carry on yet: ask first")
        self.cancel()
        await self.app.main.show_tab("chat")
        chat: Any = self.app.main.panes["chat"]
        chat.update_from(self.app.main.view)
        finish = pane.finish if pane.answer else None
        chat.carry_on(model, prompt, pane.answer if pane.model == model else "", finish, pane.tok_s)

    def step(self, by: int) -> None:
        """Select another prompt of the list."""
        self.own = ""
        if self.prompts:
            self.chosen = (self.chosen + by) % len(self.prompts)
        self._draw()
        view = self.query_one("#compare-prompts", LinesView)
        if not view.show_vertical_scrollbar:
            return
        view.scroll_to(y=max(0, self.chosen - 3), animate=False)

    def do_next_model(self) -> None:
        chat = [name for name in self.models if name != "base"]
        if chat:
            index = chat.index(self.right_model) + 1 if self.right_model in chat else 0
            self.right_model = chat[index % len(chat)]
            self._asked = ""
            self.cancel()
            self.right.reset(self.right_model)
            self._draw()

    @on(PromptBox.Sent, "#compare-own")
    def _own_prompt(self, event: PromptBox.Sent) -> None:
        event.stop()
        self.own = event.value
        self.ask()

    def ask(self) -> None:
        """Both models answer the prompt; the one that is not there says so."""
        prompt = self.prompt
        if not prompt:
            key = actions.find("type_text").first
            raise UserError(f"no prompt: write one with {key}, or fill prompts.txt in the run folder")
        self.cancel()
        self._asked = prompt
        self._draw()
        self._workers = []
        for pane, model in ((self.left, "base"), (self.right, self.right_model)):
            pane.reset(model)
            if model in self.models:
                self._workers.append(self.run_worker(self._write(pane, model, prompt), exit_on_error=False))
            else:
                pane.error = "its stage is not done yet"
                pane.draw()

    async def _write(self, pane: AnswerPane, model: str, prompt: str) -> None:
        pane.writing = True
        pane.draw()
        loop = asyncio.get_running_loop()
        flushed = loop.time()
        try:
            async for piece in self._talker().answer(model, [{"role": "user", "content": prompt}], self.sampling):
                pane.answer += piece.text
                pane.finish = piece.finish_reason or pane.finish
                pane.tok_s, pane.tokens = piece.tok_s or pane.tok_s, piece.tokens or pane.tokens
                if loop.time() - flushed > FLUSH_S:
                    flushed = loop.time()
                    pane.draw()
        except asyncio.CancelledError:
            pane.finish = "cancel"
            raise
        except UserError as error:
            pane.error, pane.finish = str(error), "error"
        finally:
            pane.writing = False
            if pane.is_attached:
                pane.draw()

    def cancel(self) -> bool:
        """Stop what is being written; False when nothing was."""
        busy = self.busy
        for worker in self._workers:
            worker.cancel()
        return busy

    def carry(self) -> tuple[str, str, AnswerPane]:
        """Model, prompt and answer to go on with in Chat."""
        model = self.right_model or ("base" if "base" in self.models else "")
        pane = self.right if self.right_model else self.left
        return model, self._asked or self.prompt, pane
