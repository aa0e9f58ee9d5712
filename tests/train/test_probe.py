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
    assert result.figures[1].failed == "no kernel image is available"
    with pytest.raises(RuntimeError, match="no kernel image"):
        probe(small_shape(), 2, 0.01, compile="off", precisions=("fp32",), attentions=("sdpa",))
