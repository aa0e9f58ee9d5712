from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from picollm.data.publish import problem_with, publish, read_manifest, verify
from picollm.run.errors import UserError


def fill(folder: Path) -> dict[str, Any]:
    (folder / "a.bin").write_bytes(b"12345")
    return {"what": "numbers"}


def test_publish_is_whole(tmp_path: Path) -> None:
    final = tmp_path / "shards" / "abc"
    publish(final, fill)
    assert problem_with(final) is None
    verify(final)
    assert read_manifest(final)["what"] == "numbers"
    assert read_manifest(final)["files"]["a.bin"]["bytes"] == 5
    assert [p.name for p in final.parent.iterdir()] == ["abc"]


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    def broken(folder: Path) -> dict[str, Any]:
        (folder / "a.bin").write_bytes(b"1")
        raise RuntimeError("killed here")

    with pytest.raises(RuntimeError):
        publish(tmp_path / "abc", broken)
    assert list(tmp_path.iterdir()) == []


def test_disk_full_is_a_user_error(tmp_path: Path) -> None:
    def full(folder: Path) -> dict[str, Any]:
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match=r"No space left on device; free space"):
        publish(tmp_path / "abc", full)
    assert list(tmp_path.iterdir()) == []


def test_the_loser_of_a_race_yields(tmp_path: Path) -> None:
    final = tmp_path / "abc"

    def slow(folder: Path) -> dict[str, Any]:
        publish(final, fill)  # another process finishes first
        return {**fill(folder), "what": "late"}

    publish(final, slow)
    assert read_manifest(final)["what"] == "numbers"
    assert [p.name for p in tmp_path.iterdir()] == ["abc"]


def test_a_damaged_folder_is_seen_and_replaced(tmp_path: Path) -> None:
    final = tmp_path / "abc"
    publish(final, fill)
    (final / "a.bin").write_bytes(b"54321")
    assert problem_with(final) is None
    with pytest.raises(UserError, match=r"a\.bin does not match"):
        verify(final)
    (final / "a.bin").write_bytes(b"1")
    assert "instead of 5" in (problem_with(final) or "")
    publish(final, fill)
    verify(final)
    (final / "a.bin").unlink()
    assert problem_with(final) == "a.bin is missing"
    (final / "manifest.json").write_text("[")
    assert "unreadable" in (problem_with(final) or "")
    assert "missing" in (problem_with(tmp_path / "nowhere") or "")


def test_old_leftovers_are_swept(tmp_path: Path) -> None:
    old, young = tmp_path / ".x.1.tmp", tmp_path / ".y.2.tmp"
    old.mkdir()
    young.mkdir()
    os.utime(old, (1, 1))
    publish(tmp_path / "abc", fill)
    assert not old.exists() and young.exists()
