"""A run on a disk that is really full: a small tmpfs, where we may mount one."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from picollm.run import config as settings
from picollm.run import event_file, launch
from picollm.run import events as ev
from picollm.run.errors import UserError
from picollm.run.folder import Run
from tests.run.conftest import release, script, until


@pytest.fixture
def small_disk(runs: Path) -> Iterator[Path]:
    runs.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(runs)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small disk is not allowed here")
    yield runs
    subprocess.run(["umount", "-l", str(runs)], check=True)


def fill(folder: Path) -> Path:
    ballast = folder / "ballast"
    with open(ballast, "wb", buffering=0) as file:
        try:
            while file.write(b"x" * 4096):
                pass
        except OSError:
            return ballast
    return ballast


def test_settings_and_requests_say_so_and_keep_what_was(small_disk: Path) -> None:
    run = Run.create("r", settings.load(environ={}))
    fill(small_disk)
    with pytest.raises(UserError, match=r"cannot write .*No space left on device"):
        run.set(["sft.lr=0.123"])
    assert run.wishes().sft.lr == 0.8 and not list(run.dir.glob(".config*"))


def test_a_launcher_without_room_is_one_line(small_disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run.create("r", settings.load(environ={}))
    fill(small_disk)
    assert launch.launch_here(run.dir, "doctor") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "No space left" in error


@pytest.mark.slow
def test_a_stage_waits_for_room_and_its_events_survive(small_disk: Path) -> None:
    run = Run.create("r", settings.load(environ={}))
    script(run, doctor={"steps": 400, "deaf": True})
    child = launch.start_launcher(run, "doctor")
    until(lambda: run.status("doctor").step)
    ballast = fill(small_disk)
    release(run, "doctor")
    until(lambda: "trying again" in run.console_file("doctor", 1).read_text())
    ballast.unlink()
    assert child.wait(60) == 0
    steps = [
        event.step for event in event_file.read_events(run.events_file("doctor", 1)) if isinstance(event, ev.Metrics)
    ]
    assert steps == list(range(1, 401)) and run.status("doctor").state == "done"
