"""Whose a process is, and what is not said of one that cannot be seen from here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from picollm.run import processes
from picollm.run.processes import Processes, role_of
from tests.run.conftest import until


@pytest.mark.parametrize(
    ("command", "role"),
    [
        ("python -u -m stages.sft --run /runs/demo --attempt 1", ("sft", "demo")),
        ("python -m picollm.run.launch --run /runs/demo --stage sft", ("launcher", "demo")),
        ("python -m picollm.train.torchrun /runs/demo sft 1 h 0 -- -m -- stages.sft --run /runs/demo",
         ("torchrun", "demo")),
        ("python -m http.server --run /runs/demo", None),
        ("python train.py --run /runs/demo", None),
        ("python -m stages.sft --run", None),
    ],
)  # fmt: skip
def test_command_lines_tell_run_and_stage(command: str, role: tuple[str, str] | None) -> None:
    found = role_of(command.split())
    assert (found and (found["stage"], found["run"])) == role


@pytest.fixture
def spinning(tmp_path: Path):
    """A busy process whose command line is that of a stage."""
    code = "import time\nend = time.time() + 600\nwhile time.time() < end: pass"
    child = subprocess.Popen([sys.executable, "-c", code, "-m", "stages.sft", "--run", str(tmp_path)])
    yield child
    child.kill()
    child.wait()


def test_the_busy_are_named_with_their_run(
    spinning: subprocess.Popen[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "MOST", 1000)  # on a machine where many are busier
    reader = Processes(tmp_path)
    mine = until(lambda: {record["pid"]: record for record in reader.read([])}.get(spinning.pid))
    assert mine["stage"] == "sft" and mine["run"] == tmp_path.name and mine["ours"] and mine["cpu"] >= 5
    assert mine["memory"] > 1 << 20


def test_pids_of_another_numbering_are_hidden(
    monkeypatch: pytest.MonkeyPatch, spinning: subprocess.Popen[bytes]
) -> None:
    gpus = [{"index": 0, "processes": [[spinning.pid, 5 << 30], [1 << 30, None]]}]
    monkeypatch.setattr(processes, "INITIAL_PIDS", -1)  # we are in a container, and it does not use the driver
    found = {record["pid"]: record for record in Processes().read(gpus) if "gpus" in record}
    assert found[spinning.pid]["hidden"] and found[1 << 30]["hidden"] and "name" not in found[spinning.pid]
    assert found[spinning.pid]["gpus"] == {"0": 5 << 30}
