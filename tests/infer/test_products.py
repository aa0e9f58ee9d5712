"""Products with a matrix in another form are the products with the matrix."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from picollm.infer import products
from picollm.infer.products import product
from picollm.run.errors import UserError

SIZES = {"rows": st.integers(1, 9), "inputs": st.integers(1, 130), "outputs": st.integers(1, 130)}


def made(rows: int, inputs: int, outputs: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(rows * inputs + outputs)
    x, w = torch.randn(rows, 1, inputs, generator=g), torch.randn(outputs, inputs, generator=g)
    return x.to(dtype), w.to(dtype)


@given(**SIZES, dtype=st.sampled_from([torch.float32, torch.bfloat16]))
@settings(max_examples=40, deadline=None)
def test_any_form_multiplies(rows: int, inputs: int, outputs: int, dtype: torch.dtype) -> None:
    x, w = made(rows, inputs, outputs, dtype)
    got, exact = product(w)(x), F.linear(x.double(), w.double())
    assert got.shape == (rows, 1, outputs) and got.dtype == dtype
    # What is lost is lost in rounding: relative to the sum of the magnitudes that were added.
    room = F.linear(x.abs().double(), w.abs().double()) * (1e-6 if dtype == torch.float32 else 1e-2)
    assert ((got.double() - exact).abs() <= room).all()


@given(**SIZES)
@settings(max_examples=40, deadline=None)
def test_eight_bits_are_as_near_as_eight_bits_can_be(rows: int, inputs: int, outputs: int) -> None:
    x, w = made(rows, inputs, outputs, torch.float32)
    got, exact = product(w, int8=True)(x), F.linear(x.double(), w.double())
    # Each factor is off by at most half a step, and a step is 1/127 of the largest of its row.
    half_x, half_w = x.abs().amax(-1, keepdim=True) / 254, w.abs().amax(1) / 254
    room = (x.abs().sum(-1, keepdim=True) * half_w + half_x * w.abs().sum(1) + inputs * half_x * half_w).double()
    assert ((got.double() - exact).abs() <= 1.01 * room + 1e-6).all()


@given(**SIZES)
@settings(max_examples=20, deadline=None)
def test_in_eight_bits_a_row_is_the_same_in_any_company(rows: int, inputs: int, outputs: int) -> None:
    x, w = made(rows, inputs, outputs, torch.float32)
    x[0] *= 1000  # one row's size must not coarsen the others
    multiply = product(w, int8=True)
    together = multiply(x)
    for b in range(rows):
        assert torch.equal(multiply(x[b : b + 1]), together[b : b + 1])


def test_nothing_times_anything_is_nothing() -> None:
    assert not product(torch.zeros(8, 16), int8=True)(torch.ones(2, 16)).any()
    assert not product(torch.ones(8, 16), int8=True)(torch.zeros(2, 16)).any()


def test_a_processor_without_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_int8_products_work", lambda: False)
    with pytest.raises(UserError, match="int8 weights do not run on this processor; use fp32 or bf16"):
        product(torch.ones(4, 4), int8=True)
