"""Kill -9 at random moments: what comes out is what an undisturbed training makes, bit for bit."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "chaos.py"


@pytest.mark.slow
@pytest.mark.parametrize(("kills", "ranks"), [(50, 1), (10, 2)])
def test_killed_at_random_moments(kills, ranks):
    argv = [sys.executable, str(SCRIPT), f"--kills={kills}", f"--ranks={ranks}"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=850)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = {what: int(number) for what, number in re.findall(r"([a-z][a-z ]*) (\d+)", done.stdout)}
    assert figures["kills"] == kills and figures["trainings"] >= 1
    assert ranks > 1 or figures["inside a save"] > 0  # half of the time something is being written
