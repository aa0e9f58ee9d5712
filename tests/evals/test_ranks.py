"""One process and two report the same figures."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def launch(world: int) -> dict:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"]
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "tests.evals.ranks"], cwd=ROOT, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.slow
def test_two_ranks_agree_with_one():
    one, two = launch(1), launch(2)
    assert one.pop("nats") == pytest.approx(two.pop("nats"), rel=1e-6)
    assert one == two
    assert one["letters"]["n"] == one["schema"]["n"] == 11
    assert 0 < one["multiple_choice"]["correct"] < 11 and 0 < one["schema"]["correct"] < 11
