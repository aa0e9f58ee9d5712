"""Training products of the blocks in 8 bits: tensorwise dynamic scaling (Micikevicius et al. 2022, "FP8 formats").

A matrix is stored as 8-bit floats and one fp32 scale that puts its largest entry at the end of the format's range.
Forward and input gradient multiply 8-bit operands (e4m3 activations and weights, e5m2 gradients: less precise, of
wider range); the weight gradient, a sum over all positions, keeps 16 bits. Weights stay fp32 masters; their 8-bit copy
is made once per optimizer step, after `GPT.weights_changed`. Without gradients, as in evaluation, nothing is 8-bit.

Shape legend: M positions, K inputs, N outputs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from picollm.model.gpt import GPT

WEIGHTS, GRADIENTS = torch.float8_e4m3fn, torch.float8_e5m2
MULTIPLE = 16  # of which the sizes of a matrix must be
MIN_DIM = 1280  # narrower models lose more by quantising than the products gain
MIN_CAPABILITY = (9, 0)  # Hopper
# Relative errors that rounding to 3 and 2 bits of mantissa explains (about 0.04 and 0.06), with room.
FORWARD_ERROR, GRADIENT_ERROR, WEIGHT_ERROR = 0.08, 0.12, 0.02

Eight = tuple[Tensor, Tensor, Tensor]
"""A weight in 8 bits: (N, K), the same numbers as (K, N), and what to multiply them by."""


def quantise(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """`x` in 8 bits, contiguous, and the fp32 scale (0-d) that gives it back. Not finite in, not finite out."""
    largest = torch.finfo(dtype).max
    scale = largest / x.abs().amax().float().clamp(min=1e-12)
    # Clamped because rounding up at the very end would overflow; a nan passes through both.
    return (x.float() * scale).clamp(-largest, largest).to(dtype).contiguous(), scale.reciprocal()


class _Product(torch.autograd.Function):
    """x @ weightᵀ, with weight given as its `Eight`; `masters` only receive their gradients."""

    @staticmethod
    def forward(ctx: Any, x_MK: Tensor, rows_NK: Tensor, columns_KN: Tensor, scale: Tensor, *masters: Tensor) -> Tensor:
        x8, x_scale = quantise(x_MK, WEIGHTS)
        ctx.save_for_backward(x_MK, columns_KN, scale)
        ctx.sizes = [master.shape[0] for master in masters]
        # The second operand has to lie in memory by columns. Adding up faster and less exactly is enough forward.
        return torch._scaled_mm(
            x8, rows_NK.t(), scale_a=x_scale, scale_b=scale, out_dtype=x_MK.dtype, use_fast_accum=True
        )

    @staticmethod
    def backward(ctx: Any, grad_MN: Tensor):  # type: ignore[override]
        x, columns_KN, scale = ctx.saved_tensors
        g8, g_scale = quantise(grad_MN, GRADIENTS)
        grad_x = torch._scaled_mm(g8, columns_KN.t(), scale_a=g_scale, scale_b=scale, out_dtype=x.dtype)
        grad_NK = (grad_MN.t() @ x).float()
        return grad_x, None, None, None, *grad_NK.split(ctx.sizes)


def product(x: Tensor, eight: Eight, *masters: Tensor) -> Tensor:
    """x (…, K) times the transpose of the masters stacked along N, (…, N): forward and input gradient in 8 bits."""
    y: Tensor = _Product.apply(x.flatten(0, -2), *eight, *masters)  # type: ignore[no-untyped-call]
    return y.view(*x.shape[:-1], y.shape[-1])


class EightBitWeights:
    """The 8-bit copies of a model's block matrices, kept on the modules that use them as `eight`."""

    def __init__(self, model: GPT) -> None:
        self.stale = True
        self._layers: list[tuple[Any, list[Tensor]]] = []
        for block in model.each_block():
            attn, mlp = block.attn, block.mlp
            self._layers += [
                (attn, [attn.q.weight, attn.k.weight, attn.v.weight]),
                *((linear, [linear.weight]) for linear in (attn.proj, mlp.fc, mlp.proj)),
            ]

    @torch.no_grad()
    def refresh(self) -> None:
        """Make the copies that the next products use, if the weights changed since."""
        if not self.stale:
            return
        for module, masters in self._layers:
            weight = masters[0] if len(masters) == 1 else torch.cat([m.detach() for m in masters])
            rows, scale = quantise(weight, WEIGHTS)
            new = (rows, rows.t().contiguous(), scale)
            if module.eight is None:
                module.eight = new
            else:  # the same memory, so that compiled code meets the same tensors
                for old, now in zip(module.eight, new, strict=True):
                    old.copy_(now)
        self.stale = False

    def remove(self) -> None:
        """Back to products in the dtype of the activations."""
        for module, _ in self._layers:
            module.eight = None


def pays(dim: int, device: torch.device) -> bool:
    """Whether it is worth a trial without being asked for."""
    return dim >= MIN_DIM and device.type == "cuda" and torch.cuda.get_device_capability(device) >= MIN_CAPABILITY


@torch.enable_grad()
def why_not(inputs: int, outputs: int, positions: int, device: torch.device, dtype: torch.dtype) -> str:
    """Run one product forward and backward and compare with fp32: "" when 8 bits may be used, else what is wrong."""
    if inputs % MULTIPLE or outputs % MULTIPLE:
        return f"{inputs} x {outputs} is not made of multiples of {MULTIPLE}"
    g = torch.Generator(device).manual_seed(0)
    x = torch.randn(positions, inputs, generator=g, device=device).to(dtype).requires_grad_()
    weight = (torch.randn(outputs, inputs, generator=g, device=device) * inputs**-0.5).requires_grad_()
    pull = torch.randn(positions, outputs, generator=g, device=device).to(dtype)
    try:
        rows, scale = quantise(weight.detach(), WEIGHTS)
        y = product(x, (rows, rows.t().contiguous(), scale), weight)
        ours = (y.detach(), *torch.autograd.grad(y, (x, weight), pull))
    except Exception as failure:  # a driver, a library and a launch stand behind it
        return (str(failure).strip().splitlines() or [type(failure).__name__])[0][:160]
    x32, pull32, w32 = x.detach().float(), pull.float(), weight.detach()
    exact = (x32 @ w32.t(), pull32 @ w32, pull32.t() @ x32)
    names = ("value", "input gradient", "weight gradient")
    limits = (FORWARD_ERROR, GRADIENT_ERROR, WEIGHT_ERROR)
    for name, a, b, limit in zip(names, ours, exact, limits, strict=True):
        error = float((a.float() - b).norm() / b.norm())
        if not error <= limit:
            return f"its {name} is off by {error:.1e}"
    return ""
