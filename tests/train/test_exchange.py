from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from picollm.train.device import Ranks
from picollm.train.exchange import exchange_check

CHECK = """
import os, sys
from picollm.run.errors import UserError
from picollm.train import exchange
from picollm.train.device import Ranks, start
ranks = start("cpu", threads=1)
if sys.argv[1] == "broken":
    honest = Ranks.sum
    def sum_wrong(self, t):
        honest(self, t)
        if self.rank == 1 and t.numel() > 1:
            t[5] += 1
        return t
    Ranks.sum = sum_wrong
try:
    told = exchange.exchange_check(ranks)
    good = all(v > 0 for v in told.values()) and ranks.share(told) == told
    line = f"{ranks.rank} {sorted(told)} {good} {told['world']}"
except UserError as error:
    line = f"{ranks.rank} {error}"
os.write(1, f"{line}\\n".encode())  # one write: the ranks share the pipe
ranks.close()
"""


def check(tmp_path: Path, world: int, how: str) -> list[str]:
    script = tmp_path / "check.py"
    script.write_text(CHECK)
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}", script, how],
        cwd=root, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": root}, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return sorted(done.stdout.splitlines())


def test_one_rank_has_nobody_to_exchange_with():
    assert exchange_check(Ranks(torch.device("cpu"))) == {}


@pytest.mark.slow
def test_sums_are_checked_and_timed_alike_on_all_ranks(tmp_path):
    keys = "['algorithm_gb_s', 'bus_gb_s', 'small_us', 'world']"
    assert check(tmp_path, 3, "honest") == [*(f"{r} {keys} True 3.0" for r in range(3))]


@pytest.mark.slow
def test_a_wrong_sum_is_an_error_on_all_ranks_that_names_the_rank(tmp_path):
    lines = check(tmp_path, 2, "broken")
    assert len(lines) == 2 and all("rank 1 of 2 got 6 wrong numbers" in line for line in lines)
