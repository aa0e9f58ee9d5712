"""Runs as things one keeps: rename, archive, restore, delete, copy, and the notes that belong to them.

A run that is at work is refused, and nobody can start it meanwhile: its conductor's lock is ours until we are done.
Each of these is one rename of a folder in the runs folder, so a run is wholly where it was or wholly where it goes.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from picollm.run import branch, lease, pipeline, serving
from picollm.run import config as settings
from picollm.run.errors import UserError
from picollm.run.folder import Run, name_of_new, runs_folder, write_atomic

ARCHIVE = ".archive"
DELETING = ".deleting-"
ASIDE = ".aside-"
NOTES_LIMIT = 64 << 10
PATIENCE_S = 0.5


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """One folder or file of a run: its bytes on disk, and those of them that other runs hold, too."""

    name: str
    bytes: int
    shared: int = 0


def archive_folder() -> Path:
    return runs_folder() / ARCHIVE


def archived() -> list[Run]:
    """Every run in the archive, by name."""
    try:
        folders = sorted(archive_folder().iterdir())
    except OSError:
        return []
    return [Run(folder) for folder in folders if (folder / "config.toml").is_file()]


def is_archived(run: Run) -> bool:
    return run.dir.parent.resolve() == archive_folder().resolve()


def find_archived(name: str) -> Run:
    """Raises `UserError` when the archive has no run of that name."""
    run = Run(archive_folder() / name)
    if not name or os.sep in name or not run.exists():
        known = ", ".join(other.name for other in archived()) or "it is empty"
        raise UserError(f"no run '{name}' in the archive ({known}); picollm runs --archived lists it")
    return run


def rename(run: Run, name: str) -> Run:
    """The run under its new name. Raises `UserError` for a bad or taken name, or a run at work."""
    if name == run.name:
        return run
    if is_archived(run):
        raise UserError(f"'{run.name}' is archived: restore it first")
    return _move(run, name_of_new(name))


def archive(run: Run) -> Run:
    """Out of sight, with all it made: into the runs folder's `.archive`. Raises `UserError` as `rename` does."""
    if is_archived(run):
        raise UserError(f"'{run.name}' is archived already")
    target = archive_folder() / run.name
    if target.exists():
        raise UserError(f"the archive has a run '{run.name}' already; rename one of the two first")
    return _move(run, target)


def restore(run: Run) -> Run:
    """Back among the runs. A folder in its place that is no run is kept, `set_aside`. Raises `UserError` when its name
    is taken there."""
    if not is_archived(run):
        raise UserError(f"'{run.name}' is not archived")
    target = name_of_new(run.name)
    with _at_rest(run):
        if target.is_dir() and any(target.iterdir()):
            target.rename(target.with_name(f"{run.name}{ASIDE}{time.strftime('%Y%m%d-%H%M%S')}"))
        _rename(run, target)
    return Run(target)


def set_aside(run: Run) -> str:
    """Where to find what stood in the place of a run when it was restored, in words; "" when nothing did."""
    found = ", ".join(str(folder) for folder in sorted(run.dir.parent.glob(f"{run.name}{ASIDE}*")))
    return f"what lay in its place is kept in {found}" if found else ""


def delete(run: Run) -> int:
    """Remove the folder with all in it; returns the bytes freed. What other runs share with it stays theirs.

    Raises `UserError` for a run at work, or where something cannot be removed.
    """
    parts = contents(run)
    with _at_rest(run):
        gone = run.dir.with_name(f"{DELETING}{run.name}-{os.getpid()}-{time.time_ns()}")
        try:
            os.rename(run.dir, gone)
            (gone / "config.toml").unlink(missing_ok=True)  # from here on it is no run, whatever happens
        except OSError as error:
            raise UserError(f"cannot delete {run.dir}: {error.strerror}") from None
    _remove(gone)
    for left in (*runs_folder().glob(f"{DELETING}*"), *archive_folder().glob(f"{DELETING}*")):
        shutil.rmtree(left, ignore_errors=True)  # of deletions that were killed
    return sum(part.bytes - part.shared for part in parts)


def copy(run: Run, name: str, changes: dict[str, Any], stage: str = "") -> Run:
    """A new run with the settings of this one and `changes`, by dotted key; `stage`: what this one made before that
    stage is taken over (`branch`), else nothing is. Raises `UserError`."""
    if stage:
        return branch.branch(run, name, stage, changes)
    config = settings.build(settings.flat(run.wishes()) | changes)
    new = Run.create(name, config)
    with contextlib.suppress(FileNotFoundError):
        write_atomic(new.dir / "prompts.txt", (run.dir / "prompts.txt").read_bytes())
    return new


def contents(run: Run) -> list[Part]:
    """What a run's folder holds, largest first: what goes when it is deleted. Files linked elsewhere count as shared.

    Links are not followed: texts and shards that runs share lie in PICOLLM_HOME and stay.
    """
    parts = []
    with contextlib.suppress(OSError):
        for entry in os.scandir(run.dir):
            size, shared = _measure(Path(entry.path))
            parts.append(Part(name=entry.name + "/" * entry.is_dir(follow_symlinks=False), bytes=size, shared=shared))
    return sorted(parts, key=lambda part: (-part.bytes, part.name))


def notes(run: Run) -> str:
    """The person's own words about this run, "" when there are none."""
    try:
        with open(run.dir / "notes.md", "rb") as file:
            return file.read(NOTES_LIMIT).decode("utf-8", errors="replace").strip()
    except OSError:
        return ""


def write_notes(run: Run, text: str) -> None:
    """Keep these words, which the report repeats at its head; none removes the file. Raises `UserError`."""
    run.require()
    file = run.dir / "notes.md"
    if len(text.encode()) > NOTES_LIMIT:
        raise UserError(f"notes of {len(text.encode()):,} bytes: at most {NOTES_LIMIT:,} are kept")
    if text.strip():
        write_atomic(file, text.strip() + "\n")
    else:
        file.unlink(missing_ok=True)


def at_work(run: Run) -> str:
    """What goes on in this run, in words; "" when nothing does. An idle inference process does not count."""
    busy = [name for name in pipeline.NAMES if lease.is_held(run.lock_file(name))]
    busy += [f"job {lock.parent.name}" for lock in sorted((run.dir / "jobs").glob("*/lock"))
             if lock.parent.name != "serve" and lease.is_held(lock)]  # fmt: skip
    if not busy and lease.is_held(run.conductor_lock):
        return "its conductor"
    return ", ".join(busy)


@contextlib.contextmanager
def _at_rest(run: Run) -> Iterator[None]:
    """Nothing of this run lives, and no conductor starts while we are inside. Its inference process is ended."""
    run.require()
    if run.dir.is_symlink():
        raise UserError(f"{run.dir} is a link to {os.readlink(run.dir)}; move or delete what it points to yourself")
    alone = lease.Lock(run.conductor_lock)
    try:
        free = alone.exclusive(patience=PATIENCE_S)
        busy = at_work(run) if free else (at_work(run) or "its conductor")
        if busy and not (free and busy == "its conductor"):  # ours, then
            raise UserError(f"run '{run.name}' is at work ({busy}); stop it first: picollm stop --run {run.name}")
        serve = serving.serve_folder(run)
        starting = lease.is_held(serve / "starting")  # by who goes on to write there
        if starting or (lease.is_held(serve / "lock") and not serving.stop_serving(run)):
            raise UserError(
                f"run '{run.name}': its inference process is starting, or runs on another machine; try again later"
            )
        yield
    except OSError as error:
        raise UserError(f"cannot change {run.dir}: {error.strerror}") from None
    finally:
        alone.release()


def _move(run: Run, target: Path) -> Run:
    with _at_rest(run):
        _rename(run, target)
    return Run(target)


def _rename(run: Run, target: Path) -> None:
    try:
        target.parent.mkdir(exist_ok=True)
        os.rename(run.dir, target)
    except OSError as error:
        raise UserError(f"cannot move {run.dir} to {target}: {error.strerror}") from None


def _remove(folder: Path) -> None:
    try:
        shutil.rmtree(folder)
    except OSError as error:
        raise UserError(f"{folder} could not be removed wholly ({error.strerror}: {error.filename})") from None


def _measure(path: Path) -> tuple[int, int]:
    """Bytes on disk of a file, or of all below a folder, and those of them that have another name elsewhere."""
    whole = path.is_dir() and not path.is_symlink()
    files = (Path(folder) / file for folder, _, names in os.walk(path) for file in names) if whole else iter([path])
    size = shared = 0
    for file in files:
        with contextlib.suppress(OSError):
            found = os.lstat(file)
            size += found.st_size
            shared += found.st_size if found.st_nlink > 1 else 0
    return size, shared
