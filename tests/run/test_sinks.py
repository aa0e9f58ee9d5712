"""Figures elsewhere: the real packages where they are installed, and stand-ins that fail, hang or are missing.

A stage is played by this process: it holds the stage's lock and appends events, which is all a sink ever sees of one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from picollm.run import config, event_file, lease, sinks
from picollm.run import events as ev
from picollm.run.folder import Run
from picollm.run.history import StageHistory
from tests.run.conftest import until

ROOT = Path(__file__).resolve().parents[2]
BOTH = ["log.tensorboard=true", "log.wandb=offline"]
NICE_S = 240
"""A sink lets everybody else go first."""


class Stage:
    """A stage at work, as far as the run folder shows."""

    def __init__(self, run: Run, attempt: int = 1) -> None:
        self.run, self.file = run, run.events_file("pretrain", attempt)
        self.lock = lease.Lock(run.lock_file("pretrain"))
        assert self.lock.exclusive()
        self.say(ev.Started(stage="pretrain", attempt=attempt, pid=1, host="h", boot_id="b", start_ticks=1))

    def say(self, event: ev.Event) -> None:
        event_file.append(self.file, event)

    def steps(self, first: int, last: int, loss: float) -> None:
        for step in range(first, last + 1):
            self.say(ev.Metrics(step=step, values={"loss": loss - step, "gap": None}))

    def end(self) -> None:
        self.say(ev.Finished(seconds=1.0, summary={"step": 4, "tok_s": 9.5, "name": "x"}))
        self.lock.release()


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("PICOLLM_RUNS", str(tmp_path / "runs"))
    return Run.create("r", config.load(sets=BOTH, environ={}))


def follow(run: Run, name: str, path: Path | None = None, patience: int = NICE_S, **env: str) -> subprocess.Popen[str]:
    """The sink's process; `path` comes first among its modules."""
    paths = os.pathsep.join([*([str(path)] if path else []), str(ROOT)])
    kept = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
    argv = [sys.executable, "-m", "picollm.run.sinks", "--run", str(run.dir), "--sink", name]
    argv += ["--patience", str(patience)]
    return subprocess.Popen(
        argv, env=kept | {"PYTHONPATH": paths, "HOME": str(run.dir)} | env, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    said, _ = process.communicate(timeout=NICE_S)
    return process.returncode, said


def warnings(run: Run) -> list[str]:
    return StageHistory(run, "pretrain").read_all().warnings


def test_nothing_is_started_that_was_not_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PICOLLM_RUNS", str(tmp_path))
    started: list[list[str]] = []
    quiet = Run.create("quiet", config.load(environ={}))
    sinks.start(quiet, quiet.config(), lambda argv, console: started.append(argv))
    assert started == []
    loud = Run.create("loud", config.load(sets=BOTH, environ={}))
    sinks.start(loud, loud.config(), lambda argv, console: started.append(argv))
    assert [argv[-1] for argv in started] == ["wandb", "tensorboard"]
    held = lease.Lock(loud.dir / "log" / "wandb.lock")
    assert held.exclusive()
    sinks.start(loud, loud.config(), lambda argv, console: started.append(argv))
    assert [argv[-1] for argv in started[2:]] == ["tensorboard"]
    held.release()


def test_a_process_that_cannot_be_started_costs_nothing(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    def full(argv: list[str], console: Path) -> None:
        raise OSError(28, "No space left on device")

    sinks.start(run, run.config(), full)
    assert capsys.readouterr().err.count("not started: [Errno 28]") == 2


def scalars(run: Run) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(run.dir / "log" / "tensorboard" / "pretrain"))
    found.Reload()
    return {tag: [(point.step, point.value) for point in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


@pytest.mark.slow
def test_tensorboard_gets_the_figures_and_drops_what_a_resume_superseded(run: Run) -> None:
    pytest.importorskip("tensorboard")
    stage = Stage(run)
    stage.say(ev.Resumed(step=0))
    stage.steps(1, 4, 10.0)
    stage.say(ev.Eval(name="val", step=4, values={"bpb": 1.5}))
    process = follow(run, "tensorboard")
    until(lambda: (run.dir / "log" / "tensorboard.places.json").is_file(), NICE_S)
    stage.lock.release()
    assert ended(process)[0] == 0
    assert scalars(run)["loss"] == [(1, 9.0), (2, 8.0), (3, 7.0), (4, 6.0)]

    again = Stage(run, attempt=2)
    again.say(ev.Resumed(step=2))
    again.steps(3, 5, 20.0)
    again.end()
    assert ended(follow(run, "tensorboard"))[0] == 0
    assert scalars(run)["loss"] == [(1, 9.0), (2, 8.0), (3, 17.0), (4, 16.0), (5, 15.0)]
    assert scalars(run)["summary/tok_s"] == [(4, 9.5)] and scalars(run)["val/bpb"] == []
    assert list((run.dir / "log" / "tensorboard").glob("events*")), "the settings"
    assert warnings(run) == []


@pytest.mark.slow
def test_wandb_offline_needs_no_account_and_goes_on_under_the_same_id(run: Run) -> None:
    pytest.importorskip("wandb")
    Stage(run).end()
    first = follow(run, "wandb")
    code, said = ended(first)
    assert code == 0, said
    again = Stage(run, attempt=2)
    again.steps(1, 3, 10.0)
    again.end()
    assert ended(follow(run, "wandb"))[0] == 0
    made = list((run.dir / "log" / "wandb").glob("offline-run-*"))
    name = (run.dir / "log" / "wandb.id").read_text()
    assert len(made) == 2 and all(folder.name.endswith(f"-{name}") for folder in made)
    assert any(b"pretrain/loss" in file.read_bytes() for folder in made for file in folder.glob("*.wandb"))
    assert warnings(run) == []


def test_wandb_online_without_an_account_is_one_warning_and_no_prompt(run: Run) -> None:
    pytest.importorskip("wandb")
    run.set(["log.wandb=online"])
    stage = Stage(run)
    code, said = ended(follow(run, "wandb", WANDB_BASE_URL="http://127.0.0.1:9"))
    assert code == 1, said
    [text] = warnings(run)
    assert text.startswith("wandb: ") and "log.wandb = offline needs no account" in text
    ended(follow(run, "wandb", WANDB_BASE_URL="http://127.0.0.1:9"))
    assert len(warnings(run)) == 1
    stage.end()
    assert run.finished("pretrain") is not None


FAKE = """
import os, sys, time
class Settings:
    def __init__(self, **how): pass
class Run:
    class config:
        update = staticmethod(lambda *a, **k: None)
    def define_metric(self, *a, **k): pass
    def log(self, values): {log}
    def finish(self): pass
def init(**how):
    {init}
    return Run()
"""


def fake(folder: Path, init: str = "pass", log: str = "pass") -> Path:
    folder.mkdir()
    (folder / "wandb.py").write_text(FAKE.format(init=init, log=log))
    return folder


@pytest.mark.parametrize(
    ("broken", "said", "patience"),
    [
        (
            {"init": "raise RuntimeError('the moon is full\\nand more')"},
            "RuntimeError: the moon is full and more",
            NICE_S,
        ),
        ({"log": "raise OSError('disc gone')"}, "OSError: disc gone", NICE_S),
        ({"init": "time.sleep(3600)"}, "no answer for 2 s", 2),
        ({"log": "time.sleep(3600)"}, "no answer for 2 s", 2),
    ],
)
def test_a_sink_that_fails_or_hangs_is_one_warning(
    run: Run, tmp_path: Path, broken: dict[str, str], said: str, patience: int
) -> None:
    stage = Stage(run)
    stage.steps(1, 2, 10.0)
    assert ended(follow(run, "wandb", fake(tmp_path / "fake", **broken), patience))[0] == 1
    [text] = warnings(run)
    assert text.startswith("wandb: ") and said in text and "\n" not in text
    assert not lease.is_held(run.dir / "log" / "wandb.lock")
    stage.end()


def test_a_sink_that_hangs_is_given_up_on_a_full_disk_too(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left on device")

    given_up = threading.Event()
    monkeypatch.setattr(sinks, "warn", full)
    monkeypatch.setattr(os, "_exit", lambda code: given_up.set())
    with sinks.deadline(run, "wandb", 0.01)():
        assert given_up.wait(60)


def test_a_package_that_is_not_there_is_named_with_its_extra(run: Run, tmp_path: Path) -> None:
    stage = Stage(run)
    (tmp_path / "none").mkdir()
    for name in ("wandb", "tensorboard"):
        (tmp_path / "none" / f"{name}.py").write_text(f"raise ModuleNotFoundError('no', name={name!r})")
        assert ended(follow(run, name, tmp_path / "none"))[0] == 1
    assert [text.partition("[")[2][:11] for text in warnings(run)] == ["wandb]', or", "tensorboard"]
    stage.end()


def test_a_second_process_leaves_the_first_alone(run: Run, tmp_path: Path) -> None:
    stage, place = Stage(run), fake(tmp_path / "fake")
    first = follow(run, "wandb", place)
    until(lambda: lease.is_held(run.dir / "log" / "wandb.lock"), NICE_S)
    assert ended(follow(run, "wandb", place))[0] == 0 and first.poll() is None
    stage.end()
    assert ended(first)[0] == 0


@pytest.mark.slow
def test_the_launcher_starts_the_sinks_of_a_stage(run: Run, tmp_path: Path) -> None:
    """A real stage, doctor, with a sink that hangs: it ends as ever, and what it measured is in the files."""
    goes_on = tmp_path / "goes on"
    hangs = fake(tmp_path / "fake", init=f"while not os.path.exists({str(goes_on)!r}): time.sleep(0.05)")
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(hangs), str(ROOT)])}
    argv = [sys.executable, "-m", "picollm.run.launch", "--run", str(run.dir), "--stage", "doctor"]
    subprocess.run(argv, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=240)
    assert run.status("doctor").state in ("done", "failed"), "nobody waited for the sink"
    until(lambda: lease.is_held(run.dir / "log" / "wandb.lock"), NICE_S, what="the sink was started")
    goes_on.touch()
    until(lambda: not lease.is_held(run.dir / "log" / "wandb.lock"), NICE_S)
    until(lambda: not lease.is_held(run.dir / "log" / "tensorboard.lock"), NICE_S)
    assert (run.dir / "log" / "wandb.places.json").is_file()


def test_a_run_that_is_deleted_stays_deleted(run: Run, tmp_path: Path) -> None:
    stage = Stage(run)
    process = follow(run, "wandb", fake(tmp_path / "fake"))
    until(lambda: (run.dir / "log" / "wandb.places.json").is_file(), NICE_S)
    shutil.rmtree(run.dir)
    assert ended(process)[0] == 0 and not run.dir.exists()
    stage.lock.release()
