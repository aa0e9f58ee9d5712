from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from picollm.run import neighbours
from picollm.run.neighbours import Neighbours

BUSY = "import time\nend = time.time() + 600\nwhile time.time() < end: pass"


def spend(process: subprocess.Popen[bytes], seconds: float) -> None:
    """Wait until it has used this much CPU."""
    import psutil

    end = time.monotonic() + 60
    while psutil.Process(process.pid).cpu_times().user < seconds:
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_busy_stranger_is_named_and_our_own_child_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = {os.getpid(), os.getppid()}
    monkeypatch.setattr(neighbours, "_own_pids", lambda: ours)
    found = Neighbours()
    stranger, child = (subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(2))
    try:
        ours.add(child.pid)
        spend(stranger, 0.3)
        spend(child, 0.3)
        monkeypatch.setattr(neighbours, "MOST", 1000)
        monkeypatch.setattr(neighbours, "BUSY_SHARE", 1e-6)  # on a machine where everybody is busy, too
        text = found.busiest()
        assert f"(pid {stranger.pid}, " in text and "% of a core" in text
        assert f"(pid {child.pid}, " not in text
    finally:
        for process in (stranger, child):
            process.kill()
            process.wait()


def test_own_processes_are_the_ancestors_and_what_the_launcher_started() -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        found = neighbours._own_pids()
        assert {os.getpid(), os.getppid(), child.pid} <= found
    finally:
        child.kill()
        child.wait()


def test_gpu_processes_of_others_are_named_only_where_we_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fake:
        def processes(self) -> list[list[int]]:
            return [[os.getpid(), os.getppid()]]

    monkeypatch.setattr(neighbours, "Gpus", Fake)
    [(gpu, pid, name)] = neighbours._on_gpus({os.getpid()})
    assert (gpu, pid) == (0, os.getppid()) and name
    assert neighbours._on_gpus({1 << 30}) == []
