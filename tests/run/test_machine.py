from __future__ import annotations

import importlib.metadata
from pathlib import Path

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


def test_a_reading_has_rates_disks_and_now_and_then_who_is_here(tmp_path: Path) -> None:
    reader = machine.MachineReader(tmp_path / "not" / "yet", tmp_path)
    first, second = reader.read(), reader.read()
    assert first.processes is not None and second.processes is None
    assert first.disks[0]["what"] == "run" and 0 < first.disks[0]["free"] <= first.disks[0]["total"]
    assert all(rate >= 0 for rate in second.rates.values()) and second.memory_used < second.memory_total
    assert second.host and (second.gpus or second.gpu_note)


def test_a_long_record_is_thinned_where_it_is_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "machine.jsonl"
    file.write_bytes(b"".join(b"%04d\n" % number for number in range(1000)))
    monkeypatch.setattr(machine.MachineRecorder, "LIMIT_BYTES", 4000)
    machine.MachineRecorder(file, tmp_path).thin()
    kept = [int(line) for line in file.read_bytes().split()]
    assert kept == [*range(0, 500, 2), *range(500, 1000)]
