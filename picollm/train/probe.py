"""Which precision, which attention, compiled or not: run each for a moment on this machine and take the fastest."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from picollm.model.gpt import GPT
from picollm.run.scaling import ModelShape, flops_per_token
from picollm.train.batch import Batch
from picollm.train.device import gemm_peak, wait
from picollm.train.optim import OptimizerSettings, build_optimizer
from picollm.train.step import Compute, ForwardBackward

# How much faster compiled code has been on small models, used only to decide whether a trial is worth its cost.
EXPECTED_SPEEDUP = 1.3
# Seconds to compile the first time on two cores, at any depth.
EXPECTED_COMPILE_S = 25.0


@dataclass(frozen=True, slots=True)
class Figure:
    """One candidate as measured over whole steps (forward, backward, optimizer).

    `tok_s` is the median; `fastest` is the best step, which other work on the machine disturbs least.
    """

    compute: Compute
    tok_s: float
    fastest: float = 0.0
    compile_s: float = 0.0
    optimizer_share: float = 0.0
    failed: str = ""

    @property
    def name(self) -> str:
        return f"{self.compute.precision} {self.compute.attention} {'compiled' if self.compute.compile else 'eager'}"


@dataclass(frozen=True, slots=True)
class Probe:
    """`best` is the fastest; `peaks` are FLOP/s by precision."""

    best: Figure
    figures: list[Figure] = field(default_factory=list)
    peaks: dict[str, float] = field(default_factory=dict)
    flops_per_token: float = 0.0

    @property
    def mfu(self) -> float:
        """FLOP/s of the best candidate as a share of the matrix-product peak in its precision."""
        return self.best.tok_s * self.flops_per_token / self.peaks[self.best.compute.precision]

    def table(self) -> dict[str, float]:
        """tok/s by candidate name (0 for one that failed), as an event wants it."""
        return {figure.name: round(figure.tok_s, 1) for figure in self.figures}


def measure(
    model: GPT, compute: Compute, rows: int, seconds: float, warn: Callable[[str], None] = print, steps: int = 0
) -> Figure:
    """Time whole training steps of `rows` rows on random tokens for about `seconds` (at least 2 steps, or `steps`)."""
    device, shape = model.device, model.shape
    ids = torch.randint(0, shape.vocab_size, (rows, shape.seq_len + 1), generator=torch.Generator().manual_seed(0))
    batch = Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), None, float(rows * shape.seq_len)).to(device)
    optimizer = build_optimizer(model, OptimizerSettings(muon_dtype=compute.dtype))
    run = ForwardBackward(model, compute, warn)
    try:
        run(batch)
        optimizer.step(lr_mult=0.0)
    except (RuntimeError, NotImplementedError, AssertionError) as error:
        optimizer.zero_grad()
        return Figure(compute, 0.0, failed=(str(error).strip().splitlines() or [type(error).__name__])[0][:160])
    times: list[float] = []
    updates: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < max(2, steps) or time.perf_counter() < end:
        wait(device)
        begun = time.perf_counter()
        optimizer.zero_grad()
        run(batch)
        wait(device)
        between = time.perf_counter()
        optimizer.step(lr_mult=0.0)
        wait(device)
        times.append(time.perf_counter() - begun)
        updates.append(time.perf_counter() - between)
    optimizer.zero_grad()
    middle = sorted(times)[len(times) // 2]
    done = Compute(compute.precision, compute.attention, run.compiled)
    share = sorted(updates)[len(updates) // 2] / middle
    compile_s = max(0.0, run.compile_seconds - middle)
    return Figure(done, batch.tokens / middle, batch.tokens / min(times), compile_s, share)


def probe(
    shape: ModelShape,
    rows: int,
    seconds: float = 2.0,
    *,
    device: torch.device | str = "cpu",
    planned_s: float = 0.0,
    precisions: Sequence[str] = ("fp32", "bf16"),
    attentions: Sequence[str] = ("explicit", "sdpa"),
    compile: str = "auto",
    warn: Callable[[str], None] = print,
    say: Callable[[str], None] = lambda _: None,
) -> Probe:
    """Measure precision x attention uncompiled for `seconds` each, then compile where it should pay.

    Compiling is tried ("auto"), in the better precision, only if the time it is expected to save over `planned_s`
    (seconds of training to come) exceeds what it is expected to cost; "on" and "off" force it. Its result stays in the
    compiler's cache, so the stage that follows starts warm. A candidate that fails is listed with its reason and never
    chosen. Raises RuntimeError if all fail.
    """
    device = torch.device(device)
    model = GPT(shape).to(device)
    model.init_weights(0)
    peaks = {p: gemm_peak(Compute(p).dtype, device, 0.2) for p in precisions}
    figures = []
    for precision in precisions:
        for attention in attentions:
            figures.append(measure(model, Compute(precision, attention), rows, seconds, warn))
            say(f"{figures[-1].name}: {figures[-1].tok_s:,.0f} tok/s {figures[-1].failed}".rstrip())
    working = [f for f in figures if not f.failed]
    if not working:
        raise RuntimeError(f"no candidate runs on {device}: {figures[0].failed}")
    best = max(working, key=lambda f: f.tok_s)

    saved = planned_s * (1 - 1 / EXPECTED_SPEEDUP)
    if compile == "on" or (compile == "auto" and saved > EXPECTED_COMPILE_S):
        # The compiler fuses the mask and the softmax of explicit attention, so the order may differ from eager's.
        trial = "explicit" if "explicit" in attentions and shape.seq_len <= 512 and device.type == "cpu" else None
        compute = Compute(best.compute.precision, trial or best.compute.attention, True)
        torch.compiler.reset()
        compiled = measure(model, compute, rows, seconds, warn)
        say(f"{compiled.name}: {compiled.tok_s:,.0f} tok/s, {compiled.compile_s:.1f} s to compile")
        figures.append(compiled)
        if not compiled.failed and (compile == "on" or compiled.tok_s > best.tok_s):
            best = compiled
    return Probe(best, figures, peaks, flops_per_token(shape))
