"""What goes over the wire: the terminal shows what the app means, an unchanged screen sends nothing, and every way to
end leaves the terminal as it was."""

from __future__ import annotations

import os
import random
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from benchmarks import tui_ruler
from tests.fixtures import make_runs
from tests.run.conftest import until
from tests.tui.conftest import PATIENT

REDRAW, ESCAPE = "\x0c", "\x1b"
SIZES = ((120, 40), (80, 24), (60, 20), (141, 33))


@pytest.fixture
def terminal(a_run: Callable, runs: Path) -> Iterator[tui_ruler.Terminal]:
    a_run("finished")
    (runs.parent / "home").mkdir()
    (runs.parent / "home" / "tui.toml").write_text("toured = true\n")
    start = f"{PATIENT}; from tui import app; app.main(['--run', 'finished'])"
    found = tui_ruler.Terminal([sys.executable, "-c", start], SIZES[0], tui_ruler.environment(runs))
    found.until("13 of 13 done", 60)
    rest(found)
    yield found
    if found.alive():
        found.close()


def rest(terminal: tui_ruler.Terminal, seconds: float = 0.4) -> None:
    """Wait until the app has neither written anything nor wanted the processor for a while: one that waits for it,
    on a busy machine, is late and not done."""
    tasks, end, calm = Path(f"/proc/{terminal.pid}/task"), time.monotonic() + 60, time.monotonic()
    while time.monotonic() - calm < seconds:
        index = len(terminal.reads)
        time.sleep(0.01)
        states = {task.joinpath("stat").read_text().rpartition(")")[2].split()[0] for task in tasks.iterdir()}
        if len(terminal.reads) > index or states != {"S"}:
            calm = time.monotonic()
        assert calm < end, "it is never done"


def cells(terminal: tui_ruler.Terminal) -> list[tuple[object, ...]]:
    """Every character on the screen with its colours."""
    terminal.text()
    screen = terminal.screen
    rows = [[screen.buffer[y][x] for x in range(screen.columns)] for y in range(screen.lines)]
    return [(y, x, cell) for y, row in enumerate(rows) for x, cell in enumerate(row)]


def test_the_terminal_shows_what_a_full_redraw_shows(terminal: tui_ruler.Terminal) -> None:
    draw = random.Random(4)
    for turn in range(3):
        for _ in range(12):
            terminal.press(draw.choice(["1", "2", "3", "4", "5", "j", "k", "n", "\t", "?", ESCAPE, "+", "-"]))
            time.sleep(draw.random() * 0.1)
        if turn == 1:
            for size in draw.sample(SIZES, 4):
                terminal.resize(*size)
                time.sleep(0.05)
        terminal.press(ESCAPE)
        rest(terminal)
        terminal.press("4" if turn % 2 else "1")
        rest(terminal)
        before, index = cells(terminal), len(terminal.reads)
        terminal.press(REDRAW)
        until(lambda index=index: len(terminal.reads) > index, what="it draws")
        rest(terminal)
        differ = [(one, other) for one, other in zip(before, cells(terminal), strict=True) if one != other]
        assert not differ, f"{len(differ)} cells were wrong, the first: {differ[0]}\n{terminal.text()}"


def test_an_unchanged_screen_sends_nothing(terminal: tui_ruler.Terminal) -> None:
    for tab, words in (("1", "State"), ("2", "not trained|Loss"), ("4", "this is a fixture|printed"), ("6", "added")):
        terminal.press(tab)
        until(lambda words=words: re.search(words, terminal.text()), what=f"{words} in tab {tab}")
        assert terminal.quiet(1.6, 60), f"tab {tab}: {terminal.reads[-5:]!r}"  # longer than any interval of the app


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, 0])
def test_every_end_restores_the_terminal(number: int, terminal: tui_ruler.Terminal) -> None:
    assert terminal.left_on(), "a full-screen app switches modes on"
    if number == signal.SIGTERM:
        os.kill(terminal.pid, number)
    else:
        terminal.press("\x03" if number else "q")
    end = time.monotonic() + 60
    while terminal.alive():
        assert time.monotonic() < end
        time.sleep(0.01)
    until(lambda: terminal.left_on() == [], what="what it wrote last is read")
    assert terminal.code == 0


def test_who_was_stopped_from_outside_goes_on_and_can_be_left(terminal: tui_ruler.Terminal) -> None:
    os.kill(terminal.pid, signal.SIGSTOP)
    until(lambda: terminal.process.status() == psutil.STATUS_STOPPED)
    os.kill(terminal.pid, signal.SIGCONT)
    rest(terminal)
    terminal.press("4")
    until(lambda: "this is a fixture" in terminal.text())
    terminal.press("q")
    until(lambda: not terminal.alive())
    until(lambda: terminal.left_on() == [])
    assert terminal.code == 0


def test_a_stage_that_goes_on_shows_its_steps(a_run: Callable, runs: Path) -> None:
    run = a_run("running")
    (runs.parent / "home").mkdir()
    (runs.parent / "home" / "tui.toml").write_text("toured = true\n")
    terminal = tui_ruler.Terminal(tui_ruler.app("--run", "running"), (100, 30), tui_ruler.environment(runs))
    try:
        terminal.until("run 40 %", 60)
        terminal.press("2")
        terminal.until("Loss", 60)
        attempt = make_runs.Script(run, "pretrain", 1, time.time())
        attempt.seq = 10_000
        make_runs.train(attempt, 240, first=161)
        index = len(terminal.reads)
        with open(run.events_file("pretrain", 1), "ab") as file:
            file.write(b"\n".join(attempt.lines) + b"\n")
        terminal.until("run 60 %", 60)
        assert terminal.since(index) < 40_000
    finally:
        terminal.close()
