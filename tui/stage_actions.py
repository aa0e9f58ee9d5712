"""The actions that ask something of the run: launch, this stage, from here, stop, resume, redo."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from picollm.run import pipeline
from picollm.run.folder import Run
from tui import actions, asks, state

if TYPE_CHECKING:
    from collections.abc import Callable

    from textual.app import App

    from tui import bridge
    from tui.screens.main import MainScreen

    class _App(App[None]):
        """What the app has that these actions use."""

        main: MainScreen
        options: asks.Options
        reader: bridge.Reader

        def work(self, job: Callable[[], str | None]) -> None: ...
        def ask(self, title: str, lines: list[str], yes: str, job: Callable[[], str | None]) -> None: ...
else:
    _App = object

BROKEN = ("stopped", "failed", "crashed")


class StageActions(_App):
    """Mixed into the app."""

    def launch(self, stages: tuple[str, ...]) -> None:
        """Ask for stages; what is stale is shown with its reason and asked about, never silently rerun."""
        view = self.main.view
        wanted = {other for name in stages for other in (*pipeline.upstream(name), name)}
        stale = tuple(status for status in view.stale if status.undecided and status.name in wanted)
        if stale:
            self._ask_redo(stale, stages)
            return
        self.work(partial(self._launch_or_ask, stages))

    def _launch_or_ask(self, stages: tuple[str, ...]) -> str | None:
        """In a thread: the folder may know of stale stages that the screen has not shown yet."""
        reasons = asks.stale_reasons(self.options)
        if reasons:
            run = Run(self.reader.run_folder.dir)
            stale = tuple(status for status in run.statuses() if status.undecided)
            self.call_from_thread(self._ask_redo, stale, stages)
            return None
        return asks.launch(self.options, stages)

    def _ask_redo(self, stale: tuple[state.StageStatus, ...], stages: tuple[str, ...]) -> None:
        lines = [f"{pipeline.stage(status.name).title}: {status.reason}" for status in stale]
        again = tuple(status.name for status in stale)
        self.ask("Made with other settings", [*lines, "", "Make these again? Their checkpoints are not used."],
                 "makes them again", partial(asks.redo, self.options, again, stages))  # fmt: skip

    def action_launch(self) -> None:
        self.launch(pipeline.NAMES)

    def action_start_stage(self) -> None:
        name, view = self.main.stage, self.main.view
        title = pipeline.stage(name).title
        if view.stage(name).state in state.ACTIVE:
            self.notify(f"{title} is running", timeout=3)
            return
        if view.stage(name).state == "done":
            self.notify(f"{title} is done; {actions.find('redo').first} makes it again", timeout=4)
            return
        missing = state.missing_upstream(view, name)
        if missing:
            titles = ", ".join(pipeline.stage(other).title for other in missing)
            self.ask(title, [f"It needs what is not done yet: {titles}."], "runs these first, then it",
                     partial(asks.launch, self.options, (*missing, name)))  # fmt: skip
            return
        self.launch((name,))

    def action_start_from(self) -> None:
        name = self.main.stage
        self.launch((*state.missing_upstream(self.main.view, name), *pipeline.from_stage(name)))

    def action_stop(self) -> None:
        view = self.main.view
        active = view.active
        if active is None and not view.conductor:
            self.notify("nothing runs", timeout=3)
        elif active is not None and active.state == "stopping":
            title = pipeline.stage(active.name).title
            self.ask(f"Kill {title}?", ["It was asked to stop, and is saving what it has.",
                                        "Killed, it loses what it did since its last checkpoint."],
                     "kills it", partial(asks.stop, self.options, True))  # fmt: skip
        else:
            self.work(partial(asks.stop, self.options, False))

    def action_resume(self) -> None:
        view = self.main.view
        name = self.main.stage
        if view.stage(name).state not in BROKEN:
            name = next((status.name for status in view.stages if status.state in BROKEN), "")
        if not name:
            self.notify("nothing to resume: no stage was stopped, failed or crashed", timeout=4)
            return
        self.launch((*state.missing_upstream(view, name), *pipeline.from_stage(name)))

    def action_redo(self) -> None:
        view, name = self.main.view, self.main.stage
        if view.stale and view.stage(name).state in ("stale", "waiting", "ready"):
            self._ask_redo(view.stale, ())
        elif view.stage(name).attempt and view.stage(name).state not in state.ACTIVE:
            title = pipeline.stage(name).title
            later = [pipeline.stage(other).title for other in pipeline.downstream(name)
                     if view.stage(other).state == "done"]  # fmt: skip
            lines = [f"{title} starts over; its checkpoints are not used."]
            if later:
                lines.append(f"What was made from it may become stale: {', '.join(later)}.")
            self.ask(f"{title} again?", lines, "makes it again", partial(asks.redo, self.options, (name,), ()))
        else:
            self.notify("nothing to redo here", timeout=3)
