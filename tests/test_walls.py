"""What may never be loaded: the app and the contract stay light, however they are reached."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "numpy", "pyarrow", "stages", "picollm.text", "picollm.data", "picollm.model", "picollm.train",
         "picollm.tasks", "picollm.evals", "picollm.infer", "picollm.serve", "tokenizers", "tiktoken")  # fmt: skip
LAZY = ("httpx", "plotext", "markdown_it", "importlib.metadata", "picollm.run.conductor", "picollm.run.estimate")

PROGRAM = """
import importlib, pkgutil, sys
package = importlib.import_module({package!r})
for found in pkgutil.walk_packages(package.__path__, {package!r} + "."):
    importlib.import_module(found.name)
print(" ".join(sorted(sys.modules)))
"""


def loaded(program: str) -> set[str]:
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize("package", ["tui", "picollm.run"])
def test_no_heavy_module_is_loaded(package: str) -> None:
    modules = loaded(PROGRAM.format(package=package))
    assert f"{package}.app" in modules or f"{package}.folder" in modules
    assert not modules & set(HEAVY)


def test_the_contract_loads_no_screen() -> None:
    assert not {"textual", "rich", "tui"} & loaded(PROGRAM.format(package="picollm.run"))


def test_the_first_frame_waits_for_nothing_it_does_not_show() -> None:
    modules = loaded("import sys, tui.app; print(' '.join(sorted(sys.modules)))")
    assert not modules & set(LAZY)
