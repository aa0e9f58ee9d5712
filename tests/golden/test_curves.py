"""The loss of every training stage is what it was: on any CPU, with any torch and any Python that is supported.

Tolerance: torch 2.11 and 2.13 differed by less than 1e-6; other instruction sets (AVX2, SSE) by at most 2e-4 nats and
0.14 % of the gradient norm over all steps and stages. Ten times that is allowed; learning rates off by 1 % are seen.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.golden import curves
from tests.golden.curves import FOLDER, STEPS

NATS, NORM = 2e-3, 1.5e-2


def golden(stage: str) -> dict[str, list[float]]:
    return json.loads((FOLDER / f"{stage}.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, list[float]]]:
    return curves.curves(tmp_path_factory.mktemp("golden"))


@pytest.mark.parametrize("stage", STEPS)
def test_the_curve_is_the_golden_one(made: dict[str, dict[str, list[float]]], stage: str) -> None:
    expected = golden(stage)
    assert len(expected["loss"]) == STEPS[stage]
    again = "; if that was meant: python -m tests.golden.curves"
    assert made[stage]["loss"] == pytest.approx(expected["loss"], abs=NATS), stage + again
    assert made[stage]["grad_norm"] == pytest.approx(expected["grad_norm"], rel=NORM), stage + again


def test_a_learning_rate_off_by_one_percent_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(curves.LR, "pretrain", 1.01 * curves.LR["pretrain"])
    other = curves.curves(tmp_path, last="pretrain")["pretrain"]["loss"]
    assert max(abs(a - b) for a, b in zip(other, golden("pretrain")["loss"], strict=True)) > 2 * NATS


def test_every_stage_learns_what_it_is_taught() -> None:
    for stage in ("pretrain", "midtrain", "sft"):
        loss = golden(stage)["loss"]
        assert loss[-1] < 0.6 * loss[0]
