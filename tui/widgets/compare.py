"""Compare: the same prompt and the same seed to two models, side by side."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from rich.console import RenderableType
from textual import on
from textual.app import ComposeResult
from textual.containers import Container, Vertical
from textual.worker import Worker

from picollm.run import votes
from picollm.run.errors import UserError
from picollm.run.folder import Run
from tui import actions, state, voices
from tui.talk import Sampling, Talker
from tui.voices import Known, Voice
from tui.widgets.answer_pane import AnswerPane
from tui.widgets.differ import difference
from tui.widgets.frame import OneLine
from tui.widgets.lines import LinesView, empty_state, text
from tui.widgets.prompt_box import PromptBox

if TYPE_CHECKING:
    from tui.app import PicollmApp

STACKED = 64  # columns under which the answers stand one below the other
PAUSE_S = 0.25  # so that going quickly through checkpoints asks only the one at which it ends


class ComparePane(Vertical):
    """Prompt list, box for one's own prompt, two answers."""

    app: PicollmApp

    DEFAULT_CSS = """
    ComparePane #compare-prompts { height: auto; max-height: 9; margin-bottom: 1; }
    ComparePane.low #compare-prompts { max-height: 4; }
    ComparePane.lowest #compare-prompts { max-height: 1; margin-bottom: 0; }
    ComparePane #compare-answers { height: 1fr; margin-top: 1; layout: horizontal; }
    ComparePane #compare-a { width: 1fr; margin-right: 2; }
    ComparePane #compare-b { width: 1fr; }
    ComparePane.stacked #compare-answers { layout: vertical; margin-top: 0; }
    ComparePane.stacked #compare-a { height: 1fr; margin-right: 0; border-bottom: dashed $border; }
    ComparePane.stacked #compare-b { height: 1fr; }
    ComparePane #compare-how { margin-top: 1; }
    ComparePane.lowest #compare-how { margin-top: 0; }
    ComparePane #compare-empty, ComparePane #compare-diff { display: none; }
    ComparePane.empty > * { display: none; }
    ComparePane.empty > #compare-empty { display: block; }
    ComparePane.diff #compare-answers { display: none; }
    ComparePane.diff #compare-diff { display: block; height: 1fr; margin-top: 1; }
    """

    def __init__(self, talker: Callable[[], Talker], sampling: Sampling, id: str | None = None) -> None:
        super().__init__(id=id)
        self._talker = talker
        self.sampling = sampling
        self.prompts: tuple[str, ...] = ()
        self.models: tuple[str, ...] = ()
        self.chosen = 0
        self.own = ""
        self._asked = ""
        self._by_hand: set[str] = set()
        self._workers: dict[str, Worker[None]] = {}

    def compose(self) -> ComposeResult:
        yield LinesView(id="compare-empty")
        yield LinesView(id="compare-prompts")
        yield PromptBox(f"{actions.find('type_text', 'compare').first}: your own prompt, Enter asks", id="compare-own")
        yield OneLine(id="compare-how")
        with Container(id="compare-answers"):
            yield AnswerPane("A", "compare-a")
            yield AnswerPane("B", "compare-b")
        yield LinesView(id="compare-diff")

    def on_mount(self) -> None:
        self.a = self.query_one("#compare-a", AnswerPane)
        self.b = self.query_one("#compare-b", AnswerPane)
        self._draw()

    @property
    def sides(self) -> tuple[AnswerPane, AnswerPane]:
        return self.a, self.b

    @property
    def here(self) -> str:
        return str(self._talker().run.dir)

    @property
    def prompt(self) -> str:
        """What would be asked now."""
        if self.own:
            return self.own
        return self.prompts[self.chosen] if self.prompts else ""

    @property
    def busy(self) -> bool:
        return any(not worker.is_finished for worker in self._workers.values())

    def update_from(self, view: state.RunView) -> None:
        """Models that come up take their side, unless the person chose another."""
        self.prompts = view.prompts
        self.chosen = min(self.chosen, max(0, len(self.prompts) - 1))
        if view.models != self.models and hasattr(self, "a"):
            self.models = view.models
            for pane, model in ((self.a, "base" if "base" in self.models else ""),
                                (self.b, state.best_chat_model(self.models) or "")):  # fmt: skip
                voice = self._talker().voice(model) if model else None
                if pane.letter not in self._by_hand and pane.voice != voice and not pane.writing:
                    pane.choose(voice, model)
        self._draw()

    def _draw(self) -> None:
        if not self.is_mounted or not hasattr(self, "a"):
            return
        nothing = not self.models and not self._by_hand
        self.set_class(nothing, "empty")
        if nothing:
            key = actions.find("choose_b", "compare").first
            self.query_one("#compare-empty", LinesView).show(
                empty_state(
                    "No model to compare yet",
                    "As soon as Pretrain is done, the base model answers here;",
                    "after Midtrain, the chat model beside it.",
                    f"Models of other runs, and checkpoints on the way: {key}.",
                )
            )
            return
        width, height = self.size
        self.set_class(width < STACKED, "stacked")
        self.set_class(height < 30, "low")
        self.set_class(height < 22, "lowest")
        self._draw_prompts(height < 22)
        s = self.sampling
        self.query_one("#compare-how", OneLine).set_line(
            text(("both: ", "faint"), (f"seed {s.seed}", "plain"),
                 (f"  temperature {s.temperature:g}  top-k {s.top_k}  at most {s.max_tokens} tokens", "faint"),
                 ("  system prompt set" if s.system else "", "faint"),
                 ("" if self._asked in ("", self.prompt) else f"  answers to: {' '.join(self._asked.split())}", "warn"))
        )  # fmt: skip
        for pane in self.sides:
            pane.draw()

    def _draw_prompts(self, one: bool) -> None:
        lines: list[RenderableType] = []
        for number, prompt in enumerate(self.prompts):
            chosen = number == self.chosen and not self.own
            if one and number != self.chosen:
                continue
            place = f"{number + 1}/{len(self.prompts)} " if one else ""
            line = text(("> " if chosen else "  ", "accent"), (place, "faint"),
                        (" ".join(prompt.split()), "strong" if chosen else "faint"))  # fmt: skip
            line.truncate(max(10, self.size.width - 2), overflow="ellipsis")
            lines.append(line)
        if not lines:
            lines = [text(("  no prompts: write them into prompts.txt in the run folder, one a line", "faint"))]
        view = self.query_one("#compare-prompts", LinesView)
        view.show(lines)
        if view.max_scroll_y:
            view.scroll_to(y=max(0, self.chosen - view.size.height // 2), animate=False)

    def on_resize(self) -> None:
        self._draw()

    # Page Up, Page Down, Home and End scroll both answers, so that they stay side by side

    @property
    def _scrolled(self) -> tuple[LinesView, ...]:
        if not hasattr(self, "a"):  # not on the screen yet
            return ()
        return (self.query_one("#compare-diff", LinesView),) if self.has_class("diff") else self.sides

    def scroll_page_down(self, **how: Any) -> None:
        for view in self._scrolled:
            view.scroll_page_down(**how)

    def scroll_page_up(self, **how: Any) -> None:
        for view in self._scrolled:
            view.scroll_page_up(**how)

    def scroll_home(self, **how: Any) -> None:
        for view in self._scrolled:
            view.scroll_home(**how)

    def scroll_end(self, **how: Any) -> None:
        for view in self._scrolled:
            view.scroll_end(**how)

    # keys (tui/actions/compare.py) ----------------------------------------------------------------------------------

    def do_next_prompt(self) -> None:
        self._step(1)

    def do_previous_prompt(self) -> None:
        self._step(-1)

    def _step(self, by: int) -> None:
        if self.prompts:
            self.chosen = (self.chosen + by) % len(self.prompts) if not self.own else self.chosen
        self.own = ""
        self._draw()

    def do_ask(self) -> None:
        self.ask()

    def do_type_text(self) -> None:
        self.query_one(PromptBox).focus()

    def do_settings(self) -> None:
        self.app.choose_sampling()

    def do_choose_a(self) -> None:
        self._choose(self.a)

    def do_choose_b(self) -> None:
        self._choose(self.b)

    async def do_later_a(self) -> None:
        await self._walk(self.a, 1)

    async def do_earlier_a(self) -> None:
        await self._walk(self.a, -1)

    async def do_later_b(self) -> None:
        await self._walk(self.b, 1)

    async def do_earlier_b(self) -> None:
        await self._walk(self.b, -1)

    async def do_watch(self) -> None:
        """All checkpoints of B's run answer, one after the other, the earlier answers staying above."""
        found = await self._of_run(self.b)
        if len(found) < 2:
            raise UserError("only one checkpoint is there; machine.keep_last and machine.milestones keep more")
        prompt = self._must_have_prompt()
        self.cancel()
        self.remove_class("diff")
        self._ask(self.a, prompt)
        self._workers["B"] = self.run_worker(self._watch(found, prompt))

    async def do_diff(self) -> None:
        if self.has_class("diff"):
            self.remove_class("diff")
            return
        blocks = await asyncio.to_thread(difference, self.a.voice, self.b.voice, self.here)
        self.add_class("diff")
        view = self.query_one("#compare-diff", LinesView)
        self.call_after_refresh(view.show, blocks)

    def do_vote(self) -> None:
        """Judge the two answers that are there; the judgement is appended to the run's votes."""
        from tui.screens.judge import JudgeScreen, Verdict

        if self.busy or not all(pane.answer.text for pane in self.sides):
            raise UserError("a vote needs two answers: ask first, and let both finish")
        told = [votes.Judged(model=(pane.voice or Voice(model="")).title(), answer=pane.answer.text)
                for pane in self.sides]  # fmt: skip
        sampling = {key: value for key, value in msgspec.structs.asdict(self.sampling).items() if value != ""}
        vote = votes.Vote(prompt=self._asked, a=told[0], b=told[1], winner="tie", sampling=sampling)

        def keep(verdict: Verdict | None) -> None:
            if verdict is None:
                return
            vote.winner, vote.note = verdict.winner, verdict.note
            vote.a.scores, vote.b.scores = verdict.scores["a"], verdict.scores["b"]
            self.app.work(lambda: self._keep(vote))

        self.app.push_screen(JudgeScreen(self.a.title, self.b.title), keep)

    def _keep(self, vote: votes.Vote) -> str:
        run = self._talker().run
        votes.add(run, vote)
        return f"kept: vote {len(votes.read(run))} of {run.name}, see Report"

    async def do_carry_on(self) -> None:
        """Go on in Chat with the prompt and B's answer, or with A's where there is no B."""
        pane = self.b if self.b.voice else self.a
        if pane.voice is None or not (self._asked or self.prompt):
            raise UserError("nothing to carry on yet: ask first")
        self.cancel()
        await self.app.main.show_tab("chat")
        chat: Any = self.app.main.panes["chat"]
        await chat.update_from(self.app.main.view)
        await chat.carry_on(pane.voice, self._asked or self.prompt, pane.answer if self._asked else None)

    def do_copy_answers(self) -> None:
        parts = [f"Prompt: {self._asked or self.prompt}"]
        parts += [f"{pane.title}:\n{pane.answer.text}" for pane in self.sides if pane.answer.text]
        if len(parts) < 2:
            raise UserError("no answers to copy yet: ask first")
        self.app.copy("\n\n".join(parts) + "\n", "prompt and answers")

    # asking ---------------------------------------------------------------------------------------------------------

    @on(PromptBox.Sent, "#compare-own")
    def _own_prompt(self, event: PromptBox.Sent) -> None:
        event.stop()
        self.own = event.value
        try:
            self.ask()
        except UserError as error:
            self.app.complain(str(error))

    def _must_have_prompt(self) -> str:
        if not self.prompt:
            key = actions.find("type_text", "compare").first
            raise UserError(f"no prompt: write one with {key}, or fill prompts.txt in the run folder")
        return self.prompt

    def ask(self) -> None:
        """Both answer the prompt; the one that is not there says so."""
        prompt = self._must_have_prompt()
        self.cancel()
        self.remove_class("diff")
        self._asked = prompt
        self._draw()
        for pane in self.sides:
            self._ask(pane, prompt)

    def _ask(self, pane: AnswerPane, prompt: str, pause_s: float = 0.0) -> None:
        before = self._workers.get(pane.letter)
        if before is not None:
            before.cancel()
        pane.clear()
        if pane.voice is None:
            pane.error = "nobody chosen, or its stage is not done yet"
            pane.draw()
            return
        self._workers[pane.letter] = self.run_worker(self._write(pane, prompt, pause_s))

    async def _write(self, pane: AnswerPane, prompt: str, pause_s: float = 0.0) -> None:
        if pane.voice is None:
            return
        await asyncio.sleep(pause_s)
        messages = [{"role": "user", "content": prompt}]
        await pane.write(self._talker().answer(pane.voice, messages, msgspec.structs.replace(self.sampling)))

    async def _watch(self, found: list[Known], prompt: str) -> None:
        self._asked, here = prompt, self.here
        self._by_hand.add("B")
        for number, known in enumerate(found):
            trail = [*self.b.trail, (self.b.title, self.b.answer)] if number else []
            self.b.meet(known, here)
            self.b.trail = trail
            await self._write(self.b, prompt)
            if self.b.error:
                return

    def cancel(self) -> bool:
        """Stop what is being written; False when nothing was."""
        busy = self.busy
        for worker in self._workers.values():
            worker.cancel()
        return busy

    # who answers ----------------------------------------------------------------------------------------------------

    def _choose(self, pane: AnswerPane) -> None:
        from tui.screens.voice import offer

        offer(self.app, f"Who answers as {pane.letter}", pane.voice, lambda known: self._take(pane, known))

    def _take(self, pane: AnswerPane, known: Known) -> None:
        self._by_hand.add(pane.letter)
        pane.meet(known, self.here)
        self.remove_class("diff")
        self._draw()
        if self._asked:
            self._ask(pane, self._asked)

    async def _of_run(self, pane: AnswerPane) -> list[Known]:
        """The models of the run that a side's voice is of. Raises `UserError` where there is no such run."""
        if pane.voice is None or not pane.voice.run:
            raise UserError(f"{pane.letter} is not of a run: choose one of its models first")
        mine = self.models if pane.voice.run == self.here else ()
        return await asyncio.to_thread(voices.of_run, Run(Path(pane.voice.run)), mine)

    async def _walk(self, pane: AnswerPane, by: int) -> None:
        """The checkpoint before or after the one that answers there, and its answer to what was asked."""
        found = await self._of_run(pane)
        at = next((n for n, known in enumerate(found) if known.voice == pane.voice), None)
        to = len(found) - 1 if at is None else at + by
        if not 0 <= to < len(found):
            raise UserError(f"{pane.title} is the {'last' if by > 0 else 'first'} checkpoint of its run")
        self._by_hand.add(pane.letter)
        pane.meet(found[to], self.here)
        if self._asked:
            self._ask(pane, self._asked, PAUSE_S)
