from __future__ import annotations

import pytest
import torch

from picollm.train import probe as probe_module
from picollm.train.probe import Figure, probe
from picollm.train.step import Compute
from tests.train.conftest import small_shape


@pytest.fixture(autouse=True)
def cheap_peak(monkeypatch):
    monkeypatch.setattr(probe_module, "gemm_peak", lambda *_: 1e11)


def test_every_candidate_is_run_and_the_fastest_chosen():
    result = probe(small_shape(), rows=2, seconds=0.01, compile="off")
    assert result.table().keys() == {
        "fp32 explicit eager", "fp32 sdpa eager", "bf16 explicit eager", "bf16 sdpa eager"
    }  # fmt: skip
    assert result.best.tok_s == max(f.tok_s for f in result.figures) > 0
    assert 0 < result.mfu < 1
    assert 0 < result.best.optimizer_share < 1


def fake(speeds, log):
    def measure(model, compute, *_):
        log.append(compute)
        return Figure(compute, speeds(compute), compile_s=20.0 if compute.compile else 0.0)

    return measure


def test_compiling_is_tried_only_where_it_can_pay(monkeypatch):
    for seconds, tried in ((10, False), (1000, True)):
        log: list[Compute] = []
        monkeypatch.setattr(probe_module, "measure", fake(lambda c: 2000.0 if c.compile else 1000.0, log))
        best = probe(small_shape(), 2, planned_s=seconds).best
        assert any(c.compile for c in log) is tried
        assert best.compute.compile is tried


def test_compiled_code_that_is_slower_is_not_taken(monkeypatch):
    monkeypatch.setattr(probe_module, "measure", fake(lambda c: 900.0 if c.compile else 1000.0, []))
    assert not probe(small_shape(), 2, planned_s=1e6).best.compute.compile


def test_a_failing_candidate_is_listed_with_its_reason_and_not_chosen(monkeypatch):
    def run(self, batch, weights, denom):
        if self.model.attention_backend == "sdpa":
            raise RuntimeError("no kernel image is available\nfor this device")
        loss = torch.zeros((), requires_grad=True)
        return loss

    monkeypatch.setattr(probe_module.ForwardBackward, "_run", run)
    result = probe(small_shape(), 2, 0.01, compile="off", precisions=("fp32",))
    assert result.best.compute.attention == "explicit"
    assert result.table()["fp32 sdpa eager"] == 0
    (failing,) = [f for f in result.figures if f.failed]
    assert failing.failed == "no kernel image is available"
    with pytest.raises(RuntimeError, match="no kernel image"):
        probe(small_shape(), 2, 0.01, compile="off", precisions=("fp32",), attentions=("sdpa",))


def test_what_is_not_proven_is_not_timed(monkeypatch):
    timed: list[Compute] = []
    monkeypatch.setattr(probe_module, "measure", fake(lambda c: 1000.0, timed))
    said: list[str] = []
    result = probe(small_shape(), 2, compile="off", attentions=("varlen", "sdpa"), say=said.append)
    assert {c.attention for c in timed} == {"sdpa"}
    assert result.best.compute.attention == "sdpa"
    assert result.attention_ms()["varlen"] == 0 < result.attention_ms()["sdpa"]
    assert any("varlen" in line and "CUDA" in line for line in said), "why not is said"


def test_eight_bits_are_taken_where_they_pay_or_are_asked_for(monkeypatch):
    def speeds(compute):
        return 500.0 * (1 + compute.compile) * (1.2 if compute.fp8 else 1.0)

    monkeypatch.setattr(probe_module, "measure", fake(speeds, []))
    how = {"compile": "on", "precisions": ("bf16",)}
    assert not probe(small_shape(), 2, fp8="auto", **how).best.compute.fp8, "a CPU"
    assert probe(small_shape(), 2, fp8="on", **how).best.compute == Compute("bf16", "explicit", True, fp8=True)
    monkeypatch.setattr(probe_module, "pays", lambda dim, device: True)
    chosen = probe(small_shape(), 2, fp8="auto", **how)
    assert chosen.best.compute.fp8 and chosen.best.name == "bf16 explicit compiled fp8"
    assert not probe(small_shape(), 2, fp8="auto", compile="off").best.compute.fp8, "eager 8 bits do not pay"
    monkeypatch.setattr(probe_module, "measure", fake(lambda c: 900.0 if c.fp8 else 1000.0, []))
    assert not probe(small_shape(), 2, fp8="auto", **how).best.compute.fp8, "slower here"


def test_eight_bits_are_really_run(monkeypatch):
    result = probe(small_shape(), 2, 0.01, compile="off", precisions=("bf16",), attentions=("sdpa",), fp8="on")
    assert result.best.compute.fp8 and result.best.tok_s > 0
    assert "bf16 sdpa eager fp8" in result.table()
