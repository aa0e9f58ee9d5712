"""Which precision, which attention, compiled or not, 8 bits or not: run each for a moment here and take the fastest."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch

from picollm.model.attention import EXPLICIT_MAX_LENGTH
from picollm.model.attention_proof import Proof, prove_all
from picollm.model.fp8 import pays
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
# Of the attention backends proven on a GPU so many are timed over whole steps.
FINALISTS = 2


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
        how = self.compute
        words = [how.precision, how.attention, "compiled" if how.compile else "eager"]
        return " ".join(words + ["fp8"] * how.fp8 + ["checkpointing"] * how.checkpointing)


@dataclass(frozen=True, slots=True)
class Probe:
    """`best` is the fastest; `peaks` are FLOP/s by precision; `proofs` say which attention works, in its precision."""

    best: Figure
    figures: list[Figure] = field(default_factory=list)
    peaks: dict[str, float] = field(default_factory=dict)
    flops_per_token: float = 0.0
    proofs: list[Proof] = field(default_factory=list)

    @property
    def mfu(self) -> float:
        """FLOP/s of the best candidate as a share of the matrix-product peak in its precision."""
        return self.best.tok_s * self.flops_per_token / self.peaks[self.best.compute.precision]

    def table(self) -> dict[str, float]:
        """tok/s by candidate name (0 for one that failed), as an event wants it."""
        return {figure.name: round(figure.tok_s, 1) for figure in self.figures}

    def attention_ms(self) -> dict[str, float]:
        """Milliseconds of all layers' attention, forward and backward, by backend (0 for one that must not be used)."""
        return {proof.backend: round(proof.ms, 3) for proof in self.proofs}


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
        model.weights_changed()
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
        model.weights_changed()
        wait(device)
        times.append(time.perf_counter() - begun)
        updates.append(time.perf_counter() - between)
    optimizer.zero_grad()
    middle = sorted(times)[len(times) // 2]
    share = sorted(updates)[len(updates) // 2] / middle
    compile_s = max(0.0, run.compile_seconds - middle)
    return Figure(run.compute, batch.tokens / middle, batch.tokens / min(times), compile_s, share)


def probe(
    shape: ModelShape,
    rows: int,
    seconds: float = 2.0,
    *,
    device: torch.device | str = "cpu",
    planned_s: float = 0.0,
    precisions: Sequence[str] = (),
    attentions: Sequence[str] = (),
    compile: str = "auto",
    fp8: str = "off",
    warn: Callable[[str], None] = print,
    say: Callable[[str], None] = lambda _: None,
) -> Probe:
    """Measure precision x attention uncompiled for `seconds` each, then compile where it should pay, then 8 bits.

    Without `precisions` and `attentions` those are tried that may work on this device. An attention is timed over whole
    steps only once it is proven (`attention_proof`); on a GPU only the fastest few are.
    Compiling is tried ("auto"), in the better precision, only if the time it is expected to save over `planned_s`
    (seconds of training to come) exceeds what it is expected to cost; "on" and "off" force it. Its result stays in the
    compiler's cache, so the stage that follows starts warm. `fp8` "auto" tries 8 bits on top of compiled 16-bit code
    where the width may pay (`model.fp8.pays`); "on" takes them wherever they work. A candidate that fails is listed
    with its reason and never chosen. Raises RuntimeError if all fail.
    """
    device = torch.device(device)
    model = GPT(shape).to(device)
    model.init_weights(0)
    precisions = precisions or precisions_for(device)
    peaks = {p: gemm_peak(Compute(p).dtype, device, 0.2) for p in precisions}
    figures = []
    proofs: dict[str, list[Proof]] = {}
    for precision in precisions:
        proofs[precision] = prove_all(shape, rows, device, Compute(precision).dtype, attentions)
        for rank, proof in enumerate(proofs[precision]):
            say(f"attention {precision} {proof}")
            compute = Compute(precision, proof.backend)
            if not proof.ok:
                figures.append(Figure(compute, 0.0, failed=proof.reason))
            elif rank < FINALISTS or device.type != "cuda":
                figures.append(measure(model, compute, rows, seconds, warn))
                say(f"{figures[-1].name}: {figures[-1].tok_s:,.0f} tok/s {figures[-1].failed}".rstrip())
    working = [f for f in figures if not f.failed]
    if not working:
        raise RuntimeError(f"no candidate runs on {device}: {figures[0].failed}")
    best = max(working, key=lambda f: f.tok_s)

    saved = planned_s * (1 - 1 / EXPECTED_SPEEDUP)
    if compile == "on" or (compile == "auto" and saved > EXPECTED_COMPILE_S):
        # The compiler fuses the mask and the softmax of explicit attention, so the order may differ from eager's.
        explicit = any(f.compute.attention == "explicit" for f in working) and shape.seq_len <= EXPLICIT_MAX_LENGTH
        trial = "explicit" if explicit and device.type == "cpu" else best.compute.attention
        compute = Compute(best.compute.precision, trial, True)
        compiled = measure(model, compute, rows, seconds, warn)
        say(f"{compiled.name}: {compiled.tok_s:,.0f} tok/s, {compiled.compile_s:.1f} s to compile")
        figures.append(compiled)
        if not compiled.failed and (compile == "on" or compiled.tok_s > best.tok_s):
            best = compiled
    if fp8 == "on" or (fp8 == "auto" and best.compute.compile and pays(shape.dim, device)):
        eight = measure(model, replace(best.compute, fp8=True), rows, seconds, warn)
        if eight.compute.fp8:  # else `warn` was told why not
            say(f"{eight.name}: {eight.tok_s:,.0f} tok/s {eight.failed}".rstrip())
            figures.append(eight)
            if not eight.failed and (fp8 == "on" or eight.tok_s > best.tok_s):
                best = eight
    return Probe(best, figures, peaks, flops_per_token(shape), proofs[best.compute.precision])


def precisions_for(device: torch.device) -> tuple[str, ...]:
    """The precisions worth timing: a GPU with bf16 units needs no proof that they are faster."""
    if device.type == "cuda":
        return ("bf16",) if torch.cuda.is_bf16_supported(including_emulation=False) else ("fp32",)
    return ("fp32", "bf16")
