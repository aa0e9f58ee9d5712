"""Products with the matrices of a model, each kept in the form in which multiplying with it is fastest.

multiply = product(weight)          # weight (outputs, inputs)
y = multiply(x)                     # x (..., inputs) -> (..., outputs)
"""

from __future__ import annotations

import functools
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from picollm.run.errors import UserError

SMALL = 1 << 18
"""Elements up to which a product with a single vector is fastest over the transposed matrix (docs/log.md)."""
TINY = torch.finfo(torch.float32).tiny


class WrongPrecision(UserError):
    """The precision asked for does not run there; nothing is wrong with the model."""


class Product(Protocol):
    """x (..., inputs) -> (..., outputs). `copied`: it does not read the weight it was made from."""

    copied: bool

    def __call__(self, x: Tensor, /) -> Tensor: ...


def product(weight: Tensor, *, int8: bool = False) -> Product:
    """x -> x @ weight.T. Raises `WrongPrecision` when 8 bits are asked for and do not run here."""
    if int8:
        return _Int8(weight)
    if weight.device.type == "cpu" and _blocked_products_work(weight.dtype):
        return _Blocked(weight)
    return _Plain(weight)


class _Plain:
    """As it is."""

    copied = False

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)


class _Blocked:
    """On a CPU, in the layout of oneDNN's kernels, so that they need not pack it at every call."""

    copied = True

    def __init__(self, weight: Tensor) -> None:
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, None)
        small = weight.dtype == torch.float32 and weight.numel() <= SMALL
        self.transposed = weight.t().contiguous() if small else None

    def __call__(self, x: Tensor) -> Tensor:
        if self.transposed is not None and x.numel() == x.shape[-1]:
            return x @ self.transposed
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, None, "none", [], "")


class _Int8:
    """On a CPU, both sides in 8 bits: one scale for each output of the weight, one for each row of x, both by the
    largest magnitude (Dettmers et al. 2022, vector-wise quantisation).

    What is multiplied is summed in integers, so a row's result depends on no other row.
    """

    copied = True

    def __init__(self, weight: Tensor) -> None:
        if not _int8_products_work():
            raise WrongPrecision("int8 weights do not run on this processor; use fp32 or bf16")
        self.packed = _Packed(weight)

    def __call__(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        largest = rows.abs().amax(-1, keepdim=True).clamp_min_(TINY)
        y = self.packed.multiply((rows / largest).mul_(127).round_().to(torch.int16).add_(128).to(torch.uint8))
        return y.mul_(largest).view(*x.shape[:-1], -1)


class _Packed:
    """A weight in 8 bits, in the layout of oneDNN's kernels."""

    def __init__(self, weight: Tensor) -> None:
        weight = weight.float()
        self.scales = weight.abs().amax(1).clamp_min_(TINY) / 127
        self.zeros = torch.zeros(len(weight), dtype=torch.int64)
        eight = (weight / self.scales[:, None]).round_().to(torch.int8)
        self.weight = torch.ops.onednn.qlinear_prepack(eight, None)

    def multiply(self, x: Tensor) -> Tensor:
        """x: uint8 (rows, inputs), of which 128 stands for 0 and 255 for 1."""
        multiply = torch.ops.onednn.qlinear_pointwise
        return multiply(
            x, 1 / 127, 128, self.weight, self.scales, self.zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )


@functools.cache
def _blocked_products_work(dtype: torch.dtype) -> bool:
    """Whether oneDNN's products with a matrix in its own layout run here, and are right; they need not pack it."""
    x, w = torch.ones(4, 64, dtype=dtype), torch.eye(64, dtype=dtype)[:48]
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(w, None)
        return torch.equal(torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], ""), F.linear(x, w))
    except (AttributeError, RuntimeError):  # another build, another processor
        return False


@functools.cache
def _int8_products_work() -> bool:
    """Whether 8-bit products run here and are right: some processors' sums overflow when all values are largest."""
    x, w = torch.full((4, 64), 255, dtype=torch.uint8), torch.ones(48, 64)
    try:
        return torch.allclose(_Packed(w).multiply(x), torch.full((4, 48), 64.0), rtol=1e-3)
    except (AttributeError, RuntimeError):
        return False
