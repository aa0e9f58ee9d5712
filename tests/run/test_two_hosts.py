"""Two machines, as two network namespaces joined by a cable: training through the real launcher, and the cable pulled.

Needs the right to make network namespaces (root), else it is skipped.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from picollm.run import conductor, event_file, pipeline
from picollm.run import config as settings
from picollm.run import events as ev
from picollm.run.folder import Run
from tests.run.conftest import until
from tests.stages.conftest import EVERY_STEP_SAVED, ROOT, step_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ADDRESSES = ("10.213.77.1", "10.213.77.2")


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=20)


class Hosts:
    """Two namespaces; `start(0, …)` runs a command on the first."""

    def __init__(self) -> None:
        self.names = [f"picollm{os.getpid()}{letter}" for letter in "ab"]
        self.links = [f"pl{os.getpid() % 10**8}{letter}" for letter in "ab"]

    def make(self) -> None:
        for name in self.names:
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("link", "add", self.links[0], "type", "veth", "peer", "name", self.links[1])
        for name, link, address in zip(self.names, self.links, ADDRESSES, strict=True):
            ip("link", "set", link, "netns", name)
            ip("-n", name, "address", "add", f"{address}/24", "dev", link)
            ip("-n", name, "link", "set", link, "up")

    def cable(self, state: str) -> None:
        """ "down" or "up", at the second host's end: the first only sees that nothing comes any more."""
        ip("-n", self.names[1], "link", "set", self.links[1], state)

    def start(self, host: int, *argv: str) -> subprocess.Popen[str]:
        command = ["ip", "netns", "exec", self.names[host], *argv]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def remove(self) -> None:
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, timeout=20)


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    if not shutil.which("ip"):
        pytest.skip("no ip command")
    made = Hosts()
    try:
        made.make()
    except subprocess.CalledProcessError as error:
        made.remove()
        pytest.skip(f"network namespaces are not permitted: {error.stderr.decode().strip()}")
    yield made
    made.remove()


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A smoke run whose text and tokenizer are made, with the base model to be trained on two nodes."""
    pytest.importorskip("torch")
    monkeypatch.setenv("PICOLLM_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("PICOLLM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    sets = [*EVERY_STEP_SAVED[1::2], "pretrain.steps=200", "machine.compile=off"]
    run = Run.create("two", settings.load("smoke", sets=sets, environ={}))
    first = pipeline.NAMES[: pipeline.NAMES.index("pretrain")]
    conductor.ask(run, conductor.plan_request(run, list(first)))
    until(lambda: run.status(first[-1]).state in ("done", "failed"), seconds=300, what="the stages before training")
    until(lambda: not any(status.state == "running" for status in run.statuses()), seconds=60)
    run.set(["launch.nnodes=2", "launch.nproc=1", f"launch.rendezvous={ADDRESSES[0]}:29500", "launch.timeout=0.5"])
    return run


def test_the_cable_is_pulled_and_put_back(hosts: Hosts, prepared: Run) -> None:
    run = prepared
    picollm = [sys.executable, "-m", "picollm.cli"]
    train = [*picollm, "run", "--run", run.name, "--only", "pretrain"]
    join = [*picollm, "launch", "--join", "--run", run.name, "--node-rank", "1"]

    first, second = hosts.start(0, *train), hosts.start(1, *join)
    until(lambda: step_of(run, "pretrain") >= 5, seconds=240, what="five steps on two hosts")
    hosts.cable("down")
    said, joined = first.communicate(timeout=200)[0], second.communicate(timeout=200)[0]
    assert first.returncode == 1 and second.returncode == 1, said + joined
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "Traceback" not in said + joined
    assert "pretrain failed: rank 0 of 2 on " in errors[0]
    assert "had no answer from the others for 30 s (launch.timeout)" in errors[0] and "resume" in errors[0]
    reached = step_of(run, "pretrain")

    hosts.cable("up")
    first, second = hosts.start(0, *train), hosts.start(1, *join)
    said, joined = first.communicate(timeout=300)[0], second.communicate(timeout=120)[0]
    assert first.returncode == 0 and second.returncode == 0, said + joined
    resumed = [
        event for event in event_file.read_events(run.events_file("pretrain", 2)) if isinstance(event, ev.Resumed)
    ]
    assert 0 < resumed[0].step <= reached and run.status("pretrain").state == "done"
    worlds = [
        e.world
        for n in (1, 2)
        for e in event_file.head_events(run.events_file("pretrain", n))
        if isinstance(e, ev.Started)
    ]
    assert worlds == [2, 2]
