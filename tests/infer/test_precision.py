"""Which precision a model answers in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from picollm.infer import precision
from picollm.infer.precision import choose
from picollm.run.errors import UserError
from tests.infer.fakes import tiny_model

SHAPE = tiny_model().shape
CPU, GPU = torch.device("cpu"), torch.device("cuda")


def test_what_is_asked_for_is_taken() -> None:
    assert [choose(name, SHAPE, CPU) for name in ("fp32", "bf16", "int8")] == ["fp32", "bf16", "int8"]
    assert choose("auto", SHAPE, GPU) == "bf16" and choose("fp32", SHAPE, GPU) == "fp32"
    with pytest.raises(UserError, match=r"precision int8 is for CPUs.*use bf16"):
        choose("int8", SHAPE, GPU)
    with pytest.raises(UserError, match="precision 'fp8': expected auto, fp32, bf16 or int8"):
        choose("fp8", SHAPE, CPU)


@pytest.mark.parametrize(("ratio", "chosen"), [(0.8, "fp32"), (1.2, "fp32"), (1.3, "bf16"), (4.0, "bf16")])
def test_bf16_must_be_clearly_faster_and_is_measured_once(
    ratio: float, chosen: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PICOLLM_HOME", str(tmp_path))
    asked = []
    monkeypatch.setattr(precision, "speedup", lambda shape: asked.append(shape) or ratio)
    assert [choose("auto", SHAPE, CPU), choose("auto", SHAPE, CPU)] == [chosen] * 2
    assert asked == [SHAPE]
    [file] = (tmp_path / "precision").iterdir()
    assert json.loads(file.read_text())["bf16_speedup"] == ratio
    file.write_text("{")
    assert choose("auto", SHAPE, CPU) == chosen and len(asked) == 2
    choose("auto", tiny_model(depth=3).shape, CPU)
    assert len(asked) == 3


def test_a_home_that_cannot_be_written_is_no_hindrance(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PICOLLM_HOME", str(tmp_path / "file" / "below"))
    monkeypatch.setattr(precision, "speedup", lambda shape: 2.0)
    assert choose("auto", SHAPE, CPU) == "bf16"


def test_a_real_measurement_is_a_ratio() -> None:
    assert 0.01 < precision.speedup(SHAPE) < 100
