"""Softcap, log-sum-exp and the gradient of the logits in one GPU kernel, written over the logits it was given.

The same function as `loss.loss_and_gradient`. In bf16 each logit is read from memory once, read again from the cache,
and its gradient written in its place, so that no fp32 copy of the logits ever exists. Importing this module needs
Triton; `loss.fastest_terms` imports it, runs `why_not` and falls back.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 4096  # logits of one row held in registers at a time


@triton.jit
def _softcapped_nll(logits, targets, weights, losses, vocab, cap, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """One program per row: its loss to `losses`, its gradient over its logits. All arithmetic in fp32."""
    row = tl.program_id(0).to(tl.int64)  # row * vocab does not fit 32 bits
    logits += row * vocab
    target = tl.load(targets + row)
    weight = tl.load(weights + row)
    # Read before the sum below, for which all warps wait: afterwards another warp may have written over it.
    hit = tl.load(logits + target).to(tl.float32)
    # |z| <= cap, so the sum of exp(z) cannot overflow and no maximum is needed first.
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for first in range(0, vocab, BLOCK):
        at = first + tl.arange(0, BLOCK)
        x = tl.load(logits + at, mask=at < vocab, other=0.0).to(tl.float32)
        squashed = 1.0 - 2.0 / (tl.exp(x * (2.0 / cap)) + 1.0)  # tanh(x / cap)
        total += tl.where(at < vocab, tl.exp(squashed * cap), 0.0)
    z = tl.sum(total, axis=0)
    hit = cap * (1.0 - 2.0 / (tl.exp(hit * (2.0 / cap)) + 1.0))
    tl.store(losses + row, weight * (tl.log(z) - hit))
    for first in range(0, vocab, BLOCK):
        at = first + tl.arange(0, BLOCK)
        x = tl.load(logits + at, mask=at < vocab, other=0.0).to(tl.float32)
        squashed = 1.0 - 2.0 / (tl.exp(x * (2.0 / cap)) + 1.0)
        p = tl.exp(squashed * cap) / z
        gradient = weight * tl.where(at == target, p - 1.0, p) * (1.0 - squashed * squashed)
        tl.store(logits + at, gradient.to(logits.dtype.element_ty), mask=at < vocab)


def loss_and_gradient(logits_NV: Tensor, target_N1: Tensor, w_N1: Tensor, cap: float) -> tuple[Tensor, Tensor]:
    """Σ w·nll of these logits (before the softcap), and their gradient, which replaces them in memory."""
    N, V = logits_NV.shape
    assert logits_NV.is_contiguous() and target_N1.is_contiguous() and w_N1.is_contiguous()
    losses = torch.empty(N, dtype=torch.float32, device=logits_NV.device)
    block = min(BLOCK, triton.next_power_of_2(V))
    _softcapped_nll[(N,)](logits_NV, target_N1, w_N1, losses, V, cap, BLOCK=block, num_warps=8 if block >= 2048 else 4)
    return losses.sum(), logits_NV


def why_not(device: torch.device, dtype: torch.dtype, vocab: int, cap: float) -> str:
    """Run the kernel once and compare with the formula in fp64: "" when it may be used, else what is wrong."""
    rows, edges = 33, torch.tensor([0, vocab - 1])
    g = torch.Generator().manual_seed(0)
    logits = (torch.randn(rows, vocab, generator=g) * cap).to(dtype)
    targets = torch.randint(0, vocab, (rows, 1), generator=g)
    targets[:2, 0] = edges
    weights = torch.randn(rows, 1, generator=g)
    weights[2] = 0
    exact = logits.double().requires_grad_()
    capped = cap * torch.tanh(exact / cap)
    value = (weights * (torch.logsumexp(capped, -1, keepdim=True) - capped.gather(1, targets))).sum()
    (slope,) = torch.autograd.grad(value, exact)
    try:
        ours, gradient = loss_and_gradient(logits.to(device), targets.to(device), weights.to(device), cap)
        error = float((gradient.cpu().double() - slope).norm() / slope.norm())
        off = abs(float(ours) - float(value)) / (1 + abs(float(value)))
    except Exception as reason:  # a compiler, a driver and a launch stand behind it
        return (str(reason).strip().splitlines() or [type(reason).__name__])[0][:160]
    limit = 1e-2 if dtype in (torch.bfloat16, torch.float16) else 1e-4
    if error <= limit and off <= 1e-4:
        return ""
    return f"its value is off by {off:.1e} and its gradient by {error:.1e}"
