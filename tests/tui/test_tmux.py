"""The app inside tmux: left and come back to, closed under its hands, and copying by the route that is open."""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.run.conftest import ROOT, until

pytestmark = pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")


class Tmux:
    """A tmux server of our own with the app in its one window."""

    def __init__(self, runs: Path, folder: Path) -> None:
        self.command = ["tmux", "-S", str(folder / "socket"), "-f", "/dev/null"]
        self.environ = {name: value for name, value in os.environ.items() if name not in ("TMUX", "DISPLAY", "SSH_TTY")}
        self.environ |= {"PYTHONPATH": str(ROOT), "PICOLLM_RUNS": str(runs), "PICOLLM_HOME": str(folder / "home"),
                         "TERM": "xterm-256color"}  # fmt: skip
        (folder / "home").mkdir()
        (folder / "home" / "tui.toml").write_text("toured = true\n")

    def __call__(self, *arguments: str) -> str:
        done = subprocess.run([*self.command, *arguments], capture_output=True, text=True, env=self.environ, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def open(self, *arguments: str) -> psutil.Process:
        """The app's process."""
        self("new-session", "-d", "-x", "100", "-y", "30", sys.executable, "-m", "tui.app", *arguments)
        return psutil.Process(int(self("list-panes", "-F", "#{pane_pid}")))

    def screen(self) -> str:
        return self("capture-pane", "-p")

    def shows(self, words: str) -> None:
        until(lambda: words in self.screen(), 60, f"{words!r} is not on the screen")

    def tells(self, key: str, words: str) -> None:
        """A key is answered by a message, which goes by itself: it is pressed again when nobody was there to see it."""

        def told() -> bool:
            self("send-keys", key)
            for _ in range(20):
                if words in self.screen():
                    return True
                time.sleep(0.1)
            return False

        until(told, 60, f"{words!r} is not said")

    def client(self, columns: int, rows: int) -> tuple[subprocess.Popen[bytes], int]:
        """Somebody who attaches, and the terminal at which they sit."""
        terminal, end = pty.openpty()
        os.set_blocking(terminal, False)
        subprocess.run(["stty", "cols", str(columns), "rows", str(rows)], stdin=end, check=True)
        process = subprocess.Popen([*self.command, "attach"], stdin=end, stdout=end, stderr=end, env=self.environ,
                                   start_new_session=True)  # fmt: skip
        os.close(end)
        return process, terminal


@pytest.fixture
def tmux(runs: Path, tmp_path: Path) -> Iterator[Tmux]:
    found = Tmux(runs, tmp_path)
    yield found
    subprocess.run([*found.command, "kill-server"], capture_output=True, env=found.environ, timeout=60)


def seen(terminal: int, so_far: bytearray) -> bytearray:
    """Everything written there until now."""
    try:
        while more := os.read(terminal, 1 << 16):
            so_far += more
        return so_far
    except OSError:  # nothing more for now, or the client has gone
        return so_far


def test_left_and_come_back_to(a_run: Callable, tmux: Tmux) -> None:
    tmux.environ |= {"COLUMNS": "80", "LINES": "24"}  # as some shells export them
    a_run("finished")
    app = tmux.open("--run", "finished")
    tmux.shows("13 of 13 done")
    first, terminal = tmux.client(80, 24)
    first_saw, second_saw = bytearray(), bytearray()
    until(lambda: b"Pretrain" in seen(terminal, first_saw), 60, "the attached client sees nothing")
    until(lambda: len(tmux.screen().rstrip("\n").splitlines()) <= 24, 60, "it did not take the client's size")
    tmux("detach-client")
    until(lambda: seen(terminal, first_saw) and first.poll() is not None, 60, "it stays attached")
    os.close(terminal)
    tmux("resize-window", "-x", "140", "-y", "40")
    tmux.shows("Chat eval")
    until(lambda: max(map(len, tmux.screen().splitlines())) > 100, 60, "it did not take the new size")
    second, terminal = tmux.client(140, 40)
    until(lambda: b"Pretrain" in seen(terminal, second_saw), 60, "who comes back sees nothing")
    tmux("send-keys", "4")
    tmux.shows("this is a fixture")
    assert app.is_running()
    tmux("send-keys", "q")
    until(lambda: seen(terminal, second_saw) and second.poll() is not None, 60, "it stays")
    os.close(terminal)
    until(lambda: not app.is_running() or app.status() == psutil.STATUS_ZOMBIE, 60, "the app does not end")


def test_a_closed_window_ends_the_app_and_not_the_run(a_run: Callable, tmux: Tmux) -> None:
    run = a_run("running")
    before = run.events_file("pretrain", 1).read_bytes()
    app = tmux.open("--run", "running")
    tmux.shows("Pretrain")
    tmux.shows("run 40")
    tmux("kill-session")
    until(lambda: not app.is_running() or app.status() == psutil.STATUS_ZOMBIE, 60, "still there, spinning perhaps")
    assert run.status("pretrain").state in ("running", "stalled")
    assert run.events_file("pretrain", 1).read_bytes() == before


@pytest.mark.parametrize("passes", [True, False])
def test_copying_goes_through_where_tmux_lets_it_and_into_a_file_where_not(passes: bool, a_run: Callable, tmux: Tmux,
                                                                           tmp_path: Path) -> None:  # fmt: skip
    a_run("finished")
    tmux("start-server", ";", "set-option", "-g", "exit-empty", "off")
    tmux("set-option", "-s", "set-clipboard", "on" if passes else "external")
    tmux.open("--run", "finished")
    tmux.shows("13 of 13 done")
    tmux("send-keys", "3")
    tmux.shows("Machine  ")
    tmux.shows("CPU")
    tmux.tells("c", "OSC 52" if passes else "set-clipboard")  # the rest may be on the next line
    copied = tmp_path / "home" / "copied.txt"
    assert "CPU" in copied.read_text()
    if passes:
        until(lambda: "CPU" in tmux("show-buffer"), 60, "tmux has got nothing")
    else:
        assert "CPU" not in tmux("list-buffers")
