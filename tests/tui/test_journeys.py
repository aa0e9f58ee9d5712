"""Whole journeys with real processes: launch, watch, stop, resume, kill, redo; closing the app stops nothing."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time

import psutil
import pytest

from picollm.run import config as settings
from picollm.run import lease
from picollm.run.folder import Run
from tests.run.conftest import ROOT, script
from tests.run.conftest import runs as fake_runs  # noqa: F401  (a fixture)
from tests.tui.conftest import PATIENT, WIDE, shown, until
from tui import asks
from tui.app import PicollmApp

PATIENCE = 240.0
pytestmark = pytest.mark.timeout(900)  # dozens of processes, one after another
ENDLESS = {"steps": 10_000_000, "sleep": 0.01}


def state(app: PicollmApp, name: str) -> str:
    return app.main.view.stage(name).state


async def test_launch_watch_stop_resume(fake_runs) -> None:  # noqa: F811
    run = Run.create("r", settings.load(environ={}))
    script(run, pretrain=ENDLESS)
    app = PicollmApp(asks.Options(run="r", go=True))
    async with app.run_test(size=WIDE) as pilot:
        await until(pilot, lambda: state(app, "pretrain") == "running", PATIENCE)
        assert app.main.stage == "pretrain", "the selection follows what runs"
        await pilot.press("2")
        await until(pilot, lambda: "Loss" in app.main.plain, PATIENCE)
        await pilot.press("x")
        await until(pilot, lambda: state(app, "pretrain") == "stopped", PATIENCE)
        await until(pilot, lambda: "r Resume" in shown(app), PATIENCE)
        script(run, pretrain={"steps": 10})
        await pilot.press("r")
        await until(pilot, lambda: state(app, "report") == "done", PATIENCE)
        await until(pilot, lambda: "finished" in shown(app).splitlines()[0], PATIENCE)


async def test_closing_the_app_stops_nothing_and_it_reopens_where_things_stand(fake_runs) -> None:  # noqa: F811
    run = Run.create("r", settings.load(environ={}))
    script(run, doctor=ENDLESS)
    app = PicollmApp(asks.Options(run="r"))
    async with app.run_test(size=WIDE) as pilot:
        await until(pilot, lambda: app.main.view.exists)
        await pilot.press("s")
        await until(pilot, lambda: state(app, "doctor") == "running", PATIENCE)
        await pilot.press("q")
    assert "goes on without the app" in app.farewell
    step = run.status("doctor").step
    again = PicollmApp(asks.Options(run="r"))
    async with again.run_test(size=WIDE) as pilot:
        await until(pilot, lambda: again.main.view.stage("doctor").step > step, PATIENCE)
        assert lease.is_held(run.lock_file("doctor"))
        await pilot.press("x")
        await until(pilot, lambda: state(again, "doctor") in ("stopped", "failed"), PATIENCE)


async def test_a_second_stop_asks_and_kills(fake_runs, monkeypatch) -> None:  # noqa: F811
    run = Run.create("r", settings.load(environ={}))
    script(run, doctor={"deaf": True})
    app = PicollmApp(asks.Options(run="r"))
    async with app.run_test(size=WIDE) as pilot:
        await until(pilot, lambda: app.main.view.exists)
        await pilot.press("s")
        await until(pilot, lambda: state(app, "doctor") == "running", PATIENCE)
        await pilot.press("x")
        await until(pilot, lambda: state(app, "doctor") == "stopping", PATIENCE)
        await pilot.press("x")
        await until(pilot, lambda: "Kill Doctor?" in shown(app))
        await pilot.press("y")
        await until(pilot, lambda: state(app, "doctor") == "crashed", PATIENCE)


async def test_stale_is_shown_and_asked_about_before_anything_runs(a_run, an_app, monkeypatch) -> None:
    a_run("stale")
    asked = []
    monkeypatch.setattr("picollm.run.conductor.ask", lambda run, request: asked.append(request))
    app = an_app("stale", go=True)
    async with app.run_test(size=WIDE) as pilot:
        await until(pilot, lambda: "sft.lr was 0.8, is now 0.123" in shown(app) and "makes them again" in shown(app))
        assert not asked
        await pilot.press("escape")
        await pilot.pause(0.2)
        assert not asked
        await pilot.press("g")
        await until(pilot, lambda: "makes them again" in shown(app))
        await pilot.press("y")
        await until(pilot, lambda: bool(asked))
        assert asked[0].redo == ["sft", "rl", "chat_eval", "report"] == asked[0].fresh


async def test_a_stage_whose_needs_are_missing_asks(a_run, an_app, monkeypatch) -> None:
    a_run("failed")
    asked = []
    monkeypatch.setattr("picollm.run.conductor.ask", lambda run, request: asked.append(request))
    app = an_app("failed")
    async with app.run_test(size=WIDE) as pilot:
        await until(pilot, lambda: app.main.view.exists)
        app.action_select_stage("pretrain")
        await pilot.press("s")
        await until(pilot, lambda: "needs what is not done yet: Tokenizer, Tokenizer eval" in shown(app))
        await pilot.press("y")
        await until(pilot, lambda: bool(asked))
        assert asked[0].stages == ["tokenizer", "tokenizer_eval", "pretrain"]


async def test_go_makes_a_new_run_with_its_settings(runs, an_app, monkeypatch) -> None:
    asked = []
    monkeypatch.setattr("picollm.run.conductor.ask", lambda run, request: asked.append((run, request)))
    app = an_app("fresh", go=True, profile="smoke", sets=("run.seed=7",))
    async with app.run_test(size=WIDE) as pilot:
        await until(pilot, lambda: bool(asked))
    config = Run.open("fresh").wishes()
    assert (config.run.profile, config.run.seed) == ("smoke", 7)


def command(*arguments: str, runs) -> subprocess.CompletedProcess[str]:
    environ = os.environ | {"PYTHONPATH": str(ROOT), "PICOLLM_RUNS": str(runs)}
    return subprocess.run([sys.executable, "-m", "tui.app", *arguments], cwd=runs, capture_output=True, text=True,
                          env=environ, timeout=240)  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--nonsense",), "--nonsense"),
        (("--run", "bad name"), "run name 'bad name'"),
        (("--run", "else/where"), "a name has no slash"),
        (("--run", "./new"), "needs a terminal"),
        (("--run", "new", "--profile", "huge"), "unknown profile 'huge'"),
        (("--run", "new", "--set", "sft.lr=fast"), "sft.lr"),
        (("--run", "new", "--config", "nowhere.toml"), "nowhere.toml"),
        (("--run", "new", "--export-svg", "nothing", "x.svg"), "nothing"),
        (("--run", "new"), "needs a terminal"),
    ],
)
def test_bad_arguments_are_one_line_and_code_2(arguments, words, runs) -> None:
    done = command(*arguments, runs=runs)
    assert done.returncode == 2
    assert words in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert done.stderr.startswith("error: ")


def test_a_picture_of_a_screen(a_run, runs, tmp_path) -> None:
    a_run("finished")
    file = tmp_path / "train.svg"
    done = command("--run", "finished", "--export-svg", "train:sft", str(file), runs=runs)
    assert done.returncode == 0, done.stderr
    text = file.read_text()
    assert text.startswith("<svg") and "Loss" in text.replace("&#160;", " ")


def on_a_terminal(runs) -> tuple[int, int, bytes]:
    """The app in a terminal of its own: its pid, our end of that terminal, what it wrote until its first frame."""
    pid, terminal = pty.fork()
    if pid == 0:
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        os.chdir(runs)
        environ = os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm-256color"}
        start = f"{PATIENT}; from tui import app; app.main(['--run', 'finished'])"
        os.execve(sys.executable, [sys.executable, "-c", start], environ)
    written, end = b"", time.monotonic() + PATIENCE
    while b"Doctor" not in written:
        assert time.monotonic() < end, written[-2000:]
        if select.select([terminal], [], [], 0.1)[0]:
            written += os.read(terminal, 65536)
    return pid, terminal, written


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_signals_leave_the_terminal_as_it_was(number, a_run, runs) -> None:
    a_run("finished")
    pid, terminal, written = on_a_terminal(runs)
    assert b"\x1b[?1049h" in written
    os.kill(pid, number)
    process, end = psutil.Process(pid), time.monotonic() + PATIENCE
    while process.status() != psutil.STATUS_ZOMBIE and time.monotonic() < end:
        try:
            if select.select([terminal], [], [], 0.1)[0]:
                written += os.read(terminal, 65536)
        except OSError:
            break
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 0
    assert written.rfind(b"\x1b[?1049l") > written.rfind(b"\x1b[?1049h")
    assert written.rfind(b"\x1b[?25h") > written.rfind(b"\x1b[?25l")


def test_a_terminal_that_vanishes_ends_the_app(a_run, runs) -> None:
    a_run("finished")
    pid, terminal, _ = on_a_terminal(runs)
    os.close(terminal)
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if os.waitpid(pid, os.WNOHANG)[0]:
            return
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    pytest.fail("still alive without a terminal")
