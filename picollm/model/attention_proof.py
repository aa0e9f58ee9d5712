"""Which attention backends work here, at the shapes of this run, and how fast: each is executed, forward and backward,
and compared with the plain formula in fp32 before anything is trained with it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from picollm.model.attention import BACKENDS, attention
from picollm.model.attention_kernels import KERNELS, attend, block_mask, unavailable
from picollm.run.scaling import ModelShape

# ‖ours − reference‖ / ‖reference‖ that counts as the same function: the rounding of the inputs' dtype, not more.
# fp32 allows for the 10-bit products ("tf32") that GPUs may use for it.
TOLERANCE = {torch.float32: 2e-3, torch.float16: 5e-3, torch.bfloat16: 2e-2}
REPEATS = 5
EXPLICIT_MAX_LENGTH = 1024  # longer rows are not even tried with all their scores in memory


@dataclass(frozen=True, slots=True)
class Proof:
    """What running one backend showed.

    `error` is the largest relative error of output and gradients; `ms` the milliseconds of forward and backward of all
    layers of the model for the rows given, 0 when it failed; `reason` why it must not be used, "" when it may.
    """

    backend: str
    ok: bool
    reason: str = ""
    error: float = 0.0
    ms: float = 0.0

    def __str__(self) -> str:
        return (
            f"{self.backend}: {self.ms:.2f} ms, error {self.error:.1e}" if self.ok else f"{self.backend}: {self.reason}"
        )


def backends_for(device: torch.device, length: int) -> tuple[str, ...]:
    """The names worth trying on this kind of device with rows of this length."""
    if device.type == "cuda":
        return (*KERNELS, "sdpa")
    return ("explicit", "sdpa") if length <= EXPLICIT_MAX_LENGTH else ("sdpa",)


def prove(backend: str, shape: ModelShape, rows: int, device: torch.device, dtype: torch.dtype) -> Proof:
    """Run a backend at the run's shapes: `rows` rows of `shape.seq_len`, every window of the model.

    All rows are run, one is compared. Never raises for what the backend does: a failure becomes the proof's reason.
    """
    if backend not in BACKENDS or backend == "auto":
        raise ValueError(f"unknown attention backend {backend!r}; one of {', '.join(BACKENDS[1:])}")
    if backend in KERNELS and (reason := unavailable(backend, device, dtype)):
        return Proof(backend, False, reason)
    windows = [w if w < shape.seq_len else None for w in shape.windows()]
    worst, total = 0.0, 0.0
    try:
        for window in dict.fromkeys(windows):
            error, ms = _run(backend, shape, rows, window, device, dtype)
            if not error <= TOLERANCE[dtype]:  # a nan is not below anything
                seen = "all positions" if window is None else f"a window of {window}"
                return Proof(backend, False, f"wrong by {error:.1e} with {seen}", error)
            worst, total = max(worst, error), total + ms * windows.count(window)
    except Exception as error:  # kernels fail in as many ways as there are kernels
        return Proof(backend, False, (str(error).strip().splitlines() or [type(error).__name__])[0][:160])
    return Proof(backend, True, "", worst, total)


def prove_all(
    shape: ModelShape, rows: int, device: torch.device, dtype: torch.dtype, backends: Sequence[str] = ()
) -> list[Proof]:
    """A proof of each backend, the working ones first and fastest first."""
    proofs = [prove(backend, shape, rows, device, dtype) for backend in backends or backends_for(device, shape.seq_len)]
    return sorted(proofs, key=lambda proof: (not proof.ok, proof.ms))


def _run(
    backend: str, shape: ModelShape, rows: int, window: int | None, device: torch.device, dtype: torch.dtype
) -> tuple[float, float]:
    """Relative error against fp32, and milliseconds, of one layer's forward and backward."""
    g = torch.Generator(device).manual_seed(0)
    T, D, heads = shape.seq_len, shape.head_dim, (shape.heads, shape.kv_heads, shape.kv_heads)
    q, k, v = (torch.randn(rows, n, T, D, generator=g, device=device).to(dtype).requires_grad_() for n in heads)
    pull = torch.randn(rows, shape.heads, T, D, generator=g, device=device).to(dtype)
    blocks = block_mask(T, window, device) if backend == "flex" else None

    def once() -> tuple[Tensor, ...]:
        if backend in KERNELS:  # never quietly by another backend
            out = attend(backend, q, k, v, window, blocks)
        else:
            out = attention(q, k, v, window=window, backend=backend)
        return (out, *torch.autograd.grad(out, (q, k, v), pull))

    ours = once()
    exact = [x[:1].detach().float().requires_grad_() for x in (q, k, v)]
    out = attention(*exact, window=window, backend="explicit")
    theirs = (out, *torch.autograd.grad(out, exact, pull[:1].float()))
    pairs = [(a[:1].detach().float(), b.detach()) for a, b in zip(ours, theirs, strict=True)]
    error = max(float((a - b).norm() / b.norm()) for a, b in pairs)
    times = []
    for _ in range(REPEATS):
        _wait(device)
        begun = time.perf_counter()
        once()
        _wait(device)
        times.append(time.perf_counter() - begun)
    return error, 1000 * sorted(times)[REPEATS // 2]


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
