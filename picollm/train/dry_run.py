"""One training step and one evaluation on the real stack at the real shapes, before anything depends on them.

What runs out of memory here would have run out at step 0 or at the first reading; here it costs seconds, and fewer rows
at a time are tried.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import psutil
import torch

from picollm.model.gpt import GPT
from picollm.run import memory
from picollm.run.checks import memory_limit
from picollm.run.errors import UserError
from picollm.run.scaling import ModelShape
from picollm.train.batch import Batch
from picollm.train.device import Ranks, peak_memory, wait
from picollm.train.loss import token_nll
from picollm.train.optim import OptimizerSettings, build_optimizer
from picollm.train.sharded import AnyOptimizer, ShardedOptimizer
from picollm.train.step import Compute, ForwardBackward

MICRO_BATCHES = 2
"""Of a step's micro-batches so many are run: from the second on memory no longer grows, and the time is the same."""


@dataclass(frozen=True, slots=True)
class DryRun:
    """What worked: `rows` at a time, computed as `compute`.

    Attributes:
        step_s: seconds of a whole step of pretraining, the slowest rank's.
        tok_s: tokens per second of all ranks together, from it.
        exchange_s: of these seconds, those for summing gradients and updating weights.
        memory: most bytes that any rank held: of the device on a GPU, else resident.
    """

    rows: int
    compute: Compute
    step_s: float
    tok_s: float
    exchange_s: float
    memory: int


def dry_run(
    shape: ModelShape,
    compute: Compute,
    ranks: Ranks,
    *,
    step_rows: int,
    rows: int,
    seconds: float = 1.0,
    may_checkpoint: bool = True,
    warn: Callable[[str], None] = print,
) -> DryRun:
    """Run a step of `step_rows` rows over all ranks, `rows` at a time; every rank must call it alike.

    Out of memory on any rank, half the rows are tried, and at a single row activation checkpointing, if it may.

    Args:
        seconds: how long to time for, besides the first step.

    Raises:
        UserError: not even one row fits.
    """
    most = -(-step_rows // ranks.world)
    trial = min(rows, most)
    _free(ranks.device)  # what was tried before
    while True:
        reason, found = "", None
        try:
            found = _attempt(shape, compute, ranks, most, trial, seconds, warn)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else "out of memory"
        _free(ranks.device)
        # In `_attempt` nothing is exchanged before all ranks know that all of them came through forward and backward.
        if found is not None:
            step_s = max(ranks.gather(found.step_s))
            return replace(
                found,
                step_s=step_s,
                tok_s=step_rows * shape.seq_len / step_s,
                exchange_s=max(ranks.gather(found.exchange_s)),
                memory=max(ranks.gather(found.memory)),
            )
        if trial > 1:
            trial = memory.even(most, trial // 2)
            warn(f"out of memory: trying {trial} rows at a time ({reason})")
        elif may_checkpoint and not compute.checkpointing:
            compute, trial = replace(compute, checkpointing=True), min(rows, most)
            warn("out of memory with a single row: activations will be computed twice")
        else:
            raise UserError(
                f"not even one row of {shape.seq_len} tokens fits the memory at depth {shape.depth} ({reason}); "
                "lower model.depth, model.seq_len or tokenizer.vocab_size"
            )


def out_of_memory(error: BaseException) -> bool:
    """Whether this is how torch says so, on any kind of device."""
    text = str(error).lower()
    return (
        isinstance(error, torch.OutOfMemoryError | MemoryError)
        or "out of memory" in text
        or "can't allocate memory" in text
    )


class _OtherRank(MemoryError):
    """Another rank ran out of memory."""


def _attempt(
    shape: ModelShape,
    compute: Compute,
    ranks: Ranks,
    most: int,
    rows: int,
    seconds: float,
    warn: Callable[[str], None],
) -> DryRun:
    """One try at `rows` rows at a time; this rank's figures. Raises what torch raises when memory is not enough."""
    device, parts = ranks.device, -(-most // rows)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    mine: BaseException | None = None
    micro_s: list[float] = []
    try:
        model = GPT(shape).to(device).train()
        model.init_weights(0)
        optimizer = _optimizer(model, compute, ranks)
        run = ForwardBackward(model, compute, warn)
        ids = torch.randint(0, shape.vocab_size, (rows, shape.seq_len + 1), generator=torch.Generator().manual_seed(0))
        denom = float(most * ranks.world * shape.seq_len)
        batch = Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), None, denom).to(device)
        for _ in range(min(MICRO_BATCHES, parts)):
            run(batch)
        end = time.perf_counter() + seconds
        while not micro_s or time.perf_counter() < end:
            wait(device)
            begun = time.perf_counter()
            run(batch)
            wait(device)
            micro_s.append(time.perf_counter() - begun)
        _evaluate(model, batch)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        mine = error
    if ranks.any(mine is not None):
        raise mine or _OtherRank("another rank ran out of memory")
    try:
        exchange_s = _update(model, optimizer, run, batch)
    except (RuntimeError, MemoryError) as error:
        if ranks.world == 1 or not out_of_memory(error):
            raise
        # The others are waiting inside the exchange: they cannot be asked to try again.
        raise UserError(
            f"out of memory while summing gradients and updating weights, {rows} rows at a time "
            f"({str(error).splitlines()[0][:160]}); set machine.device_rows = {max(1, rows // 2)}"
        ) from None
    middle = sorted(micro_s)[len(micro_s) // 2]
    step_s = parts * middle + exchange_s
    return DryRun(rows, run.compute, step_s, 0.0, exchange_s, _held(device))


def _update(model: GPT, optimizer: AnyOptimizer, run: ForwardBackward, batch: Batch) -> float:
    """Sum the gradients over the ranks and update the weights, by nothing; seconds of that."""
    seconds = 0.0
    # The first update makes AdamW's moments; the second is like all that follow.
    for _ in range(2):
        run(batch)
        wait(batch.inputs.device)
        begun = time.perf_counter()
        optimizer.collect()
        optimizer.step(lr_mult=0.0)
        model.weights_changed()
        wait(batch.inputs.device)
        seconds = time.perf_counter() - begun
        optimizer.zero_grad()
    return seconds


def _optimizer(model: GPT, compute: Compute, ranks: Ranks) -> AnyOptimizer:
    settings = OptimizerSettings(muon_dtype=compute.dtype)
    compiled = compute.compile and ranks.device.type == "cuda"
    if ranks.world == 1:
        return build_optimizer(model, settings, compiled=compiled)
    return ShardedOptimizer(model.param_groups(), settings, ranks, compiled=compiled)


@torch.inference_mode()
def _evaluate(model: GPT, batch: Batch) -> None:
    """A validation reading of one batch, as `picollm.evals.bpb` makes it, without the sum over the ranks."""
    x = model.hidden(batch.inputs).flatten(0, 1)
    head = model.lm_head.weight[: model.shape.vocab_size]
    token_nll(x, head, batch.targets.flatten(), softcap=model.shape.softcap).sum().item()


def _held(device: torch.device) -> int:
    """Bytes in use at most so far; on a GPU those that the driver counts, with what is not torch's."""
    if device.type != "cuda":
        return peak_memory(device)
    free, total = torch.cuda.mem_get_info(device)
    return max(total - free, torch.cuda.max_memory_reserved(device))


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def free_memory(ranks: Ranks) -> int:
    """Bytes that each rank may fill: what is free on its device, the least of all ranks."""
    device = ranks.device
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    elif device.type == "mps":
        free = torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    else:
        here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        free = min(psutil.virtual_memory().available, memory_limit()) // here
    return int(min(ranks.gather(free)))
