"""What a person gets who installs a wheel instead of working in a checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NO_INDEX = ("No matching distribution found for hatchling", "Temporary failure in name resolution", "timed out")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--retries=1", "--wheel-dir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode and any(sign in done.stderr for sign in NO_INDEX):
        pytest.skip("no package index to fetch the build backend from")
    assert done.returncode == 0, done.stderr
    (file,) = folder.glob("*.whl")
    return file


def tracked(*folders: str) -> list[str]:
    """What git knows of the packages; skips outside a checkout."""
    done = subprocess.run(["git", "ls-files", *folders], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout")
    return done.stdout.split()


@pytest.mark.slow
def test_wheel_holds_every_file_of_the_packages_and_the_settings(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert "picollm/picollm.toml" in names
    assert [name for name in tracked("picollm", "stages", "tui") if name not in names] == []


@pytest.mark.slow
def test_settings_load_from_an_unpacked_wheel(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = "from picollm.run import config; config.load(); print(config.default_file())"
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "PYTHONSAFEPATH": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()) == tmp_path / "picollm" / "picollm.toml"


@pytest.mark.slow
def test_wheel_is_named_and_starts_both_commands(wheel: Path) -> None:
    assert wheel.name.startswith("picollm_tui-")
    archive = zipfile.ZipFile(wheel)
    (entry,) = [name for name in archive.namelist() if name.endswith("entry_points.txt")]
    text = archive.read(entry).decode()
    assert "picollm = picollm.cli:main" in text
    assert "picollm-tui = tui.app:main" in text
