"""The table of `benchmarks/gpu.py` comes out, and a section that falls over costs the others nothing."""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import psutil
import pytest
import torch

from tests.run.conftest import until

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.py"


@pytest.fixture(scope="module")
def gpu() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_gpu", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def options(**changes) -> argparse.Namespace:
    until = time.time() + 600
    return argparse.Namespace(**{"device": "cpu", "quick": True, "pattern": "SSSL", "until": until, **changes})


@pytest.mark.slow
def test_the_table_at_toy_sizes(tmp_path: Path) -> None:
    out = tmp_path / "rows.json"
    command = [sys.executable, str(SCRIPT), "--quick", "--device", "cpu", "--out", str(out)]
    for name in ("machine", "kernels", "decode"):
        command += ["--only", name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    rows = json.loads(out.read_text())
    assert {row["section"] for row in rows} == {"machine", "kernels", "decode"}
    assert not [row for row in rows if row["what"] == "section" or "FAILED" in row.get("note", "")], done.stdout
    errors = {row["what"]: float(row["error"]) for row in rows if "error" in row}
    assert errors and all(0 < error < 0.1 for error in errors.values()), errors
    assert "goal" not in done.stdout, "toy sizes have no goals"
    assert sum("tok/s decoded" in line for line in done.stdout.splitlines()) >= 2


@pytest.mark.parametrize("fp8", [False, True])
def test_a_training_row(gpu: ModuleType, fp8: bool) -> None:
    from picollm.train.step import Compute

    model = gpu.random_model(gpu.shape_of(12, options()), torch.device("cpu"))
    found, said = gpu.time_steps(model, Compute("bf16", "sdpa", fp8=fp8), 1, 1024, True)
    assert found["tok/s"] > 0 and found["ms"] > 0 and found["compile s"] == 0
    assert found["tok/s"] < 256 / (found["ms"] / 1000), "the update costs something"
    assert len(said) == 1 and said[0].startswith("update")


def test_what_fails_is_a_row_and_the_table_stands(gpu: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    def broken() -> dict[str, str]:
        raise RuntimeError("an illegal memory access was encountered\nmore")

    row = gpu.tried("flash3", broken)
    assert row["note"] == "FAILED RuntimeError: an illegal memory access was encountered"
    rows = gpu.run_section("machine", options(device="nonsense"), time.time() + 600)
    assert rows[-1]["what"] == "section" and "ended with" in rows[-1]["note"] and "nonsense" in rows[-1]["note"]
    gpu.print_table([{"section": "d12", **row}, {"section": "d12", "what": "sdpa", "tok/s": "531,000"}, *rows])
    gpu.print_goals([{"section": "d12", "what": "sdpa", "tok/s": "531,000"}])
    text = capsys.readouterr().out
    assert "illegal memory access" in text and "best here 531,000" in text and "goal d24: not measured" in text


def is_dead(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.slow
def test_a_section_out_of_time_takes_its_processes_along(gpu: ModuleType, tmp_path: Path, monkeypatch) -> None:
    """A compiler's worker that outlived its section would hold the pipe that the next one waits for."""
    script, said = tmp_path / "section.py", tmp_path / "said"
    asked: list[float] = []

    class Timer:
        """The time is up as soon as the section has said something, however long that takes."""

        def __init__(self, seconds: float, kill: Callable[..., None], args: tuple[int, int]) -> None:
            asked.append(seconds)
            self.thread = threading.Thread(target=lambda: until(said.exists) and kill(*args))

        def start(self) -> None:
            self.thread.start()

        def cancel(self) -> None:
            self.thread.join()

    monkeypatch.setattr(gpu, "threading", SimpleNamespace(Thread=threading.Thread, Timer=Timer))
    script.write_text(
        "import json, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print('ROW ' + json.dumps({'section': 'machine', 'what': str(child.pid)}), flush=True)\n"
        f"open({str(said)!r}, 'w').close()\n"
        "time.sleep(600)\n"
    )
    monkeypatch.setattr(gpu, "__file__", str(script))
    child, ended = gpu.run_section("machine", options(), time.time() - 10)
    assert ended["note"] == "out of time" and asked == [5.0]
    until(lambda: is_dead(int(child["what"])))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0 and "no CUDA GPU here" in done.stdout and not done.stderr
