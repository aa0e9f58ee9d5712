from __future__ import annotations

import importlib.metadata

import pytest

from picollm.run import config as settings
from picollm.run import launch, machine


@pytest.fixture
def four_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "Gpus", lambda: range(4))
    monkeypatch.setattr(importlib.metadata, "version", lambda package: "2.9.0")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.parametrize(
    "wanted, count",
    [
        (None, 4), ("", 0), ("-1", 0), ("none", 0), ("0", 1), ("1,3", 2), ("0, 2", 2), ("0,9,1", 1), ("2,-1,3", 1),
        ("GPU-8932f937,GPU-d1", 2), ("MIG-1,MIG-2", 1),
    ],
)  # fmt: skip
def test_hidden_gpus_do_not_count(
    four_gpus: None, monkeypatch: pytest.MonkeyPatch, wanted: str | None, count: int
) -> None:
    if wanted is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", wanted)
    assert machine.visible_gpus() == count


def test_a_torch_for_the_cpu_sees_none(four_gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda package: "2.9.0+cpu")
    assert machine.visible_gpus() == 0


@pytest.mark.parametrize(
    "sets, stage, count",
    [
        ([], "pretrain", 4),
        ([], "chat_eval", 4),
        ([], "tokenizer", 1),
        (["machine.device=cuda"], "sft", 4),
        (["machine.device=cpu"], "sft", 1),
        (["launch.nproc=2"], "sft", 2),
        (["launch.nproc=2", "machine.device=cpu"], "sft", 2),
    ],
)
def test_one_rank_for_each_gpu_unless_told(four_gpus: None, sets: list[str], stage: str, count: int) -> None:
    assert launch.ranks(settings.load(sets=sets, environ={}), stage) == count


def test_no_gpu_is_one_rank(four_gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "Gpus", lambda: range(0))
    assert launch.ranks(settings.load(environ={}), "sft") == 1
