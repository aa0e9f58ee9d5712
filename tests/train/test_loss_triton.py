"""The loss kernel of a GPU, run by Triton's interpreter: the same program, one element at a time, on a CPU.

Triton decides when it is imported whether it interprets, so this happens in a process of its own.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from picollm.train import loss

CASES = """
import itertools, torch
from picollm.train import loss_triton
from picollm.train.loss import nll_from_hidden
from tests.train.test_loss import plain

loss_triton.BLOCK = 64  # so that several blocks, whole and broken, are met at a size the interpreter can do
g = torch.Generator().manual_seed(0)
sizes = [(1, 2), (3, 63), (5, 64), (4, 65), (2, 128), (7, 200)]
sizes += [(int(n), int(v)) for n, v in torch.randint(2, 260, (6, 2), generator=g)]
for (rows, vocab), dtype in itertools.product(sizes, (torch.float32, torch.bfloat16)):
    rows = min(rows, 9)
    logits = (torch.randn(rows, vocab, generator=g) * 20).to(dtype)
    targets = torch.randint(0, vocab, (rows, 1), generator=g)
    targets[0], targets[-1] = 0, vocab - 1
    weights = torch.randn(rows, 1, generator=g)
    weights[rows // 2] = 0.0
    exact = logits.double().requires_grad_()
    capped = 15.0 * torch.tanh(exact / 15.0)
    nll = torch.nn.functional.cross_entropy(capped, targets[:, 0], reduction="none")
    expected = (weights[:, 0].double() * nll).sum()
    (slope,) = torch.autograd.grad(expected, exact)
    given = logits.clone()
    value, gradient = loss_triton.loss_and_gradient(given, targets, weights, 15.0)
    assert gradient.data_ptr() == given.data_ptr(), "written in place"
    assert abs(value.item() - expected.item()) < 1e-4 * (1 + abs(expected.item())), (rows, vocab, dtype)
    near = {"rtol": 1e-2, "atol": 1e-4} if dtype == torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-6}
    torch.testing.assert_close(gradient.double(), slope, **near)
    assert bool((gradient[rows // 2] == 0).all())

# through the loss, chunk by chunk, with gradients of the hidden states and the output matrix
x = torch.randn(21, 8, generator=g, dtype=torch.float64).requires_grad_()
head = (torch.randn(70, 8, generator=g, dtype=torch.float64) * 4).requires_grad_()
targets, weights = torch.randint(0, 70, (21,), generator=g), torch.randn(21, generator=g)
expected = plain(x, head, targets, weights, 15.0)
slopes = torch.autograd.grad(expected, (x, head))
x32, head32 = (t.detach().float().requires_grad_() for t in (x, head))
terms = loss_triton.loss_and_gradient
ours = nll_from_hidden(x32, head32, targets, weights, softcap=15.0, chunk_rows=8, terms=terms)
ours.backward()
assert abs(ours.item() - expected.item()) < 1e-4 * abs(expected.item())
torch.testing.assert_close(x32.grad.double(), slopes[0], rtol=1e-3, atol=1e-5)
torch.testing.assert_close(head32.grad.double(), slopes[1], rtol=1e-3, atol=1e-5)

huge = torch.full((2, 70), 1e6)
value, gradient = loss_triton.loss_and_gradient(huge, torch.tensor([[0], [69]]), torch.ones(2, 1), 15.0)
assert torch.isfinite(value) and torch.isfinite(gradient).all()

cpu = torch.device("cpu")
for dtype in (torch.float32, torch.bfloat16):
    assert loss_triton.why_not(cpu, dtype, 100, 15.0) == ""
right = loss_triton.loss_and_gradient
loss_triton.loss_and_gradient = lambda logits, *rest: (right(logits, *rest)[0], logits * 1.1)
assert "gradient" in loss_triton.why_not(cpu, torch.float32, 100, 15.0)
def broken(*_):
    raise RuntimeError("no kernel image" + chr(10) + "more")
loss_triton.loss_and_gradient = broken
assert loss_triton.why_not(cpu, torch.float32, 100, 15.0) == "no kernel image"
print("all cases passed")
"""


COMPILED = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from picollm.train.loss_triton import BLOCK, _softcapped_nll

for capability in (80, 90):
    for logits in ("*bf16", "*fp32"):
        types = {"logits": logits, "targets": "*i64", "weights": "*fp32", "losses": "*fp32", "vocab": "i32"}
        types |= {"cap": "fp32", "BLOCK": "constexpr"}
        source = ASTSource(fn=_softcapped_nll, signature=types, constexprs={"BLOCK": BLOCK})
        kernel = compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 8})
        assert len(kernel.asm["cubin"]) > 0
        # The target's logit must be read before the warps meet for the sum, or a faster warp may overwrite it.
        reads = kernel.asm["ttgir"]
        assert reads.count("tt.load") == 5 and reads.index("tt.reduce") > reads.index("scf.for")
        assert sum(1 for line in reads[: reads.index("scf.for")].splitlines() if "tt.load" in line) == 3
print("compiled for every target")
"""


def run(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_the_kernel_compiles_for_gpus_that_are_not_here(tmp_path) -> None:
    """To machine code, by Triton's own assembler; a GPU is needed only to run it."""
    assert "compiled for every target" in run(COMPILED, TRITON_CACHE_DIR=str(tmp_path))


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_the_kernel_against_the_formula_in_fp64() -> None:
    assert "all cases passed" in run(CASES, TRITON_INTERPRET="1")


def test_without_triton_or_a_gpu_the_plain_terms_are_used_with_one_line(monkeypatch) -> None:
    said: list[str] = []
    plain = loss.fastest_terms(torch.device("cpu"), torch.bfloat16, 100, 15.0, said.append)
    assert plain is loss.loss_and_gradient and said == [], "a CPU has nothing to fall back from"
    monkeypatch.setitem(sys.modules, "picollm.train.loss_triton", None)  # importing it now fails
    terms = loss.fastest_terms(torch.device("cuda"), torch.bfloat16, 100, 15.0, said.append)
    assert terms is loss.loss_and_gradient
    assert len(said) == 1 and "loss kernel" in said[0] and "\n" not in said[0]
