"""The README's promises that a program can check: its tree, its make targets, its settings."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from typer.main import get_command

from picollm import cli
from picollm.run import config

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("picollm", "stages", "tui", "benchmarks")
README = (ROOT / "README.md").read_text(encoding="utf-8")


def tree() -> dict[str, str]:
    """The paths of the tree under "Every file" and what is said of each. Two spaces a level; folders end in a slash."""
    block = README.partition("## Every file")[2].partition("```")[2].partition("```")[0]
    found: dict[str, str] = {}
    folders: list[str] = []
    for line in block.strip().splitlines():
        match = re.fullmatch(r"( *)(\S+)(?: +(\S.*))?", line)
        assert match, f"no tree line: {line!r}"
        level = len(match[1]) // 2
        del folders[level:]
        if match[2].endswith("/"):
            folders.append(match[2])
        found["".join(folders) + ("" if match[2].endswith("/") else match[2])] = match[3] or ""
    return found


def tracked() -> list[str]:
    """What git knows of the four folders, without the empty files that only mark a package."""
    done = subprocess.run(["git", "ls-files", *FOLDERS], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [name for name in done.stdout.split() if (ROOT / name).is_file() and (ROOT / name).stat().st_size]


def test_tree_names_every_file() -> None:
    named = tree()
    assert [name for name in tracked() if name.endswith(".py") and name not in named] == []


def test_tree_names_nothing_else() -> None:
    assert [name for name in tree() if not (ROOT / name).exists()] == []


def test_tree_says_what_each_file_is() -> None:
    assert [name for name, text in tree().items() if not text and not name.endswith("/")] == []


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    assert set(re.findall(r"^\s*make ([a-z-]+)", README, re.M)) | set(re.findall(r"`make ([a-z-]+)", README)) <= targets


def test_commands_are_those_of_the_program() -> None:
    known = set(get_command(cli.app).commands)  # type: ignore[attr-defined]
    table = README.partition("| command |")[2].partition("\n\n")[0]
    assert set(re.findall(r"^\| `picollm (\w+)`", table, re.M)) == known
    assert set(re.findall(r"\bpicollm (\w+) --", README)) <= known


def test_settings_exist() -> None:
    known = config.knobs()
    tables = {key.partition(".")[0] for key in known}
    quoted = [key for key in re.findall(r"`(\w+\.\w+)`", README) if key.partition(".")[0] in tables]
    assert [key for key in re.findall(r"--set (\w+\.\w+)=", README) + quoted if key not in known] == []


def test_profiles_exist() -> None:
    rows = README.partition("| profile |")[2].partition("\n\n")[0]
    named = re.findall(r"^\| `(\w[\w-]*)`", rows, re.M)
    assert named
    assert [name for name in named if name not in config.profile_names()] == []
