"""What two processes compute together, for comparison with one; run by `test_ranks.py`."""

from __future__ import annotations

import json
import os
import sys

import numpy as np
import torch
import torch.distributed as dist

from picollm.evals import core
from picollm.evals.bpb import text_loss
from picollm.evals.chat import evaluate
from picollm.evals.core_bundle import CoreTask
from picollm.infer.engine import Engine
from picollm.train.device import Ranks
from tests.evals.fakes import Capitals, Letters
from tests.infer.fakes import ByteTokenizer, tiny_model


class Rows:
    """Two rows of random bytes a step, split between the ranks by row."""

    def __init__(self, rank: int, world: int) -> None:
        self.mine = slice(rank * 2 // world, (rank + 1) * 2 // world)

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        ids = np.random.default_rng(step).integers(0, 265, (2, 33))[self.mine]
        return ids[:, :-1], ids[:, 1:]


def core_tasks() -> dict[str, tuple[CoreTask, list[core.Row]]]:
    """A task of each kind and rows that a random model does not get all right or all wrong."""
    kinds = {
        "multiple_choice": [{"query": f"q{i}", "choices": [f"{i}", "no", "yes!"], "gold": i % 3} for i in range(15)],
        "schema": [{"context_options": [f"{i}", "so"], "continuation": "it is", "gold": i % 2} for i in range(15)],
        "language_modeling": [{"context": f"say {i}", "continuation": f"{i}"} for i in range(15)],
    }
    return {
        kind: (CoreTask(label=kind, kind=kind, file="", shots=2, delimiter=" ", baseline=0.0), rows)
        for kind, rows in kinds.items()
    }


def measured(rank: int, world: int) -> dict:
    torch.set_num_threads(1)
    tok, model = ByteTokenizer(), tiny_model()
    sizes = np.array([1] * 256 + [0] * 9)
    loss = text_loss(model, Rows(rank, world), sizes, steps=4)
    engine = Engine(model, tok)
    found = {"nats": loss.nats, "bytes": loss.bytes}
    for task in (Letters(), Capitals()):
        looks = []

        def look(done: int, items: int, looks: list[int] = looks) -> None:
            """Hangs unless all ranks look equally often; three blocks do not divide by two."""
            if world > 1:
                dist.all_reduce(torch.zeros(1))
            looks.append(done)

        result = evaluate(task, engine, tok, 11, block=4, max_new_tokens=6, on_progress=look).as_dict()
        assert len(looks) == -(-3 // world)
        found[task.name] = {key: value for key, value in result.items() if key != "seconds"}
    ranks = Ranks(torch.device("cpu"), rank, world)
    core.BLOCK = 2
    for label, (task, rows) in core_tasks().items():
        cell = core.evaluate_task(task, rows, engine, tok, ranks, items=11, tokens_at_once=300)
        found[label] = {key: value for key, value in cell.items() if key != "seconds"}
    return found


if __name__ == "__main__":
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if world > 1:
        dist.init_process_group("gloo")
    found = measured(rank, world)
    if rank == 0:
        json.dump(found, sys.stdout)
    if world > 1:
        dist.destroy_process_group()
