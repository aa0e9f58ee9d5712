"""The one loss: weighted next-token negative log-likelihood over softcapped logits, never holding them all.

N = B·T positions, D model width, V vocabulary. Logits in fp32 are by far the largest tensor of a small model (N·V), so
they are made for a chunk of positions at a time. As the loss is a weighted sum, the gradient of a chunk's logits is
known as soon as they are: the training path computes it on the spot (as fused linear cross-entropy kernels do, e.g.
Hsu et al. 2024, "Liger Kernel"), and no logits are kept or computed twice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from picollm.run.memory import LOGITS_AT_ONCE
from picollm.run.scaling import ModelShape
from picollm.train.batch import Batch
from picollm.train.spans import span

MAX_SOFTCAP = 70.0  # a million times exp(70) fits fp32

Terms = Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]


class LanguageModel(Protocol):
    """What the loss needs of a model."""

    shape: ModelShape
    lm_head: Any

    def hidden(self, ids_BT: Tensor) -> Tensor: ...


def chunk_rows_for(rows: int, vocab: int, device: torch.device) -> int:
    """Positions per chunk of logits (see `picollm.run.memory`, which counts on it)."""
    return min(rows, max(128, LOGITS_AT_ONCE[device.type] // vocab))


def loss_and_gradient(logits_NV: Tensor, target_N1: Tensor, w_N1: Tensor, cap: float) -> tuple[Tensor, Tensor]:
    """Σ w·nll of one chunk of logits (before the softcap), and its gradient with respect to them in their dtype."""
    # tanh by one exp: absolute error 1e-7, and half the time of a vectorised tanh. As |z| <= cap, exp(z) cannot
    # overflow and needs neither a maximum taken first nor a second exp for the probabilities.
    squashed = 1 - 2 / (torch.exp(logits_NV.float() * (2 / cap)) + 1)
    e = torch.exp(squashed * cap)
    z = e.sum(dim=-1, keepdim=True)
    loss = (w_N1 * (z.log() - cap * torch.tanh(logits_NV.gather(1, target_N1).float() / cap))).sum()
    hit = torch.arange(e.shape[1], device=e.device) == target_N1
    return loss, (w_N1 * (e * (1 / z) - hit.float()) * (1 - squashed * squashed)).to(logits_NV.dtype)


def fastest_terms(
    device: torch.device, dtype: torch.dtype, vocab: int, cap: float, warn: Callable[[str], None]
) -> Terms:
    """`loss_and_gradient` in one kernel on a CUDA GPU where that runs and is right, else as it stands here.

    `warn` gets one line when a GPU has to do without.
    """
    if device.type != "cuda":
        return loss_and_gradient
    try:
        from picollm.train import loss_triton
    except ImportError as error:
        reason = str(error)
    else:
        reason = loss_triton.why_not(device, dtype, vocab, cap)
        if not reason:
            return loss_triton.loss_and_gradient
    warn(f"the loss kernel is not used: {reason}; the loss is computed with plain operations")
    return loss_and_gradient


class _FusedNll(torch.autograd.Function):
    """Σ w·nll and, at once, its gradients with respect to the hidden states and the output matrix."""

    @staticmethod
    def forward(
        ctx: Any, x_ND: Tensor, head_VD: Tensor, targets_N: Tensor, w_N: Tensor, cap: float, chunk: int, terms: Terms
    ) -> Tensor:
        head = head_VD.to(x_ND.dtype)
        total = torch.zeros((), dtype=torch.float32, device=x_ND.device)
        grad_x, grad_head = [], torch.zeros(head_VD.shape, dtype=torch.float32, device=x_ND.device)
        for i in range(0, x_ND.shape[0], chunk):
            x, target, w = x_ND[i : i + chunk], targets_N[i : i + chunk, None], w_N[i : i + chunk, None]
            part, grad = terms(x @ head.t(), target, w, cap)
            total = total + part
            grad_x.append(grad @ head)
            grad_head = grad_head + (grad.t() @ x).float()
        ctx.save_for_backward(torch.cat(grad_x), grad_head.to(head_VD.dtype))
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor):  # type: ignore[override]
        grad_x, grad_head = ctx.saved_tensors
        return grad_x * grad.to(grad_x.dtype), grad_head * grad.to(grad_head.dtype), None, None, None, None, None


def nll_from_hidden(
    x_ND: Tensor,
    head_VD: Tensor,
    targets_N: Tensor,
    w_N: Tensor,
    *,
    softcap: float,
    chunk_rows: int | None = None,
    terms: Terms = loss_and_gradient,
) -> Tensor:
    """Σ w·nll (fp32 scalar) of positions with final hidden states `x_ND`; differentiable in x and head.

    `terms` computes `loss_and_gradient`, perhaps compiled.
    Raises ValueError for a softcap above `MAX_SOFTCAP`, beyond which Σ exp(logit) might not fit fp32.
    """
    if softcap > MAX_SOFTCAP:
        raise ValueError(f"softcap {softcap} is above {MAX_SOFTCAP}")
    chunk = chunk_rows or chunk_rows_for(x_ND.shape[0], head_VD.shape[0], x_ND.device)
    if torch.is_grad_enabled():
        return _FusedNll.apply(x_ND, head_VD, targets_N, w_N, softcap, chunk, terms)
    return (w_N * token_nll(x_ND, head_VD, targets_N, softcap=softcap, chunk_rows=chunk)).sum()


@torch.no_grad()
def token_nll(
    x_ND: Tensor, head_VD: Tensor, targets_N: Tensor, *, softcap: float, chunk_rows: int | None = None
) -> Tensor:
    """nll of each position in nats, (N,) fp32, without gradients: for evaluation."""
    chunk = chunk_rows or chunk_rows_for(x_ND.shape[0], head_VD.shape[0], x_ND.device)
    head = head_VD.to(x_ND.dtype)
    parts = []
    for i in range(0, x_ND.shape[0], chunk):
        logits = softcap * torch.tanh((x_ND[i : i + chunk] @ head.t()).float() / softcap)
        parts.append(torch.logsumexp(logits, -1) - logits.gather(1, targets_N[i : i + chunk, None])[:, 0])
    return torch.cat(parts)


def step_nll(
    model: LanguageModel,
    inputs_BT: Tensor,
    targets_BT: Tensor,
    weights_BT: Tensor,
    denom: Tensor,
    chunk_rows: int | None = None,
    terms: Terms = loss_and_gradient,
) -> Tensor:
    """`weighted_nll` over plain tensors; `denom` is a 0-d tensor so that it may vary within one compiled graph."""
    with span("forward"):
        x = model.hidden(inputs_BT).flatten(0, 1)
    # Dividing the weights, not the sum, makes a batch without counted tokens an exact zero instead of 0/0.
    w = weights_BT.flatten() / denom.clamp(min=1.0)
    head = model.lm_head.weight[: model.shape.vocab_size]
    cap = model.shape.softcap
    with span("loss"):
        return nll_from_hidden(x, head, targets_BT.flatten(), w, softcap=cap, chunk_rows=chunk_rows, terms=terms)


def weighted_nll(model: LanguageModel, batch: Batch, chunk_rows: int | None = None) -> Tensor:
    """This batch's share of the step's loss: Σ weights·nll / denom, in nats per counted token (fp32 scalar)."""
    weights = torch.ones_like(batch.targets, dtype=torch.float32) if batch.weights is None else batch.weights
    denom = torch.tensor(batch.denom, dtype=torch.float32, device=batch.inputs.device)
    return step_nll(model, batch.inputs, batch.targets, weights, denom, chunk_rows)
