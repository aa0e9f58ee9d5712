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

from picollm.run import event_file, launch, lease, serving
from picollm.run import events as ev
from picollm.run.folder import Run

ROOT = Path(__file__).resolve().parents[2]
WAIT_S = 600.0
"""For what takes seconds; longer only where something hangs. A busy machine may stand still for a while."""

# Every Python process of a held stage runs this first. Whoever looks at a training from outside is slower than it is.
HOLD = """
import os, time
if "HOLD_AT" in os.environ:
    from picollm.run.stage import StageContext
    tell = StageContext.metrics

    def metrics(self, step, values):
        tell(self, step, values)
        while step == int(os.environ["HOLD_AT"]) and not self.stop_requested():
            time.sleep(0.02)

    StageContext.metrics = metrics
"""


class Workplace:
    """`runs` and `home` of their own; `picollm(...)` is the command line, `launch(...)` one stage's process."""

    def __init__(self, folder: Path) -> None:
        self.runs, self.home = folder / "runs", folder / "home"
        (folder / "hold").mkdir()
        (folder / "hold" / "sitecustomize.py").write_text(HOLD)
        kept = {key: value for key, value in os.environ.items() if not re.match(r"PICOLLM_|RANK$|WORLD_SIZE$", key)}
        self.env = kept | {
            "PICOLLM_RUNS": str(self.runs),
            "PICOLLM_HOME": str(self.home),
            "PYTHONPATH": f"{folder / 'hold'}{os.pathsep}{ROOT}",
            "XDG_RUNTIME_DIR": str(folder),
            "TMPDIR": str(folder),
        }

    def picollm(self, *words: str, timeout: float = 1500) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "picollm.cli", *words]
        return subprocess.run(argv, env=self.env, capture_output=True, text=True, timeout=timeout)

    def launch(self, run: Run, stage: str, fresh: bool = False, hold: int = 0) -> subprocess.Popen[bytes]:
        """With `hold`, training waits once it has told of that step, until it is asked to stop or killed."""
        argv = [sys.executable, "-m", "picollm.run.launch", "--run", str(run.dir), "--stage", stage]
        argv += ["--fresh"] if fresh else []
        env = self.env | ({"HOLD_AT": str(hold)} if hold else {})
        return subprocess.Popen(argv, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def kill(self, process: subprocess.Popen[bytes], run: Run, stage: str) -> None:
        """Kill a stage, and wait until nothing of it is left."""
        assert launch.kill_stage(run, stage)
        process.wait(WAIT_S)
        wait_for(lambda: not lease.is_held(run.lock_file(stage)), WAIT_S, "the last of its processes to end")

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
