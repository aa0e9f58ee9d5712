"""GPUs that a run can be priced for without having one.

Peaks are dense bf16 with fp32 accumulation and bandwidths are memory's, both from the vendors' data sheets; prices are
typical on-demand ones per GPU and hour, for an order of magnitude (`--price` overrides them). `mfu` is the share of the
peak that training reaches at width 768 (depth 12), with the place it comes from.
"""

from __future__ import annotations

import re

import msgspec

from picollm.run.errors import UserError
from picollm.run.memory import GIB

PUBLISHED = "published: depth 12 on one H100, 450-549k tok/s"
AS_H100 = "assumed as on an H100"
AS_4070 = "assumed, below the published RTX 4070 figure"


class Gpu(msgspec.Struct, frozen=True, kw_only=True):
    """`memory` in bytes, `flops` and `bandwidth` per second, `price` in dollars per hour, `fp8`: matrix units for it.

    `precision`: the faster one that training may use there.
    """

    memory: int
    flops: float
    bandwidth: float
    mfu: float = 0.41
    source: str = AS_H100
    price: float = 0.0
    fp8: bool = False
    device: str = "cuda"
    precision: str = "bf16"


GPUS: dict[str, Gpu] = {
    "b200": Gpu(memory=180 * GIB, flops=2.25e15, bandwidth=8.0e12, price=5.5, fp8=True, mfu=0.35),
    "h200": Gpu(memory=140 * GIB, flops=989e12, bandwidth=4.8e12, price=3.5, fp8=True),
    "h100": Gpu(memory=80 * GIB, flops=989e12, bandwidth=3.35e12, price=3.0, fp8=True, source=PUBLISHED),
    "a100-80": Gpu(memory=80 * GIB, flops=312e12, bandwidth=2.0e12, price=1.8, mfu=0.5),
    "a100-40": Gpu(memory=40 * GIB, flops=312e12, bandwidth=1.55e12, price=1.3, mfu=0.5),
    "l40s": Gpu(memory=48 * GIB, flops=362e12, bandwidth=0.86e12, price=0.9, fp8=True),
    "rtx4090": Gpu(memory=24 * GIB, flops=165e12, bandwidth=1.01e12, price=0.4, mfu=0.55, source=AS_4070),
    "rtx3090": Gpu(memory=24 * GIB, flops=71e12, bandwidth=0.94e12, price=0.25, mfu=0.55, source=AS_4070),
    "rtx4070": Gpu(
        memory=12 * GIB, flops=58e12, bandwidth=0.5e12, price=0.15, mfu=0.73, source="published: depth 12, 55.7k tok/s"
    ),
    "rtx3060": Gpu(memory=12 * GIB, flops=25e12, bandwidth=0.36e12, price=0.1, mfu=0.55, source=AS_4070),
    "t4": Gpu(memory=16 * GIB, flops=8.1e12, bandwidth=0.32e12, price=0.2, mfu=0.5, precision="fp32"),
    "mps": Gpu(memory=16 * GIB, flops=7e12, bandwidth=0.2e12, mfu=0.3, source="assumed", device="mps"),
    "cpu": Gpu(memory=16 * GIB, flops=0.6e12, bandwidth=0.04e12, mfu=0.4, source="two cores with AMX", device="cpu"),
}

MFU_WIDTH = 356
"""Width at which the share is half of what it tends to: puts 41 % at width 768 and 49 % at 1536, as published."""
HIGHEST_MFU = 0.8
FP8_SPEEDUP, FP8_WIDTH = 1.17, 1280
"""Published at depth 26; 8-bit products pay from this width on."""


def gpu(name: str) -> Gpu:
    """Raises `UserError` for one that is not in the table, listing those that are."""
    if name.lower() not in GPUS:
        raise UserError(f"unknown GPU '{name}': expected one of {', '.join(GPUS)}")
    return GPUS[name.lower()]


def named(name: str, memory: int) -> str | None:
    """The kind in the table of a GPU that calls itself `name` ("NVIDIA A100-SXM4-80GB") and has `memory` bytes; of
    several kinds of that name the one with the nearest memory. None for one that is not there."""
    words = re.split(r"[^a-z0-9]+", name.lower().replace("rtx ", "rtx"))
    found = [kind for kind, row in GPUS.items() if row.device == "cuda" and kind.partition("-")[0] in words]
    return min(found, key=lambda kind: abs(GPUS[kind].memory - memory), default=None)


def mfu(gpu: Gpu, dim: int) -> float:
    """The share of the peak reached at width `dim`: narrow products leave a GPU idle between them."""
    return min(HIGHEST_MFU, gpu.mfu * (1 + MFU_WIDTH / 768) / (1 + MFU_WIDTH / dim))


def pays_fp8(gpu: Gpu, dim: int, wished: str) -> bool:
    """Whether 8-bit products would be used: as wished, where there are units for them, and "auto" from a width on."""
    return gpu.fp8 and (wished == "on" or (wished == "auto" and dim >= FP8_WIDTH))
