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

    from picollm.run.overview import Summary
    from tui import bridge
    from tui.screens.main import MainScreen

    class _App(App[None]):
        """What the app has that these actions use."""

        main: MainScreen
        options: asks.Options
        reader: bridge.Reader

        def work(self, job: Callable[[], str | None]) -> None: ...
        def complain(self, words: str) -> None: ...
        def ask(self, title: str, lines: list[str], yes: str, job: Callable[[], str | None]) -> None: ...
else:
    _App = object

BROKEN = ("stopped", "failed", "crashed")


class StageActions(_App):
    """Mixed into the app."""

    def launch(self, stages: tuple[str, ...]) -> None:
        """Ask for stages; what is stale is shown with its reason and asked about, never silently rerun."""
        view = self.main.view
        if self._is_gone():
            return
        wanted = {other for name in stages for other in (*pipeline.upstream(name), name)}
        stale = tuple(status for status in view.stale if status.undecided and status.name in wanted)
        if stale:
            self._ask_redo(stale, stages)
            return
        self.work(partial(self._launch_or_ask, stages))

    def _launch_or_ask(self, stages: tuple[str, ...]) -> str | None:
        """In a thread: the folder may know of stale stages that the screen has not shown yet, or be gone."""
        self._require()
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
        job = partial(self._require, partial(asks.redo, self.options, again, stages))
        lines += ["", "Make these again? Their checkpoints are not used."]
        self.ask("Made with other settings", lines, "makes them again", job)

    def _elsewhere(self) -> Summary | None:
        """The run selected in Runs, when the other tabs show another one: what is asked for there is asked of it."""
        runs = self.main.list_of_runs()
        found: Summary | None = runs.run if runs is not None else None
        return found if found is not None and found.dir != str(self.reader.run_folder.dir) else None

    def _require(self, job: Callable[[], str | None] = lambda: None) -> str | None:
        """In a thread: `job`, unless the run that is shown was taken away meanwhile. Raises `UserError`."""
        if self.main.view.exists or self.main.view.gone:
            Run(self.reader.run_folder.dir).require()
        return job()

    def _is_gone(self) -> bool:
        """Whether the run was taken away elsewhere, which is said: nobody asked for another one of that name."""
        view = self.main.view
        if view.gone:
            runs = actions.row("show_tab.runs").first
            self.complain(f"{view.name} is gone: renamed, archived or deleted elsewhere; {runs} shows the runs")
        return view.gone

    def _on_stage(self) -> bool:
        """Whether a stage is on the screen to act on; says where to go when none is."""
        if self.main.list_of_runs() is None:
            return not self._is_gone()
        tab = actions.row("show_tab.stage")
        self.notify(f"choose the stage in {tab.title.removeprefix('Show ')} ({tab.first})", timeout=4)
        return False

    def action_launch(self) -> None:
        other = self._elsewhere()
        if other is None:
            self.launch(pipeline.NAMES)
        elif other.archived:
            self.notify(f"{other.name} is archived", timeout=4)
        else:
            self.ask(f"Launch {other.name}?", ["Runs every stage of it that is not done yet, in order."],
                     "launches it", partial(asks.launch_all, other.dir))  # fmt: skip

    def action_start_stage(self) -> None:
        if not self._on_stage():
            return
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
                     partial(self._require, partial(asks.launch, self.options, (*missing, name))))  # fmt: skip
            return
        self.launch((name,))

    def action_start_from(self) -> None:
        if not self._on_stage():
            return
        name = self.main.stage
        self.launch((*state.missing_upstream(self.main.view, name), *pipeline.from_stage(name)))

    def ask_to_kill(self) -> None:
        """End what runs at once, whether or not it was asked to stop before."""
        active = self.main.view.active
        if active is None:
            self.notify("nothing runs", timeout=3)
            return
        title = pipeline.stage(active.name).title
        self.ask(f"Kill {title}?", ["It loses what it did since its last checkpoint.", "Stopping it would save that."],
                 "kills it", partial(asks.stop, self.options, True))  # fmt: skip

    def action_stop(self) -> None:
        other = self._elsewhere()
        if other is not None:
            if not other.active:
                self.notify(f"nothing runs in {other.name}", timeout=3)
                return
            kill = other.state == "stopping"
            words = "It is saving; killed, it loses that." if kill else "It saves first, and can be resumed."
            self.ask(f"{'Kill' if kill else 'Stop'} {other.name}?", [words], "kills it" if kill else "stops it",
                     partial(asks.stop, asks.Options(run=other.dir), kill))  # fmt: skip
            return
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
        if self._elsewhere() is not None:
            self.action_launch()
            return
        if self._is_gone():
            return
        view = self.main.view
        name = self.main.stage
        if view.stage(name).state not in BROKEN:
            name = next((status.name for status in view.stages if status.state in BROKEN), "")
        if not name:
            self.notify("nothing to resume: no stage was stopped, failed or crashed", timeout=4)
            return
        self.launch((*state.missing_upstream(view, name), *pipeline.from_stage(name)))

    def action_redo(self) -> None:
        if not self._on_stage():
            return
        view, name = self.main.view, self.main.stage
        undecided = tuple(status for status in view.stale if status.undecided)
        if undecided and view.stage(name).state in ("stale", "waiting", "ready"):
            self._ask_redo(undecided, ())
        elif view.stage(name).attempt and view.stage(name).state not in state.ACTIVE:
            title = pipeline.stage(name).title
            later = [pipeline.stage(other).title for other in pipeline.downstream(name)
                     if view.stage(other).state == "done"]  # fmt: skip
            lines = [f"{title} starts over; its checkpoints are not used."]
            if later:
                lines.append(f"What was made from it may become stale: {', '.join(later)}.")
            self.ask(f"{title} again?", lines, "makes it again",
                     partial(self._require, partial(asks.redo, self.options, (name,), ())))  # fmt: skip
        else:
            self.notify("nothing to redo here", timeout=3)
