"""The dry run: what works is measured; what does not fit leads to fewer rows, then checkpointing, then a refusal."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from picollm.run import memory
from picollm.run.errors import UserError
from picollm.run.scaling import shape_for
from picollm.train import dry_run as module
from picollm.train.batch import Batch
from picollm.train.device import Ranks
from picollm.train.dry_run import dry_run, free_memory, out_of_memory
from picollm.train.step import Compute, ForwardBackward
from tests.train.ranked import on_ranks

SHAPE = shape_for(2, 300, 32, dim=64, head_dim=32)
HERE = Ranks(torch.device("cpu"))


def test_a_step_that_works_is_measured() -> None:
    done = dry_run(SHAPE, Compute("fp32", "explicit"), HERE, step_rows=8, rows=3, seconds=0.01)
    assert done.rows == 3 and done.compute == Compute("fp32", "explicit")
    assert done.step_s > done.exchange_s > 0 and done.memory > 10**7
    assert done.tok_s == pytest.approx(8 * 32 / done.step_s)


class Small(ForwardBackward):
    """Runs out of memory above so many rows; with checkpointing four times as many fit."""

    most = 3

    def __call__(self, batch: Batch) -> torch.Tensor:
        if len(batch.inputs) > self.most * (4 if self.compute.checkpointing else 1):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore lines.")
        return super().__call__(batch)


@pytest.mark.parametrize(
    ("most", "rows", "checkpointing"), [(8, 8, False), (7, 4, False), (1, 1, False), (0.5, 2, True)]
)
def test_out_of_memory_means_fewer_rows(
    monkeypatch: pytest.MonkeyPatch, most: float, rows: int, checkpointing: bool
) -> None:
    monkeypatch.setattr(Small, "most", most)
    monkeypatch.setattr(module, "ForwardBackward", Small)
    said: list[str] = []
    done = dry_run(SHAPE, Compute("fp32", "explicit"), HERE, step_rows=8, rows=8, seconds=0.01, warn=said.append)
    assert (done.rows, done.compute.checkpointing) == (rows, checkpointing)
    assert bool(said) == (rows < 8) and not any("\n" in line for line in said)


def _with_a_small_rank(ranks: Ranks) -> tuple[int, float, list[str]]:
    Small.most = 3 if ranks.rank == 1 else 100
    module.ForwardBackward = Small  # type: ignore[misc]  # in this forked process alone
    said: list[str] = []
    done = dry_run(SHAPE, Compute("fp32", "explicit"), ranks, step_rows=11, rows=6, seconds=0.01, warn=said.append)
    return done.rows, done.step_s, said


def test_ranks_agree_on_what_fits_the_smallest(tmp_path: Path) -> None:
    (rows, step_s, said), *others = on_ranks(2, _with_a_small_rank, tmp_path)
    assert rows == 3 and step_s > 0
    assert said == ["out of memory: trying 3 rows at a time (another rank ran out of memory)"]
    assert [(other[0], other[1]) for other in others] == [(rows, step_s)]


def test_a_row_that_does_not_fit_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Small, "most", 0)
    monkeypatch.setattr(module, "ForwardBackward", Small)
    with pytest.raises(UserError, match=r"not even one row of 32 tokens.*CUDA out of memory.*lower model\.depth") as e:
        dry_run(SHAPE, Compute("fp32", "explicit"), HERE, step_rows=8, rows=8, warn=lambda _: None)
    assert "\n" not in str(e.value)


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    with pytest.raises(ValueError, match="unknown attention backend"):
        dry_run(SHAPE, Compute("fp32", "psychic"), HERE, step_rows=2, rows=2)
    assert out_of_memory(RuntimeError("MPS backend out of memory"))
    assert out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"))
    assert not out_of_memory(RuntimeError("shape mismatch"))


def test_free_memory_is_what_the_machine_has() -> None:
    assert 2**28 < free_memory(HERE) < 2**50


MEASURE = """
import json, sys, psutil, torch
from picollm.run.scaling import shape_for
from picollm.train.device import Ranks, peak_memory
from picollm.train.dry_run import dry_run
from picollm.train.step import Compute
depth, dim, T, vocab, rows, precision, attention, twice = json.loads(sys.argv[1])
torch.set_num_threads(1)
compute, here = Compute(precision, attention, checkpointing=twice), Ranks(torch.device("cpu"))
dry_run(shape_for(2, 300, 32, dim=64, head_dim=32), compute, here, step_rows=2, rows=1, seconds=0.01)  # loads libraries
before = psutil.Process().memory_info().rss
shape = shape_for(depth, vocab, T, dim=dim, head_dim=64)
done = dry_run(shape, compute, here, step_rows=2 * rows, rows=rows, seconds=0.01)
print(done.memory - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        (4, 256, 256, 4096, 8, "fp32", "explicit", False),
        (4, 256, 256, 4096, 8, "bf16", "sdpa", False),
        (4, 256, 256, 4096, 8, "fp32", "sdpa", True),
    ],
)
def test_the_model_of_memory_is_near_what_a_step_takes(case: tuple[int, int, int, int, int, str, str, bool]) -> None:
    """Growth of a process's resident memory over a real step: between 35 % below and 20 % above the model's sum."""
    depth, dim, T, vocab, rows, precision, attention, twice = case
    done = subprocess.run([sys.executable, "-c", MEASURE, json.dumps(case)], capture_output=True, text=True, check=True)
    grown = int(done.stdout.split()[-1])
    how = memory.How(precision=precision, attention=attention, checkpointing=twice)
    parts = memory.step_bytes(shape_for(depth, vocab, T, dim=dim, head_dim=64), rows, how)
    expected = parts["total"] - parts["runtime"]
    assert 0.65 * expected < grown < 1.2 * expected, f"{grown / 2**20:.0f} MiB, expected {expected / 2**20:.0f}"
