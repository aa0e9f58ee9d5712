"""The doctor computes what it asks for from the settings; a machine too small for them is said to be so."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from picollm.run import checks, config
from picollm.run.folder import Run
from picollm.run.memory import GIB


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """A machine of which the tests say how large it is, in GiB."""
    monkeypatch.setenv("PICOLLM_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("PICOLLM_HOME", str(tmp_path / "home"))
    size = SimpleNamespace(memory=16, disk=40, gpus=[])
    monkeypatch.setattr(checks.psutil, "virtual_memory", lambda: SimpleNamespace(available=size.memory * GIB))
    monkeypatch.setattr(checks, "memory_limit", lambda: 1 << 62)
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda path: SimpleNamespace(free=size.disk * GIB))
    monkeypatch.setattr(checks, "visible_gpus", lambda: len(size.gpus))
    records = lambda: [{"name": "GPU", "memory_total": gib * GIB} for gib in size.gpus]  # noqa: E731
    monkeypatch.setattr(checks, "Gpus", lambda: SimpleNamespace(read=records, reason="none here"))
    yield size


def verdicts(profile: str, *sets: str) -> dict[str, checks.Verdict]:
    settings = config.load(profile, sets=sets, environ={})
    return {found.name: found for found in checks.run_checks(Run.create(f"r-{profile}", settings), settings)}


def test_a_laptop_is_enough_for_the_pocket(machine: SimpleNamespace) -> None:
    found = verdicts("pocket")
    assert found["memory"].status == found["disk"].status == found["gpu"].status == "ok"
    assert "depth 4" in found["memory"].wanted and "depth 4" in found["disk"].wanted


@pytest.mark.parametrize(("disk", "status"), [(100, "fail"), (151.5, "warn"), (200, "ok")])
def test_disk_is_computed_from_checkpoints_shards_and_text(machine: SimpleNamespace, disk: float, status: str) -> None:
    machine.disk, machine.gpus = disk, [80] * 8
    found = verdicts("speedrun")["disk"]
    assert found.status == status and "run 116.4" in found.wanted and "PICOLLM_HOME" in found.wanted
    assert bool(found.fix) == (status != "ok")


def test_more_checkpoints_kept_are_more_disk(machine: SimpleNamespace) -> None:
    machine.gpus, machine.disk = [80] * 8, 500
    assert verdicts("speedrun", "machine.keep_last=20")["disk"].status == "fail"


@pytest.mark.parametrize(("size", "status"), [(2, "fail"), (16, "ok")])
def test_memory_is_computed_from_the_model(machine: SimpleNamespace, size: int, status: str) -> None:
    machine.memory = size
    assert verdicts("single-gpu", "model.depth=6")["memory"].status == status


@pytest.mark.parametrize(("gpus", "status"), [([8], "fail"), ([80] * 8, "ok"), ([80, 8], "fail")])
def test_a_gpu_on_which_no_row_fits(machine: SimpleNamespace, gpus: list[int], status: str) -> None:
    machine.gpus, machine.memory, machine.disk = gpus, 200, 500
    found = verdicts("speedrun")["gpu"]
    assert found.status == status
    assert ("takes" in found.found) == (status == "fail")
