"""A real smoke run, made once by the command line, and copies of it to harm."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from picollm.run import event_file, serving
from picollm.run import events as ev
from picollm.run.folder import Run

ROOT = Path(__file__).resolve().parents[2]


class Workplace:
    """`runs` and `home` of their own; `picollm(...)` is the command line, `launch(...)` one stage's process."""

    def __init__(self, folder: Path) -> None:
        self.runs, self.home = folder / "runs", folder / "home"
        kept = {key: value for key, value in os.environ.items() if not re.match(r"PICOLLM_|RANK$|WORLD_SIZE$", key)}
        self.env = kept | {
            "PICOLLM_RUNS": str(self.runs),
            "PICOLLM_HOME": str(self.home),
            "PYTHONPATH": str(ROOT),
            "XDG_RUNTIME_DIR": str(folder),
            "TMPDIR": str(folder),
        }

    def picollm(self, *words: str, timeout: float = 600) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "picollm.cli", *words]
        return subprocess.run(argv, env=self.env, capture_output=True, text=True, timeout=timeout)

    def launch(self, run: Run, stage: str, fresh: bool = False) -> subprocess.Popen[bytes]:
        argv = [sys.executable, "-m", "picollm.run.launch", "--run", str(run.dir), "--stage", stage]
        argv += ["--fresh"] if fresh else []
        return subprocess.Popen(argv, env=self.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def run(self, name: str) -> Run:
        return Run(self.runs / name)

    def copy(self, source: Run, name: str) -> Run:
        """Another run with the same past; its checkpoints are its own."""
        shutil.copytree(source.dir, self.runs / name)
        return self.run(name)


def wait_for(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Poll until true. Fails the test with `what` when time is up."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.02)


def step_of(run: Run, stage: str) -> int:
    """The last step the newest attempt reported."""
    attempts = run.attempts(stage)
    events = event_file.tail_events(run.events_file(stage, attempts[-1])) if attempts else []
    return max((event.step for event in events if isinstance(event, ev.Metrics)), default=0)


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workplace]:
    place = Workplace(tmp_path_factory.mktemp("pipeline"))
    yield place
    for folder in place.runs.glob("*"):
        serving.stop_serving(Run(folder))


@pytest.fixture(scope="session")
def smoke(workplace: Workplace) -> Run:
    """All stages of a smoke run, done."""
    done = workplace.picollm("run", "--profile", "smoke", "--run", "smoke", *EVERY_STEP_SAVED)
    assert done.returncode == 0, done.stdout + done.stderr
    return workplace.run("smoke")


EVERY_STEP_SAVED = tuple(
    word for stage in ("pretrain", "midtrain", "sft", "rl") for word in ("--set", f"{stage}.save_every=0.1")
)
