"""`picollm-tui`: the app. It reads run folders and asks for processes; closing it never stops anything.

Who calls what: `start` parses and checks; `Reader` (a thread) posts what changed; `MainScreen` shows it; every
`action_*` below is one row of `actions.ACTIONS`, and hands work that touches the disk to a thread.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from textual import on
from textual.app import App
from textual.binding import Binding
from textual.timer import Timer

from picollm.run import pipeline
from picollm.run.errors import UserError
from picollm.run.folder import Run, runs_folder
from tui import actions, asks, bridge, state
from tui.frame_actions import FrameActions
from tui.guard import GuardedApp
from tui.in_turn import KeysInTurn
from tui.palette import ActionCommands
from tui.preferences import Preferences
from tui.replay_actions import ReplayActions
from tui.screens.main import MainScreen
from tui.stage_actions import BROKEN, StageActions
from tui.widgets.frame import OneLine
from tui.widgets.lines import clean
from tui.widgets.rail import Rail
from tui.widgets.tones import DEFAULT

if TYPE_CHECKING:
    from tui.replay import Player
    from tui.talk import Sampling, Talker

UNREAD_S = 0.05
OF_A_STAGE = ("stage", "train", "log")  # tabs that show another thing when another stage is chosen


class PicollmApp(GuardedApp, KeysInTurn, StageActions, ReplayActions, FrameActions, App[None], inherit_bindings=False):
    """One run on the screen."""

    TITLE = "picollm"
    CSS_PATH = ["screens/main.tcss", "screens/dialogs.tcss", "screens/runs.tcss"]  # noqa: RUF012
    COMMANDS = {ActionCommands}  # noqa: RUF012
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (100, "-wide")]  # noqa: RUF012

    def __init__(self, options: asks.Options, player: Player | None = None, look: Preferences | None = None) -> None:
        self.COMMAND_PALETTE_BINDING = ",".join(actions.find("command_palette").keys)  # type: ignore[misc]
        self.failures = []
        self.look = look or Preferences(theme=DEFAULT, toured=True)
        super().__init__()
        for binding in Binding.make_bindings(actions.bindings()):
            self._bindings._add_binding(binding)
        self.player = player
        self.options = options
        self.readonly = options.readonly
        self.animation_level = "none"  # a scroll is one picture, not twelve: over SSH each is a screenful
        self.dress(self.look)
        self.main = MainScreen(Path(options.run).name)
        self.reader = bridge.Reader(options.run, self.post_message, player=player)
        self._talker: Talker | None = None
        self._sampling: Sampling | None = None
        self._moved = False
        self._seen = False
        self._unread: Timer | None = None  # draws a stage just chosen, if its history has not come by then
        self._held = ""  # what Train shows while a stage without curves runs
        self.farewell = ""

    # life -----------------------------------------------------------------------------------------------------------

    def get_default_screen(self) -> MainScreen:
        return self.main

    def on_mount(self) -> None:
        self.reader.select(self.main.rail.selected)
        self.reader.start()
        if self.options.tab != "stage":
            self.call_after_refresh(self.action_show_tab, self.options.tab)
        if self.options.go:
            self.call_after_refresh(self.action_launch)
        elif not self.look.toured:
            self.call_after_refresh(self.action_tour)

    def on_unmount(self) -> None:
        self.reader.close()

    def action_quit(self) -> None:  # type: ignore[override]
        active = self.main.view.active
        if active is not None or self.main.view.conductor:
            what = pipeline.stage(active.name).title if active else "the run"
            self.farewell = f"{what} goes on without the app. Come back with: picollm-tui --run {self.options.run}"
        self.exit()

    # what the reader says -------------------------------------------------------------------------------------------

    @on(bridge.RunChanged)
    def _run_changed(self, message: bridge.RunChanged) -> None:
        before, view = self.main.view, message.view
        if message.view.name != Path(self.options.run).name:
            return
        if not view.exists and not view.gone:
            view = self._promised(view)
        self.main.view = view
        now, then = view.active, before.active
        followed = then is not None and self.main.rail.selected in (then.name, self._held)
        if self.options.stage and not self._seen:
            self.main.rail.selected = self.options.stage
        elif (now is not None and followed) or not self._moved:
            where = now.name if now else state.where_to_look(view)
            if self.main.tab == "train":
                where = self._held = self.main.with_curves(where)
            self.main.rail.selected = where
        self._seen = True
        self.main.redraw()
        if view.problem and view.problem != before.problem:
            self.notify(view.problem, severity="error", timeout=8, markup=False)

    def _promised(self, view: state.RunView) -> state.RunView:
        """There is no such run yet: what it would be."""
        try:
            return state.promised(view, asks.wanted(self.options).run)
        except UserError:  # said when it is made
            return view

    @on(bridge.StageChanged)
    async def _stage_changed(self, message: bridge.StageChanged) -> None:
        if message.detail.stage == self.main.rail.selected:
            self.main.detail = message.detail
            if self._unread is not None:
                self._unread.stop()
            if self.main.tab in ("stage", "train", "log"):
                await self.main.update_pane()

    @on(bridge.DoctorChanged)
    async def _doctor_changed(self, message: bridge.DoctorChanged) -> None:
        self.main.checks = message.checks
        await self._update("doctor")

    @on(bridge.MachineChanged)
    async def _machine_changed(self, message: bridge.MachineChanged) -> None:
        self.main.readings = message.readings
        await self._update("machine")

    @on(bridge.ReportChanged)
    async def _report_changed(self, message: bridge.ReportChanged) -> None:
        self.main.report = (message.text, message.manifest)
        await self._update("report")

    @on(bridge.RunsChanged)
    def _runs_changed(self, message: bridge.RunsChanged) -> None:
        runs = self.main.list_of_runs()
        if runs is not None:
            runs.take(message.summaries)

    def watch_runs(self) -> None:
        """Let the reader look at all runs while they are on the screen."""
        runs = self.main.list_of_runs()
        self.reader.watch_runs(runs.overview() if runs is not None else None)

    async def _update(self, tab: str) -> None:
        if self.main.tab == tab:
            await self.main.update_pane()

    @on(Rail.Selected)
    async def _selected(self, message: Rail.Selected) -> None:
        if message.stage != self.main.rail.selected:
            return
        self.reader.select(message.stage)
        if self.main.tab in OF_A_STAGE:
            self.main.scrolling().scroll_home(animate=False)
        if self._unread is not None:
            self._unread.stop()
        self._unread = self.set_timer(UNREAD_S, self.main.update_pane)

    @on(OneLine.Pressed)
    async def _pressed(self, message: OneLine.Pressed) -> None:
        await self.action_press(message.identity)

    # what the panes need --------------------------------------------------------------------------------------------

    def talker(self) -> Talker:
        """The way to the inference process of this run."""
        if self._talker is None:
            from tui.talk import Talker

            self._talker = Talker(Run(self.reader.run_folder.dir))
        return self._talker

    @property
    def sampling(self) -> Sampling:
        """How answers are drawn: the run's `[chat]` table until the person changes it."""
        if self._sampling is None:
            from tui.talk import Sampling

            values = {key.partition(".")[2]: value for key, value in self.main.view.settings.items()
                      if key.startswith("chat.")}  # fmt: skip
            self._sampling = Sampling(**{name: values[name] for name in Sampling.__struct_fields__ if name in values})
        return self._sampling

    def choose_sampling(self) -> None:
        """The form of `sampling`; Compare and Chat share what is chosen."""
        from tui.screens.ask import SamplingScreen

        self.push_screen(SamplingScreen(self.sampling), self._take_sampling)

    def _take_sampling(self, sampling: Sampling | None) -> None:
        if sampling is None:
            return
        for name in sampling.__struct_fields__:
            msgspec.structs.force_setattr(self.sampling, name, getattr(sampling, name))
        self.call_after_refresh(self.main.redraw)
        for tab in ("compare", "chat"):
            if tab in self.main.panes:
                self.main.panes[tab]._draw()  # type: ignore[attr-defined]

    def conversations_folder(self) -> Path:
        return self.reader.run_folder.dir / "conversations"

    def possible(self) -> dict[str, bool]:
        """Which actions make sense now; the footer leaves the others out."""
        view = self.main.view
        broken = any(status.state in BROKEN for status in view.stages)
        return {
            "launch": not view.gone and view.active is None and state.totals(view).done < len(view.stages),
            "stop": view.active is not None or view.conductor,
            "resume": broken and view.active is None,
            "replay_pause": self.player is not None,
            "back": bool(getattr(self.main.panes.get(self.main.tab), "busy", False)),
        }

    # keys: every press of a bound key comes through here ------------------------------------------------------------

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """A tab's keys work on their tab only; under a dialog all of them rest."""
        return action != "press" or actions.row(str(parameters[0])).place in ("", self.main.tab)

    async def action_press(self, identity: str) -> None:
        """Do what a row of the registry says: the tab's pane answers with `do_<name>`, the app with `action_<name>`."""
        row = actions.row(identity)
        if row.changes and self.readonly:
            self.complain(f"read-only: “{row.title}” is off, since the app was started with --readonly")
            return
        try:
            if not row.place:
                await self.run_action(row.name, self)
                return
            if self.main.tab != row.place:
                await self.main.show_tab(row.place)
            pane = self.main.panes[row.place]
            if getattr(pane, "failing", False):
                raise UserError(f"this tab hit a bug; {actions.find('redraw').first} builds it anew")
            result = getattr(pane, f"do_{row.base}")()
            if inspect.isawaitable(result):
                await result
        except UserError as error:
            self.complain(str(error))

    def work(self, job: Callable[[], str | None], then: Callable[[], Any] | None = None) -> None:
        """Run `job` in a thread; say what it returns; a `UserError` is said too, and is nothing worse than that."""

        loop, done = asyncio.get_running_loop(), self.begin()

        def run() -> None:
            try:
                words = job()
                self.reader.poke()
                if words:
                    self.call_from_thread(self.notify, words, timeout=4, markup=False)
                if then is not None:
                    self.call_from_thread(then)
            except UserError as error:
                self.call_from_thread(self.complain, str(error))
            except OSError as error:
                self.call_from_thread(self.complain, f"{error.strerror}: {error.filename}")
            finally:
                loop.call_soon_threadsafe(done.set)

        self.run_worker(run, thread=True, group="asks")

    def complain(self, words: str) -> None:
        """Say what went wrong; not twice while it stands there."""
        self.forget_typed_ahead()
        if any(one.message == clean(words) for one in self._notifications):
            return
        self.notify(words, severity="error", timeout=10, markup=False)

    def ask(self, title: str, lines: list[str], yes: str, job: Callable[[], str | None],
            then: Callable[[], Any] | None = None) -> None:  # fmt: skip
        """A question; `job` is done when the person agrees, and `then` when that is done."""
        from tui.screens.ask import AskScreen

        self.push_screen(AskScreen(title, lines, yes), lambda agreed: self.work(job, then) if agreed else None)

    # moving about ---------------------------------------------------------------------------------------------------

    def action_stage_down(self) -> None:
        self._step(1)

    def action_stage_up(self) -> None:
        self._step(-1)

    def _step(self, by: int) -> None:
        """One line down or up: in the list of runs where that is on the screen, else in the rail."""
        runs = self.main.list_of_runs()
        if runs is not None:
            runs.move(by)
            return
        self._moved, self._held = True, ""
        self.main.rail.move(by)

    def _leap(self, pages: int, scroll: str) -> None:
        """A page, or with 1,000 of them to an end."""
        runs = self.main.list_of_runs()
        if runs is not None:
            runs.move(pages * runs.page())
        else:
            getattr(self.main.scrolling(), scroll)(animate=False)

    def action_select_stage(self, name: str) -> None:
        self._moved, self._held = True, ""
        self.main.rail.selected = name

    async def action_show_tab(self, tab: str) -> None:
        await self.main.show_tab(tab)

    def action_page_down(self) -> None:
        self._leap(1, "scroll_page_down")

    def action_page_up(self) -> None:
        self._leap(-1, "scroll_page_up")

    def action_top(self) -> None:
        self._leap(-1000, "scroll_home")

    def action_bottom(self) -> None:
        self._leap(1000, "scroll_end")

    async def action_back(self) -> None:
        self.clear_notifications()
        pane: Any = self.main.panes.get(self.main.tab)
        if hasattr(pane, "cancel") and pane.cancel():
            return
        self.main.leave_box()

    def action_open_run(self) -> None:
        from tui.screens.ask import PickScreen

        rows = [(run.name, run.name, str(run.dir.parent)) for run in Run.all()]
        if not rows:
            self.notify(f"no runs in {runs_folder()}", timeout=4)
            return
        self.push_screen(PickScreen("Runs, newest first", rows), self.open_run)

    async def open_run(self, name: str | None) -> None:
        """Show another run in every tab."""
        if name is not None and name != self.options.run:
            await self.begin_with(name)

    async def begin_with(self, name: str) -> None:
        """Show this run and forget what was shown, even if that had the same name."""
        self.reader.close()
        self.options = asks.Options(run=name, readonly=self.readonly)
        self._talker, self._sampling, self._moved, self._seen, self._held = None, None, False, False, ""
        await self.main.forget(Path(name).name)
        self.read_anew()

    def read_anew(self) -> None:
        """Read the run from its beginning."""
        self.reader.close()
        self.reader = bridge.Reader(self.options.run, self.post_message, player=self.player)
        self.reader.select(self.main.rail.selected)
        self.reader.start()


def main(argv: list[str] | None = None) -> None:
    """The entry point; see `tui/start.py`."""
    from tui import start

    start.main(argv)


if __name__ == "__main__":
    main()
