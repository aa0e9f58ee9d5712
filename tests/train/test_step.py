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
