"""The machine as training sees it: device, threads, ranks, repeatability, peak arithmetic, the compiler's cache."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from picollm.run.errors import UserError
from picollm.run.folder import picollm_home

# Dense peak of bf16 matrix products in FLOP/s, from the vendors' data sheets; first match wins.
KNOWN_PEAKS = {
    "B200": 2.25e15,
    "GH200": 989e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "RTX 5090": 209e12,
    "RTX 4090": 165e12,
}


@dataclass(frozen=True)
class Ranks:
    """This process among the processes of its stage."""

    device: torch.device
    rank: int = 0
    world: int = 1
    local_rank: int = 0

    def sum(self, t: Tensor) -> Tensor:
        """Add up `t` over the ranks, in place."""
        if self.world > 1:
            dist.all_reduce(t)
        return t

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank."""
        return bool(self.sum(torch.tensor(float(flag), device=self.device)).item())

    def share(self, value: Any) -> Any:
        """Rank 0's value (anything picklable, between our own processes) on every rank."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value (anything picklable), by rank, on every rank."""
        if self.world == 1:
            return [value]
        found = [None] * self.world
        dist.all_gather_object(found, value)
        return found

    def close(self) -> None:
        if self.world > 1 and dist.is_initialized():
            dist.destroy_process_group()


def pick_device(name: str = "auto", local_rank: int = 0) -> torch.device:
    """cuda, else mps, else cpu; or the one named. Raises UserError when that one is not there."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, found in there.items() if found)
    if not there.get(name, False):
        choices = ", ".join(kind for kind, found in there.items() if found)
        raise UserError(f'device "{name}" is not available here: use one of {choices}')
    if name != "cuda":
        return torch.device(name)
    if local_rank >= torch.cuda.device_count():
        raise UserError(f"rank {local_rank} has no GPU: {torch.cuda.device_count()} visible; set launch.nproc to that")
    return torch.device("cuda", local_rank)


def usable_cpus() -> int:
    """Cores this process may use: its affinity, and the quota of its control group."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = Path("/sys/fs/cgroup/cpu.max")
    if quota.is_file():
        limit, period = quota.read_text().split()[:2]
        if limit != "max":
            count = min(count, max(1, int(limit) // int(period)))
    return count


def start(device: str = "auto", *, threads: int = 0, deterministic: str = "auto", timeout: float = 30.0) -> Ranks:
    """Set the process up for training; call once, before any tensor is made.

    Reads RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE as torchrun sets them, joins the other ranks (nccl on CUDA,
    else gloo), divides the CPU's cores between the ranks of this node (torchrun would leave each with one), turns on
    deterministic algorithms ("auto": on CPU) and points the compiler's caches into PICOLLM_HOME. `timeout`: minutes
    after which a rank that does not answer is given up, when joining and in every exchange.
    """
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    local_rank, local_world = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    chosen = pick_device(device, local_rank)
    torch.set_num_threads(max(1, (threads or usable_cpus()) // local_world))
    set_deterministic(chosen.type == "cpu" if deterministic == "auto" else deterministic == "on")
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
        torch.set_float32_matmul_precision("high")
    compile_cache()
    if world > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", timeout=timedelta(minutes=timeout))
    return Ranks(chosen, rank, world, local_rank)


def set_deterministic(on: bool) -> None:
    """The same numbers on every run with the same threads, ranks and torch; compiled code included."""
    if on:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(on)
    # Filling every new tensor guards against reading uninitialised memory, which nothing here does, and costs time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def compile_cache() -> Path:
    """Point torch's compiler at a cache that outlives the process; needed before the first compiled call.

    A second process then starts in the time of tracing alone. Threads are part of the path because generated CPU code
    has their number built in, and the version because caches of different versions are of no use to each other.
    """
    name = f"torch-{torch.__version__}-threads{torch.get_num_threads()}".replace("+", "-")
    cache = Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR") or picollm_home() / "compile" / name)
    cache.mkdir(parents=True, exist_ok=True)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache)
    os.environ.setdefault("TRITON_CACHE_DIR", str(cache / "triton"))
    os.environ["TORCHINDUCTOR_FX_GRAPH_CACHE"] = "1"
    os.environ["TORCHINDUCTOR_AUTOGRAD_CACHE"] = "1"
    return cache


def dtype_of(precision: str) -> torch.dtype:
    """ "fp32" or "bf16" as a dtype. Raises UserError for another name."""
    try:
        return {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    except KeyError:
        raise UserError(f'machine.precision is "{precision}": use "fp32" or "bf16"') from None


def gemm_peak(dtype: torch.dtype, device: torch.device, seconds: float = 0.3, size: int = 0) -> float:
    """FLOP/s of a large square matrix product here: the best of as many as fit in `seconds`."""
    size = size or (1024 if device.type == "cpu" else 8192)
    a = torch.randn(size, size, device=device).to(dtype)
    b = torch.randn(size, size, device=device).to(dtype)
    repeat = 1 if device.type == "cpu" else 10
    (a @ b).sum().item()
    best, end = float("inf"), time.perf_counter() + seconds
    while best == float("inf") or time.perf_counter() < end:
        wait(device)
        t = time.perf_counter()
        for _ in range(repeat):
            a @ b
        wait(device)
        best = min(best, (time.perf_counter() - t) / repeat)
    return 2 * size**3 / best


def peak_flops(dtype: torch.dtype, device: torch.device) -> float:
    """What MFU is measured against: the data sheet for a known GPU in bf16, a measurement for anything else."""
    if device.type == "cuda" and dtype == torch.bfloat16:
        name = torch.cuda.get_device_name(device)
        for key, value in KNOWN_PEAKS.items():
            if key in name:
                return value
    return gemm_peak(dtype, device)


def wait(device: torch.device) -> None:
    """Block until the device has done everything asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def peak_memory(device: torch.device) -> int:
    """Most bytes this process has held: of GPU memory on a GPU, else resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource
    import sys

    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return usage if sys.platform == "darwin" else usage * 1024
