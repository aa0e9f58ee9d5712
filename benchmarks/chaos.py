"""Kill -9 at random moments, inside saves too, resume, and compare with a run that nobody disturbed.

    python benchmarks/chaos.py [--kills 500 --ranks 1 --seed 0]

A small model is trained over and over, a checkpoint after every second step, each attempt killed after a random time.
Every training that comes to its end must have left the weights and the optimizer state of the undisturbed one, bit for
bit, and no attempt may find a checkpoint under its final name that is not whole. Ends with 1 when that fails.

Attempts are forked from this process, which has loaded torch and computed nothing, so that they begin at once.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import torch
import torch.distributed as dist

from picollm.model.gpt import GPT
from picollm.run.scaling import shape_for
from picollm.train import checkpoint, meter
from picollm.train.batch import Batch
from picollm.train.device import Ranks, set_deterministic
from picollm.train.schedule import Schedule
from picollm.train.step import Compute
from picollm.train.trainer import TrainSettings, train_stage

STEPS, ROWS, T, VOCAB = 60, 4, 32, 512
LONGEST = 0.7
"""Attempts live a random time up to this share of what the undisturbed one took: to resume and make some steps."""


class Context:
    """What training tells a stage; only warnings are of interest, and there should be none."""

    name = "pretrain"

    def __init__(self, warnings: Path) -> None:
        self.warnings = warnings

    def __getattr__(self, _: str) -> Callable[..., None]:
        return lambda *_: None

    def warning(self, text: str) -> None:
        with self.warnings.open("a") as file:
            file.write(text + "\n")

    def stop_requested(self) -> bool:
        return False

    def relative(self, path: Path) -> str:
        return path.name


def batches(step: int, ranks: Ranks) -> list[Batch]:
    ids = torch.randint(0, VOCAB, (ROWS, T + 1), generator=torch.Generator().manual_seed(step))
    mine = ids[ranks.rank * ROWS // ranks.world : (ranks.rank + 1) * ROWS // ranks.world]
    return [Batch(mine[:, :-1].contiguous(), mine[:, 1:].contiguous(), None, float(ROWS * T))]


def train(folder: Path, ranks: Ranks) -> None:
    """One attempt: resumes from what is in `folder`, or begins."""
    torch.set_num_threads(1)
    set_deterministic(True)
    meter.peak_flops = lambda *_: 1.0  # a third of a second for a figure nobody reads here
    model = GPT(shape_for(2, VOCAB, T, dim=64, head_dim=32))
    model.init_weights(1)
    context: Any = Context(folder.with_suffix(".warnings"))
    train_stage(
        context, model=model, batches=lambda step: batches(step, ranks), checkpoint_dir=folder,
        settings=TrainSettings(
            Schedule(STEPS, warmup=5), compute=Compute(attention="explicit"), save_every=0.0, save_steps=2, ahead=2
        ),
        meta={"fingerprint": "chaos", "tokenizer": "none"}, ranks=ranks,
    )  # fmt: skip


def attempt(folder: Path, world: int) -> list[int]:
    """The processes of one attempt, under way."""
    store = folder.with_name(f"store-{os.urandom(4).hex()}")
    processes = []
    for rank in range(world):
        pid = os.fork()
        if pid:
            processes.append(pid)
            continue
        code = 1
        try:
            if world > 1:
                dist.init_process_group("gloo", store=dist.FileStore(str(store), world), rank=rank, world_size=world)
            train(folder, Ranks(torch.device("cpu"), rank, world, rank))
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return processes


def ended(pid: int, seconds: float) -> int | None:
    """The exit status of a process (negative: the signal) within a time, else None."""
    end = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= end:
            return None
        time.sleep(0.001)


def kill(processes: list[int], after: float, dice: random.Random) -> bool:
    """Kill all of them after a time, in any order; False if they had come to their end. Raises if one failed."""
    first = ended(processes[0], after)
    if first is None:
        for pid in dice.sample(processes, len(processes)):
            os.kill(pid, signal.SIGKILL)
        for pid in processes:
            os.waitpid(pid, 0)
        return True
    codes = [first, *(ended(pid, 60) for pid in processes[1:])]
    if any(codes):
        raise SystemExit(f"an attempt that nobody killed ended with {codes}")
    return False


def made(folder: Path) -> tuple[dict[str, str], str]:
    """The hashes of the tensors in the last checkpoint, and what is wrong with it."""
    last = checkpoint.path_of(folder, STEPS)
    files = msgspec.json.decode((last / "manifest.json").read_bytes(), type=checkpoint.Manifest).files
    return {name: files[name].sha256 for name in files if name != "meta.json"}, checkpoint.problem(last) or ""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0, help="of the moments; which instruction they meet is chance")
    options = parser.parse_args()
    dice, count = random.Random(options.seed), Counter[str]()
    with tempfile.TemporaryDirectory() as place:
        took = []
        for name in ("undisturbed", "again"):  # twice: if the machine stood still, the other one says how long it takes
            twin, begun = Path(place) / name, time.monotonic()
            if kill(attempt(twin, options.ranks), 600, dice):
                raise SystemExit("the undisturbed training does not come to an end")
            took.append(time.monotonic() - begun)
        expected, longest = made(twin), LONGEST * min(took)
        while count["kills"] < options.kills:
            folder = Path(place) / f"run-{count['trainings']}"
            while kill(
                attempt(folder, options.ranks),
                dice.uniform(0, longest) if count["kills"] < options.kills else 600,
                dice,
            ):
                count["kills"] += 1
                names = [path.name for path in folder.iterdir()] if folder.exists() else []
                count["inside a save"] += any(name.startswith(".saving") for name in names)
                count["before the first checkpoint"] += not checkpoint.finished(folder)
            count["trainings"] += 1
            if made(folder) != expected:
                raise SystemExit(f"{folder.name} differs from the undisturbed training: {made(folder)}, {expected}")
            warnings = folder.with_suffix(".warnings")
            if warnings.exists():
                raise SystemExit(f"{folder.name}: {warnings.read_text()}")
            told = f"{count['kills']} of {options.kills} kills, {count['trainings']} trainings as if undisturbed"
            print(told, file=sys.stderr, flush=True)
    print(", ".join(f"{what} {number}" for what, number in count.items()) + ": every one as if undisturbed")


if __name__ == "__main__":
    sys.exit(main())
