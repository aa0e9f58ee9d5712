"""Whatever ends the app, the terminal is as it was found: signals, a loop that hangs, a bug. On a pseudo-terminal."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time

import pytest

from tests.run.conftest import ROOT, until
from tests.tui.conftest import PATIENT

PATIENCE_S = 60.0
LEFT = b"\x1b[?1049l"
SHOWN = b"\x1b[?25h"


class Session:
    """The app, started by `code`, on a terminal of its own."""

    def __init__(self, code: str, runs, home) -> None:
        self.ours, theirs = pty.openpty()
        self.before = termios.tcgetattr(self.ours)
        environ = {**os.environ, "PICOLLM_RUNS": str(runs), "PICOLLM_HOME": str(home), "TERM": "xterm-256color",
                   "PYTHONPATH": str(ROOT)}  # fmt: skip
        start = f"import sys; sys.argv = ['picollm-tui', '--run', 'finished']\n{code}\nfrom tui import app; app.main()"
        self.process = subprocess.Popen([sys.executable, "-c", start], stdin=theirs, stdout=theirs, stderr=theirs,
                                        env=environ, cwd=runs, start_new_session=True, close_fds=True)  # fmt: skip
        os.close(theirs)
        self.seen = b""

    def until(self, words: bytes) -> None:
        """Read until the terminal was sent these bytes."""
        end = time.monotonic() + PATIENCE_S
        while words not in self.seen:
            assert time.monotonic() < end, self.seen[-2000:]
            if select.select([self.ours], [], [], 0.1)[0]:
                try:
                    self.seen += os.read(self.ours, 65536)
                except OSError:
                    break
        assert words in self.seen, self.seen[-2000:]

    def end(self) -> int:
        """The exit code, with everything that was still sent."""
        end, more = time.monotonic() + PATIENCE_S, True
        while more or self.process.poll() is None:  # read meanwhile: a terminal that is full holds who writes to it
            assert time.monotonic() < end, "it does not end"
            if more := bool(select.select([self.ours], [], [], 0.2)[0]):
                try:
                    self.seen += os.read(self.ours, 65536)
                except OSError:
                    break
        return self.process.wait(PATIENCE_S)

    def restored(self) -> bool:
        at = self.seen.rfind(LEFT)
        return at >= 0 and SHOWN in self.seen and termios.tcgetattr(self.ours)[3] == self.before[3]


@pytest.fixture
def session(a_run, runs, tmp_path):
    a_run("finished")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "tui.toml").write_text('theme = "dark"\nascii = false\ntoured = true\n')
    begun: list[Session] = []

    def begin(code: str = "", words: bytes = b"finished") -> Session:
        begun.append(Session(code, runs, tmp_path / "home"))
        begun[-1].until(words)
        return begun[-1]

    yield begin
    for one in begun:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait()
        os.close(one.ours)


def test_a_terminal_that_cannot_draw_is_told_so(session) -> None:
    app = session("import os; os.environ['TERM'] = 'dumb'", words=b"TERM is dumb")
    assert app.end() == 2 and b"\x1b" not in app.seen


def test_sigterm_restores_the_terminal(session) -> None:
    app = session(PATIENT)
    app.process.send_signal(signal.SIGTERM)
    assert app.end() == 0
    assert app.restored()


HANG = """
from picollm.run.folder import picollm_home
from tui.widgets.doctor import DoctorPane
def hang(self, *rest):
    (picollm_home() / "hangs").touch()
    while True:
        pass
DoctorPane.update_from = hang
"""


def test_sigterm_restores_the_terminal_of_an_app_that_hangs(session, tmp_path) -> None:
    app = session(HANG)
    os.write(app.ours, b"5")
    until((tmp_path / "home" / "hangs").exists)
    app.process.send_signal(signal.SIGTERM)
    assert app.end() == 1
    assert app.restored()


BUG = """
from tui import guard
guard.FORBEARANCE = 0
from tui.widgets.frame import TitleLine
TitleLine.show = lambda self, view: {}["no such thing"] if view.exists else None
"""


def test_a_bug_outside_the_tabs_ends_with_a_sentence_and_a_file(session, tmp_path) -> None:
    app = session(BUG, b"Details")
    assert app.end() == 1
    assert app.restored()
    said = app.seen[app.seen.rfind(LEFT) :].decode()
    assert "hit a bug of its own and ended: KeyError: 'no such thing'" in said and "Traceback" not in said
    assert "no such thing" in (tmp_path / "home" / "tui-crash.log").read_text()


NO_SIZE = f"""
{PATIENT}
terminal.give_size = lambda fd: None
"""


def test_two_sizes_at_the_start_do_not_answer_each_other_for_ever(session) -> None:
    """A terminal without a size is resized twice while the app starts: 80 by 25, then 80 by 24."""
    app = session(NO_SIZE)
    app.process.send_signal(signal.SIGTERM)
    assert app.end() == 0
