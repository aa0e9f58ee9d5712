"""Several ranks within a test: forked, so that torch is loaded once, and joined by gloo."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from picollm.train.device import Ranks

PATIENCE_S = 250.0  # less than a test may take, so that the rank that hangs is named


def on_ranks(world: int, work: Callable[[Ranks], Any], folder: Path) -> list[Any]:
    """What `work(ranks)` returned on each rank. Fails with the traceback of a rank that failed."""
    context = multiprocessing.get_context("fork")
    folder.mkdir(parents=True, exist_ok=True)
    store = folder / f"store-{os.urandom(4).hex()}"
    processes = [context.Process(target=_rank, args=(rank, world, work, store), daemon=True) for rank in range(world)]
    for process in processes:
        process.start()
    end = time.monotonic() + PATIENCE_S
    for process in processes:
        process.join(timeout=max(0.0, end - time.monotonic()))
    for process in processes:
        if process.is_alive():
            process.kill()
    results = []
    for rank in range(world):
        file = _result(store, rank)
        assert file.exists(), f"rank {rank} of {world} ended without a result: {processes[rank].exitcode}"
        good, value = pickle.loads(file.read_bytes())
        assert good, f"rank {rank} of {world}:\n{value}"
        results.append(value)
    return results


def _result(store: Path, rank: int) -> Path:
    return store.with_name(f"{store.name}.{rank}")


def _rank(rank: int, world: int, work: Callable[[Ranks], Any], store: Path) -> None:
    torch.set_num_threads(1)
    try:
        if world > 1:
            dist.init_process_group("gloo", store=dist.FileStore(str(store), world), rank=rank, world_size=world)
        found = (True, work(Ranks(torch.device("cpu"), rank, world, rank)))
        if world > 1:
            dist.barrier()
    except BaseException:
        found = (False, traceback.format_exc())
    draft = store.with_name(f"{store.name}.{rank}.draft")
    draft.write_bytes(pickle.dumps(found))
    draft.rename(_result(store, rank))
    os._exit(0)  # without the cleaning up that belongs to the process it was forked from
