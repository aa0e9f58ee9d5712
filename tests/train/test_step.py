from __future__ import annotations

import pytest
import torch

from picollm.train import step as step_module
from picollm.train.batch import Batch
from picollm.train.step import Compute, ForwardBackward
from tests.train.conftest import counting_rows, small_model


def batch() -> Batch:
    return Batch(*counting_rows(0), None, 64.0)


def test_bf16_activations_leave_fp32_weights_and_gradients():
    model = small_model()
    loss = ForwardBackward(model, Compute("bf16", "explicit"))(batch())
    assert loss.dtype == torch.float32
    assert {p.grad.dtype for p in model.parameters() if p.grad is not None} == {torch.float32}
    other = ForwardBackward(small_model(), Compute("fp32", "explicit"))(batch())
    assert loss.item() == pytest.approx(other.item(), rel=1e-2)


def test_attention_backends_agree():
    losses = [ForwardBackward(small_model(), Compute("fp32", a))(batch()).item() for a in ("explicit", "sdpa", "auto")]
    assert losses[1:] == pytest.approx(losses[:1] * 2, rel=1e-5)


def test_checkpointing_gives_the_same_numbers_and_runs_each_block_again():
    plain, saving = small_model(), small_model()
    entered = []
    for block in saving.blocks:
        block.register_forward_pre_hook(lambda *_: entered.append(1))
    losses = [
        ForwardBackward(plain, Compute("fp32", "explicit"))(batch()),
        ForwardBackward(saving, Compute("fp32", "explicit", checkpointing=True))(batch()),
    ]
    assert torch.equal(*losses)
    for (name, p), q in zip(plain.named_parameters(), saving.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad), name
    assert len(entered) == 2 * len(saving.blocks)
    with torch.no_grad():
        saving(batch().inputs)
    assert len(entered) == 3 * len(saving.blocks), "evaluation keeps nothing, so it has nothing to compute again"


def test_a_compiler_that_fails_is_done_without(monkeypatch):
    def broken(fn, **_):
        def call(*args, **kwargs):
            raise RuntimeError("InvalidCxxCompiler: no working C++ compiler found\nmore detail")

        return call

    monkeypatch.setattr(step_module.torch, "compile", broken)
    warnings: list[str] = []
    run = ForwardBackward(small_model(), Compute("fp32", "explicit", compile=True), warnings.append)
    expected = ForwardBackward(small_model(), Compute("fp32", "explicit"))(batch())
    assert run(batch()).item() == expected.item()
    assert run(batch()).item() == expected.item()
    assert len(warnings) == 1 and "no working C++ compiler" in warnings[0] and "\n" not in warnings[0]
    assert not run.compiled


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiled_equals_eager(checkpointing):
    eager = ForwardBackward(small_model(), Compute("fp32", "explicit"))
    compiled = ForwardBackward(small_model(), Compute("fp32", "explicit", True, checkpointing=checkpointing))
    assert compiled(batch()).item() == pytest.approx(eager(batch()).item(), rel=1e-5)
    assert compiled.compiled and compiled.compile_seconds > 0
    theirs = dict(eager.model.named_parameters())
    for name, p in compiled.model.named_parameters():
        torch.testing.assert_close(p.grad, theirs[name].grad, rtol=1e-3, atol=1e-5)


def test_compiled_code_is_used_in_training_only(monkeypatch):
    calls = []

    def counting(fn, **_):
        def call(*args, **kwargs):
            calls.append(fn)
            return fn(*args, **kwargs)

        return call

    monkeypatch.setattr(step_module.torch, "compile", counting)
    model = small_model()
    run = ForwardBackward(model, Compute("fp32", "explicit", compile=True))
    run(batch())
    assert len(calls) == 3, "two blocks and the loss"
    model(batch().inputs)
    assert len(calls) == 3


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_eight_bit_training_learns_as_sixteen_bit_does(compiled):
    finals = {}
    for fp8 in (False, True):
        model = small_model()
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        run = ForwardBackward(model, Compute("bf16", "explicit", compiled, fp8=fp8))
        for step in range(30):
            finals[fp8] = run(Batch(*counting_rows(step), None, 64.0)).item()
            optimizer.step()
            optimizer.zero_grad()
            model.weights_changed()
        assert run.compute.fp8 is fp8 and run.compiled is compiled
        assert model.blocks[0].mlp.fc.eight is None or fp8
    assert finals[True] < 4.0 and finals[True] == pytest.approx(finals[False], rel=0.1)
    assert finals[True] != finals[False]


def test_eight_bit_products_that_do_not_work_are_done_without(monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("no 8-bit products on this machine\nsorry")

    monkeypatch.setattr(torch, "_scaled_mm", broken)
    warnings: list[str] = []
    run = ForwardBackward(small_model(), Compute("bf16", "explicit", fp8=True), warnings.append)
    expected = ForwardBackward(small_model(), Compute("bf16", "explicit"))(batch())
    assert torch.equal(run(batch()), expected)
    assert not run.compute.fp8 and run.model.eight_bit is None
    assert len(warnings) == 1 and "no 8-bit products" in warnings[0] and "\n" not in warnings[0]


def test_running_out_of_memory_is_not_taken_for_a_broken_compiler(monkeypatch):
    def full(fn, **_):
        def call(*args, **kwargs):
            raise torch.OutOfMemoryError("CUDA out of memory")

        return call

    monkeypatch.setattr(step_module.torch, "compile", full)
    with pytest.raises(torch.OutOfMemoryError):
        ForwardBackward(small_model(), Compute("fp32", "explicit", compile=True))(batch())
