"""Do the ranks add up, and how fast? Asked once by preflight, before hours depend on it."""

from __future__ import annotations

import statistics
import time

import torch
import torch.distributed as dist

from picollm.run.errors import UserError
from picollm.train.device import Ranks, wait

SMALL_BYTES = 8 * 2**10
LARGE_BYTES = {"cpu": 16 * 2**20, "cuda": 256 * 2**20}
REPEATS = 5


def exchange_check(ranks: Ranks) -> dict[str, float]:
    """All-reduce sums whose result is known, small and large, and time it. Every rank must call it.

    Returns, the same on every rank (empty with one rank):
        world: ranks.
        small_us: microseconds of an all-reduce of `SMALL_BYTES`, which is mostly latency.
        algorithm_gb_s: 10⁹ bytes per second of a large one, bytes / time ("algorithm bandwidth" of nccl-tests).
        bus_gb_s: the same times 2·(W−1)/W, what each link carries in a ring of W ranks ("bus bandwidth").

    Times are medians of a few repeats, each the time of the slowest rank. Raises UserError, on every rank, naming the
    first rank whose sum was wrong.
    """
    if ranks.world == 1:
        return {}
    small = _timed_sum(ranks, SMALL_BYTES)
    size = LARGE_BYTES[ranks.device.type]
    large = _timed_sum(ranks, size)
    algorithm = size / large / 1e9
    return {
        "world": float(ranks.world),
        "small_us": small * 1e6,
        "algorithm_gb_s": algorithm,
        "bus_gb_s": algorithm * 2 * (ranks.world - 1) / ranks.world,
    }


def _timed_sum(ranks: Ranks, size: int) -> float:
    """Median seconds of an all-reduce of `size` bytes, the sum checked."""
    pattern = torch.arange(size // 4, device=ranks.device).remainder_(251).float()
    expected = pattern * ranks.world + ranks.world * (ranks.world - 1) / 2  # small whole numbers: exact in fp32
    seconds = torch.zeros(REPEATS, device=ranks.device)
    wrong = 0
    for i in range(-1, REPEATS):  # once before: the first connects the ranks
        mine = pattern + ranks.rank
        ranks.sum(torch.zeros(1, device=ranks.device))  # begin together
        wait(ranks.device)
        begun = time.perf_counter()
        ranks.sum(mine)
        wait(ranks.device)
        if i >= 0:
            seconds[i] = time.perf_counter() - begun
        wrong += int((mine != expected).sum().item())
    # Told as objects, one by one: a sum is what cannot be trusted here.
    for rank, count in enumerate(ranks.gather(wrong)):
        if count:
            raise UserError(
                f"rank {rank} of {ranks.world} got {count:,} wrong numbers from an all-reduce of {size:,} bytes: "
                "the connection between the ranks cannot be trusted; on NVIDIA GPUs try NCCL_P2P_DISABLE=1"
            )
    dist.all_reduce(seconds, op=dist.ReduceOp.MAX)
    return statistics.median(seconds.tolist())
