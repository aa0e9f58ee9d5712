"""8-bit products: the arithmetic against its bounds, and that what must stay exact does; a CPU can do them too."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from picollm.model import fp8
from picollm.model.fp8 import GRADIENTS, WEIGHTS, product, quantise, why_not
from picollm.model.gpt import GPT
from picollm.run.scaling import shape_for

CPU = torch.device("cpu")
HALF_STEP = {WEIGHTS: 2.0**-4, GRADIENTS: 2.0**-3}  # of a mantissa with 3 and with 2 bits


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 999), size=st.floats(1e-20, 1e20), dtype=st.sampled_from([WEIGHTS, GRADIENTS]))
def test_quantising_rounds_each_number_to_its_mantissa(seed: int, size: float, dtype: torch.dtype) -> None:
    x = torch.randn(16, 32, generator=torch.Generator().manual_seed(seed)) * size
    x8, scale = quantise(x, dtype)
    back = x8.double() * scale.double()
    assert x8.dtype == dtype and x8.is_contiguous() and scale.dtype == torch.float32 and scale.dim() == 0
    # Numbers near zero are below the smallest step of the format once the largest is put at its end.
    floor = float(torch.finfo(dtype).smallest_normal) * float(scale)
    bound = HALF_STEP[dtype] * x.double().abs().clamp(min=floor) * 1.001
    assert bool(((back - x.double()).abs() <= bound).all())
    largest = x.abs().argmax()
    assert back.flatten()[largest] == pytest.approx(x.flatten()[largest].item(), rel=1e-5)


def test_zeros_stay_zeros_and_what_is_not_finite_shows() -> None:
    x8, scale = quantise(torch.zeros(16, 16), WEIGHTS)
    assert bool((x8.float() * scale == 0).all())
    for bad in (float("nan"), float("inf")):
        x = torch.ones(16, 16)
        x[3, 4] = bad
        x8, scale = quantise(x, WEIGHTS)
        assert not bool(torch.isfinite(x8.float() * scale).all())


def eight(weight: torch.Tensor) -> fp8.Eight:
    rows, scale = quantise(weight.detach(), WEIGHTS)
    return rows, rows.t().contiguous(), scale


@pytest.mark.parametrize("positions", [1, 7, 64])
def test_the_product_is_exactly_that_of_the_rounded_matrices(positions: int) -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(positions, 32, generator=g).requires_grad_()
    weight = torch.randn(48, 32, generator=g).requires_grad_()
    pull = torch.randn(positions, 48, generator=g)
    copy = eight(weight)
    y = product(x, copy, weight)
    y.backward(pull)

    def rounded(t: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        t8, scale = quantise(t.detach(), dtype)
        return t8.double() * scale.double()

    w = rounded(weight, WEIGHTS)
    torch.testing.assert_close(y.double(), rounded(x, WEIGHTS) @ w.t(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(x.grad.double(), rounded(pull, GRADIENTS) @ w, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(weight.grad, pull.t() @ x.detach(), rtol=1e-5, atol=1e-5)  # not in 8 bits


def test_against_fp64_the_errors_are_those_of_rounding() -> None:
    assert why_not(256, 512, 128, CPU, torch.bfloat16) == ""
    assert why_not(256, 512, 128, CPU, torch.float32) == ""
    assert "multiples of 16" in why_not(250, 512, 128, CPU, torch.bfloat16)


@pytest.mark.parametrize("wrong", ["value", "input gradient", "weight gradient", "raises"])
def test_a_wrong_product_is_found_out(monkeypatch, wrong: str) -> None:
    right = torch._scaled_mm

    def broken(a, b, **how):
        if wrong == "raises":
            raise RuntimeError("8-bit products need another machine\nat all")
        forward = how.get("use_fast_accum", False)
        off = 1.3 if wrong == ("value" if forward else "input gradient") else 1.0
        return right(a, b, **how) * off

    monkeypatch.setattr(torch, "_scaled_mm", broken)
    if wrong == "weight gradient":
        backward = fp8._Product.backward
        shrunk = staticmethod(lambda ctx, grad: tuple(g if g is None else g * 0.9 for g in backward(ctx, grad)))
        monkeypatch.setattr(fp8, "GRADIENT_ERROR", 0.2)
        monkeypatch.setattr(fp8._Product, "backward", shrunk)
    reason = why_not(64, 64, 32, CPU, torch.float32)
    said = "8-bit products need another machine" if wrong == "raises" else f"its {wrong} is off"
    assert said in reason and "\n" not in reason


def test_stacked_masters_each_get_their_own_gradient() -> None:
    g = torch.Generator().manual_seed(1)
    x = torch.randn(2, 5, 32, generator=g)
    parts = [torch.randn(n, 32, generator=g).requires_grad_() for n in (32, 16, 16)]
    whole = torch.cat(parts).detach().requires_grad_()
    a, b = product(x, eight(whole), *parts), product(x, eight(whole), whole)
    assert a.shape == (2, 5, 64) and torch.equal(a, b)
    a.square().sum().backward()
    b.square().sum().backward()
    assert torch.equal(torch.cat([p.grad for p in parts]), whole.grad)


def model() -> GPT:
    made = GPT(shape_for(2, 96, 32, dim=32, head_dim=16))
    made.init_weights(0)
    with torch.no_grad():
        for p in made.parameters():
            if p.dim() == 2:
                p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())) * 0.05)
    made.eight_bit = fp8.EightBitWeights(made)
    made.eight_bit.refresh()
    return made


def test_evaluation_is_not_in_eight_bits_and_training_is() -> None:
    m = model()
    ids = torch.randint(0, 96, (2, 32), generator=torch.Generator().manual_seed(0))
    training = m(ids).detach()
    with torch.no_grad():
        evaluation = m(ids)
    m.eight_bit.remove()
    assert torch.equal(evaluation, m(ids).detach())
    assert not torch.equal(training, evaluation)
    assert (training - evaluation).norm() < 0.2 * evaluation.norm()


def test_copies_are_made_once_per_change_in_the_same_memory(monkeypatch) -> None:
    m = model()
    made = []
    monkeypatch.setattr(fp8, "quantise", lambda x, dtype: made.append(1) or quantise(x, dtype))
    m.eight_bit.refresh()
    assert made == [], "nothing changed"
    before = m.blocks[0].mlp.fc.eight
    with torch.no_grad():
        m.blocks[0].mlp.fc.weight.mul_(2)
        m.blocks[0].attn.k.weight.zero_()
    m.weights_changed()
    m.eight_bit.refresh()
    assert len(made) == 4 * len(m.blocks)
    after = m.blocks[0].mlp.fc.eight
    assert all(a is b for a, b in zip(before, after, strict=True))
    weight = m.blocks[0].mlp.fc.weight.detach()
    assert torch.equal(after[0].float() * after[2], quantise(weight, WEIGHTS)[0].float() * quantise(weight, WEIGHTS)[1])
    assert torch.equal(after[1].float().t(), after[0].float())
    assert bool((m.blocks[0].attn.eight[0].float()[32:64] == 0).all()), "keys lie between queries and values"


def test_only_wide_models_on_new_gpus_are_tried_unasked(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert fp8.pays(1280, torch.device("cuda")) and not fp8.pays(768, torch.device("cuda"))
    assert not fp8.pays(2048, CPU)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    assert not fp8.pays(2048, torch.device("cuda"))
