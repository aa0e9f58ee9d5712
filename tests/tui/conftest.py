"""Fixture runs, made once per session and copied; an app on a run; a stand-in for the inference process."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import textual.app
import textual.pilot
from textual._wait import wait_for_idle
from textual.notifications import Notification
from textual.widgets import Input, TextArea

from picollm.run.folder import Run
from tests.fixtures import make_runs
from tui import asks, in_turn
from tui.app import PicollmApp

WIDE, NARROW = (120, 40), (80, 24)
PATIENT = "from tui import terminal; terminal.PATIENCE_S = 60"
"""Said before the app is started in a process of its own: no busy machine is then taken for a loop that hangs."""
TURNS = 100  # of the event loop; far more than a key takes from the terminal to what it does


@pytest.fixture(autouse=True)
def slow_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the machine stands still: a key that was pressed has been acted on before the next is, for which the
    pilot and the app go by the clock; messages stay on the screen until they are taken away, and no cursor blinks."""

    async def turned(*how: float) -> None:
        for _ in range(TURNS):
            await asyncio.sleep(0)
        await wait_for_idle(*how)

    for module in (textual.app, textual.pilot):
        monkeypatch.setattr(module, "wait_for_idle", turned)
    for name in ("ASKED_S", "HELD_S"):
        monkeypatch.setattr(in_turn, name, 60.0)
    monkeypatch.setattr(Input, "_toggle_cursor", lambda box: None)
    monkeypatch.setattr(TextArea, "_toggle_cursor_blink_visible", lambda box: None)
    monkeypatch.setattr(Notification, "time_left", 1e6)


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty runs folder that the app looks into."""
    folder = tmp_path / "runs"
    folder.mkdir()
    monkeypatch.setenv("PICOLLM_RUNS", str(folder))
    return folder


@pytest.fixture
def a_run(made: Path, runs: Path) -> Iterator[Callable[[str], Run]]:
    """Gives a private copy of a kind of run; holds the lock of what should be alive."""
    held = []

    def copy(kind: str) -> Run:
        if kind == "running":  # a copy of an earlier one would have been silent for as long as the tests take
            make_runs.make(runs, kind)
        else:
            shutil.copytree(made / kind, runs / kind)
        run = Run(runs / kind)
        if kind in make_runs.ALIVE:
            held.append(make_runs.hold(run, make_runs.ALIVE[kind]))
        return run

    yield copy
    for lock in held:
        lock.release()


@pytest.fixture
def an_app() -> Iterator[Callable[..., PicollmApp]]:
    """Makes apps; a bug that one of them survived fails the test, unless the test took it out of `failures`."""
    made: list[PicollmApp] = []

    def make(name: str, **more: Any) -> PicollmApp:
        made.append(PicollmApp(asks.Options(run=name, **more)))
        return made[-1]

    yield make
    for app in made:
        for error in app.failures:
            raise error


async def until(pilot, condition: Callable[[], bool], seconds: float = 60.0, what: str = "") -> None:
    """Wait for a condition, looking every few milliseconds."""
    end = time.monotonic() + seconds
    while not _holds(condition):
        assert time.monotonic() < end, what or f"not within {seconds} s; screen:\n{shown(pilot.app)}"
        await pilot.pause(0.03)


_seen: dict[PicollmApp, str] = {}
_looking = False


def _holds(condition: Callable[[], bool]) -> bool:
    """Ask once; the screen is drawn once for it, however often it is looked at."""
    global _looking
    _looking = True
    try:
        return condition()
    finally:
        _looking = False
        _seen.clear()


def shown(app: PicollmApp) -> str:
    """The whole screen as text."""
    if app in _seen:
        return _seen[app]
    width, height = app.size
    text = "\n".join(strip.text[:width].rstrip() for strip in app.screen._compositor.render_strips()[:height])
    if _looking:
        _seen[app] = text
    return text
