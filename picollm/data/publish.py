"""Folders that appear whole or not at all.

Content-addressed results (texts, token shards) are filled in a hidden sibling, synced, and renamed to their final
name. Two processes may race: the content is the same by construction, so the loser throws its copy away.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from picollm.run.errors import UserError

MANIFEST = "manifest.json"
LEFTOVER_AGE_S = 24 * 3600.0  # a hidden sibling older than this belongs to a process that was killed


def publish(final: Path, fill: Callable[[Path], dict[str, Any]]) -> None:
    """Make the folder `final`: `fill(folder)` writes the files and returns the manifest, written last.

    The manifest is given a `files` table {name: {bytes, sha256}}. A complete `final` is left as it is; a damaged one
    is replaced. Raises UserError when the disk is full or the place not writable; nothing is left behind then.
    """
    publish_named(final.parent, lambda folder: (final.name, fill(folder)))


def publish_named(parent: Path, fill: Callable[[Path], tuple[str, dict[str, Any]]]) -> Path:
    """`publish` for content named by what was written: `fill` returns (name, manifest), this returns the folder."""
    try:
        parent.mkdir(parents=True, exist_ok=True)
        _sweep(parent)
        folder = parent / f".{os.getpid()}.{secrets.token_hex(4)}.tmp"
        folder.mkdir()
        try:
            name, manifest = fill(folder)
            if problem_with(parent / name) is None:
                return parent / name
            manifest["files"] = {path.name: _entry(path) for path in sorted(folder.iterdir())}
            (folder / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=1))
            for path in [*folder.iterdir(), folder]:
                sync(path)
            _rename(folder, parent / name)
            sync(parent)
            return parent / name
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        raise UserError(
            f"cannot write {parent}: {error.strerror or error}; free space there, or set PICOLLM_HOME"
        ) from None


def problem_with(folder: Path) -> str | None:
    """None when every file of the manifest is there in its full size, else what is wrong. Cheap; see `verify`."""
    try:
        manifest = read_manifest(folder)
        for name, entry in manifest["files"].items():
            size = (folder / name).stat().st_size
            if size != entry["bytes"]:
                return f"{name} has {size} bytes instead of {entry['bytes']}"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, msgspec.DecodeError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST} is unreadable ({error})"
    return None


def verify(folder: Path) -> None:
    """Read every file and compare its sha256 with the manifest's. Raises UserError naming the file that differs."""
    problem = problem_with(folder)
    for name, entry in ({} if problem else read_manifest(folder)["files"]).items():
        if _entry(folder / name)["sha256"] != entry["sha256"]:
            problem = f"{name} does not match its checksum"
    if problem:
        raise UserError(f"{folder} is damaged: {problem}; delete the folder and run its stage again")


def read_manifest(folder: Path) -> dict[str, Any]:
    return msgspec.json.decode((folder / MANIFEST).read_bytes(), type=dict[str, Any])


def _rename(folder: Path, final: Path) -> None:
    for _ in range(3):
        try:
            os.rename(folder, final)
            return
        except OSError:
            if not final.exists():
                raise
        if problem_with(final) is None:
            return
        broken = final.with_name(f".{final.name}.{secrets.token_hex(4)}.tmp")
        os.rename(final, broken)
        shutil.rmtree(broken, ignore_errors=True)
    raise OSError(f"{final.name} is being replaced by another process")


def sha256(path: Path) -> str:
    """Hex sha256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _entry(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}


def sync(path: Path) -> None:
    """fsync a file, or a folder so that its names last."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sweep(folder: Path) -> None:
    for path in folder.glob(".*.tmp"):
        try:
            old = time.time() - path.stat().st_mtime > LEFTOVER_AGE_S
        except FileNotFoundError:
            continue
        if old:
            shutil.rmtree(path, ignore_errors=True)
