"""Runs made of fake stages: real processes, locks, signals and event files, with nothing to compute.

A package called `stages` is written into a temporary folder and put first on the children's PYTHONPATH. What a stage
does is read from `<run>/fake.json`: {"pretrain": {"steps": 50, "sleep": 0.05}, "sft": {"error": "no luck"}}. One with
"ready": n can be used from step n on; one with "rest": stage waits for the rest of that stage's work; with
"hold": true it works until `release` lets it end, one with "deaf": true hears no stop before that, and the steps of
one with "cut": true end there.
"ranks": {"1": …} adds to what rank 1 does.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from picollm.run import config as settings
from picollm.run import event_file, lease, pipeline
from picollm.run import events as ev
from picollm.run.folder import Run, write_atomic

ROOT = Path(__file__).resolve().parents[2]

FAKE = """
import hashlib, json, os, signal, sys, time
from picollm.run.errors import StopRequested, UserError
from picollm.run.folder import write_atomic
from picollm.run.stage import Outcome, main

def work(ctx):
    file = ctx.run.dir / "fake.json"
    do = json.loads(file.read_text()).get(ctx.name, {}) if file.exists() else {}
    do |= do.get("ranks", {}).get(str(ctx.rank), {})
    if "first" in do:
        print(ctx.rank0_first(lambda: lead(ctx, do["first"])), flush=True)
    print("console line of", ctx.name, flush=True)
    if "error" in do:
        raise UserError(do["error"])
    if "bug" in do:
        raise RuntimeError(do["bug"])
    if "exit" in do:
        os._exit(do["exit"])
    saved = ctx.run.dir / f"{ctx.name}.saved"
    steps = do.get("steps", 1)
    first = int(saved.read_text()) if saved.exists() and not ctx.fresh else 0
    if first:
        ctx.resumed(first)
    ctx.phase("train")
    for step in range(first + 1, steps + 1):
        time.sleep(do.get("sleep", 0))
        ctx.progress(step, steps)
        ctx.metrics(step, {"loss": 5.0 / step, "tok_s": 1000.0})
        if step == do.get("ready"):
            paths, artifacts = make(ctx, do)
            ctx.ready(paths, artifacts)
        while do.get("deaf") and not (ctx.run.dir / f"{ctx.name}.released").exists():
            time.sleep(0.02)
        if ctx.stop_requested():
            saved.write_text(str(step))
            raise StopRequested(step)
        if do.get("cut") and (ctx.run.dir / f"{ctx.name}.released").exists():
            break
    while do.get("hold") and not (ctx.run.dir / f"{ctx.name}.released").exists():
        time.sleep(0.02)
        ctx.raise_if_stopped()
    saved.unlink(missing_ok=True)
    last = do.get("last", {})
    if "error" in last:
        raise UserError(last["error"])
    if "bug" in last:
        raise RuntimeError(last["bug"])
    if "kill" in last:
        os.kill(os.getpid(), last["kill"])
    if ctx.name == "preflight":
        write_atomic(ctx.run.dir / "plan.json", json.dumps(
            {"values": {"model.depth": 4, "pretrain.steps": 50}, "seconds": {"pretrain": 12.5},
             "choices": {"precision": "bf16"}, "figures": {"precision": {"fp32": 900.0, "bf16": 1400.0}}}))
    if ctx.name == "doctor":
        ctx.check("python", do.get("check", "ok"), "3.11")
    while "rest" in do and (rest := ctx.run.status(do["rest"])).state != "done":
        ctx.phase("wait")
        ctx.raise_if_stopped()
        if rest.state not in ("running", "stalled"):
            raise UserError(f"{do['rest']} ended without the rest: {rest.reason}")
        time.sleep(0.05)
    paths, artifacts = make(ctx, do)
    return Outcome(paths=paths, artifacts=artifacts, summary={"steps": steps})

def lead(ctx, seconds):
    found = ctx.run.dir / "first"
    if ctx.rank == 0:
        time.sleep(seconds)
        found.write_text("made by rank 0")
    return f"rank {ctx.rank} found: {found.read_text()}"

def make(ctx, do):
    made = ctx.run.dir / do.get("outside", "made") / ctx.name
    made.parent.mkdir(exist_ok=True)
    write_atomic(made, json.dumps(ctx.inputs, sort_keys=True) + do.get("salt", ""))
    return {"made": ctx.relative(made)}, {"made": hashlib.sha256(made.read_bytes()).hexdigest()}

def go(name):
    main(name, work)
"""


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty runs folder whose children find the fake stages; whatever was started there is killed at the end."""
    fakes = tmp_path / "fakes" / "stages"
    fakes.mkdir(parents=True)
    (fakes / "__init__.py").write_text("")
    (fakes / "fake.py").write_text(FAKE)
    shutil.copy(ROOT / "stages" / "conductor.py", fakes / "conductor.py")
    for name in pipeline.NAMES:
        text = f"from stages.fake import go\n\nif __name__ == '__main__':\n    go('{name}')\n"
        (fakes / f"{name}.py").write_text(text)
    folder = tmp_path / "runs"
    monkeypatch.setenv("PICOLLM_RUNS", str(folder))
    monkeypatch.setenv("PICOLLM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PYTHONPATH", f"{fakes.parent}{os.pathsep}{ROOT}")
    yield folder
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get("PICOLLM_RUNS") == str(folder):
                process.kill()
        except psutil.Error:
            continue


@pytest.fixture
def run(runs: Path) -> Run:
    return Run.create("r", settings.load(environ={}))


def script(run: Run, **stages: dict[str, Any]) -> None:
    """What the fake stages of `run` do."""
    write_atomic(run.dir / "fake.json", json.dumps(stages))


def release(run: Run, name: str) -> None:
    """Let a stage that holds end."""
    (run.dir / f"{name}.released").touch()


def until(condition: Callable[[], Any], seconds: float = 60.0, what: str = "") -> Any:
    """Wait for a condition; fails the test with `what` when it does not come true."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > end:
            raise AssertionError(f"waited {seconds:.0f} s in vain: {what or condition}")
        time.sleep(0.02)
    return value


def state(run: Run, name: str) -> str:
    return run.status(name).state


def lines(*events: ev.Event, start: float = 1_000_000.0, every: float = 1.0) -> bytes:
    """Events as a file holds them, `every` seconds apart."""
    out = b""
    for number, event in enumerate(events):
        event.v, event.seq, event.time = event_file.VERSION, number + 1, start + number * every
        out += msgspec.json.encode(event) + b"\n"
    return out


def started(run: Run, name: str, attempt: int = 1, **changes: Any) -> ev.Started:
    """The first event of an attempt, with the inputs that the stage has now and this process as its author."""
    fields: dict[str, Any] = dict(stage=name, attempt=attempt, **lease.identify()._asdict())
    fields["inputs"] = msgspec.to_builtins(run.inputs(name))
    return ev.Started(**(fields | changes))


def write_attempt(run: Run, name: str, content: bytes, attempt: int = 1) -> Path:
    file = run.events_file(name, attempt)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return file


def make_done(run: Run, *names: str) -> None:
    """Forge stages that are done, each with an artifact."""
    for name in names:
        artifact = run.dir / "made" / name
        artifact.parent.mkdir(exist_ok=True)
        artifact.write_text(name)
        finished = ev.Finished(seconds=3.0, paths={"made": f"made/{name}"}, artifacts={"made": f"hash of {name}"})
        write_attempt(run, name, lines(started(run, name), finished))
