"""Phases and operators of a real training loop, recorded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from picollm.train import trace
from picollm.train.device import Ranks
from picollm.train.loop import loop
from picollm.train.optim import OptimizerSettings, build_optimizer
from picollm.train.schedule import Schedule
from picollm.train.spans import PHASES, PREFIX, span, spanned
from picollm.train.step import Compute, ForwardBackward
from picollm.train.trace import StepTrace
from tests.train.conftest import ROWS, T, counting_batches, small_model

STEPS = 4


class Enough(Exception):
    pass


@pytest.fixture(scope="module")
def traced() -> StepTrace:
    trace = StepTrace(STEPS, torch.device("cpu"))
    model = small_model()

    def report(_: object) -> None:
        if trace.stepped():
            raise Enough

    with pytest.raises(Enough):
        loop(
            ForwardBackward(model, Compute("fp32", "explicit")), build_optimizer(model, OptimizerSettings()),
            counting_batches, Schedule(100), Ranks(torch.device("cpu")), first=0, last=100, report=report,
        )  # fmt: skip
    return trace


def test_it_asks_for_exactly_the_steps_it_needs(traced: StepTrace) -> None:
    assert traced.seen == traced.needed == 3 + STEPS + 1 + STEPS


def test_the_phases_are_those_of_a_step_and_make_up_its_time(traced: StepTrace) -> None:
    phases = {row.name: row for row in traced.phases()}
    assert list(phases) == [*(name for name in PHASES if name != "gather"), "other"]  # one rank gathers nothing
    assert all(row.host_ms > 0 for name, row in phases.items() if name != "other")
    assert sum(row.host_ms for row in phases.values()) == pytest.approx(traced.recorded_ms)
    assert phases["forward"].calls == phases["backward"].calls == phases["sync"].calls == 1


def test_operators_are_sorted_by_their_own_time(traced: StepTrace, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(traced.operators()) == trace.TOP
    monkeypatch.setattr(trace, "TOP", 10_000)  # on a busy machine anything may have taken longest
    rows = traced.operators()
    assert [row.host_ms for row in rows] == sorted((row.host_ms for row in rows), reverse=True)
    assert any(row.name in ("aten::mm", "aten::bmm") for row in rows)
    assert not any(row.name.startswith(PREFIX) for row in rows)


def test_the_table_says_the_rate_of_the_undisturbed_steps(traced: StepTrace) -> None:
    lines = traced.table("a title", ROWS * T).splitlines()
    assert lines[0] == "a title"
    assert f"({1000 * ROWS * T / traced.step_ms:,.0f} tok/s), mean of {STEPS}" in lines[1]
    assert any(line.startswith("muon") and line.endswith("optimizer: matrices") for line in lines)


def test_the_trace_holds_every_recorded_step(traced: StepTrace, tmp_path: Path) -> None:
    traced.save(tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    forward = [event for event in events if event.get("name") == PREFIX + "forward" and event.get("cat") != "cpu_op"]
    assert len({event["ts"] for event in forward}) == STEPS


def test_reading_before_the_end_is_a_mistake() -> None:
    with pytest.raises(AssertionError, match="not all steps were seen"):
        StepTrace(2, torch.device("cpu")).phases()


def test_spans_change_nothing_and_let_exceptions_through() -> None:
    assert list(spanned("data", lambda: iter([1, 2]))) == [1, 2]

    def broken():
        yield 1
        raise KeyError("lost")

    items = spanned("data", broken)
    assert next(items) == 1
    with pytest.raises(KeyError, match="lost"):
        next(items)
    with pytest.raises(ValueError), span("forward"):
        raise ValueError
