"""One process and two report the same figures."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def launch(world: int) -> dict:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.evals.ranks"],
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE if rank == 0 else subprocess.DEVNULL,
            env={
                **os.environ,
                "RANK": str(rank),
                "WORLD_SIZE": str(world),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
            },
        )
        for rank in range(world)
    ]
    try:
        out, _ = processes[0].communicate(timeout=120)
        assert all(process.wait(timeout=60) == 0 for process in processes)
    finally:
        for process in processes:
            process.kill()
    return json.loads(out)


@pytest.mark.slow
def test_two_ranks_agree_with_one():
    one, two = launch(1), launch(2)
    assert one.pop("nats") == pytest.approx(two.pop("nats"), rel=1e-6)
    assert one == two
    assert one["letters"]["n"] == one["schema"]["n"] == 11
    assert 0 < one["multiple_choice"]["correct"] < 11 and 0 < one["schema"]["correct"] < 11
