"""Checkpoints that are either whole or not there.

`<dir>/step-000200/` holds `model.safetensors`, `optimizer.safetensors` (optional), `meta.json` and `manifest.json` (the
size and sha256 of the other files). A save writes a temporary sibling, fsyncs every file and both directories, and
renames: a kill at any moment leaves the earlier checkpoints as they were, and at most a `.saving-*` folder that the
next save removes. Nothing is ever unpickled.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from picollm.data.publish import sha256, sync
from picollm.model.gpt import GPT
from picollm.run.errors import UserError
from picollm.run.scaling import ModelShape
from picollm.train.optim import Optimizer

FORMAT = 1
_FINISHED = re.compile(r"step-(\d{6,})")
_UNFINISHED = ".saving-"
_DOOMED = ".removing-"


class FileEntry(msgspec.Struct, frozen=True):
    bytes: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True):
    format: int
    files: dict[str, FileEntry]


class CheckpointInfo(msgspec.Struct, frozen=True):
    """What a save left behind; `hash` is the sha256 of the weights' file, `bytes` counts all files."""

    path: Path
    step: int
    hash: str
    bytes: int
    seconds: float


def save(
    folder: Path, step: int, model: nn.Module, optimizer: Optimizer | None, meta: dict[str, Any], *, keep_last: int = 2
) -> CheckpointInfo:
    """Write `<folder>/step-<step>` whole or not at all, then drop all but the newest `keep_last` checkpoints.

    `meta` must survive JSON; "step", "format" and (for a GPT) "shape" are added. An earlier checkpoint of the same step
    is replaced. Raises UserError when the disk has no room for it or refuses the write.
    """
    started = time.perf_counter()
    files = {"model.safetensors": _on_cpu(model.state_dict())}
    if optimizer is not None:
        files["optimizer.safetensors"] = _on_cpu(optimizer.state_dict())
    meta = {**meta, "step": step, "format": FORMAT}
    shape = getattr(model, "shape", None)
    if isinstance(shape, ModelShape):
        meta["shape"] = msgspec.to_builtins(shape)
    needed = sum(t.numel() * t.element_size() for tensors in files.values() for t in tensors.values()) + 2**20

    final = path_of(folder, step)
    draft = folder / f"{_UNFINISHED}{final.name}-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _sweep(folder)
        _check_room(folder, needed)
        draft.mkdir()
        entries = {}
        for name, tensors in files.items():
            save_file(tensors, draft / name)
            entries[name] = _seal(draft / name)
        (draft / "meta.json").write_bytes(msgspec.json.format(msgspec.json.encode(meta)))
        entries["meta.json"] = _seal(draft / "meta.json")
        (draft / "manifest.json").write_bytes(msgspec.json.format(msgspec.json.encode(Manifest(FORMAT, entries))))
        sync(draft / "manifest.json")
        sync(draft)
        if final.exists():
            final.rename(folder / f"{_DOOMED}{final.name}-{os.getpid()}")
        draft.rename(final)
        sync(folder)
        for old in finished(folder)[keep_last:] if keep_last > 0 else []:
            # Renamed first: a folder half removed must not look like a checkpoint half written.
            old.rename(folder / f"{_DOOMED}{old.name}-{os.getpid()}")
        _sweep(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(draft, ignore_errors=True)
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        advice = "free some space" if full or isinstance(error, SafetensorError) else "check the folder's permissions"
        raise UserError(f"cannot save a checkpoint in {folder}: {error}; {advice}, then resume") from error
    total = sum(entry.bytes for entry in entries.values())
    return CheckpointInfo(final, step, entries["model.safetensors"].sha256, total, time.perf_counter() - started)


def path_of(folder: Path, step: int) -> Path:
    """Where `save` puts the checkpoint of `step`."""
    return folder / f"step-{step:06d}"


def finished(folder: Path) -> list[Path]:
    """Checkpoint folders under their final name, newest step first; not verified."""
    if not folder.is_dir():
        return []
    found = [(int(m[1]), path) for path in folder.iterdir() if (m := _FINISHED.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True)]


def clear(folder: Path) -> None:
    """Remove every checkpoint in `folder`, for a stage that starts over."""
    for path in finished(folder):
        path.rename(folder / f"{_DOOMED}{path.name}-{os.getpid()}")
    if folder.is_dir():
        _sweep(folder)


def problem(path: Path) -> str | None:
    """Why this checkpoint cannot be trusted, or None when every file has its recorded size and hash."""
    try:
        manifest = msgspec.json.decode((path / "manifest.json").read_bytes(), type=Manifest)
    except FileNotFoundError:
        return "it has no manifest.json"
    except (msgspec.DecodeError, OSError) as error:
        return f"its manifest.json is unreadable ({error})"
    if manifest.format != FORMAT:
        return f"it has format {manifest.format} and this program reads format {FORMAT}"
    for name, entry in manifest.files.items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != entry.bytes:
            return f"{name} has {file.stat().st_size} bytes instead of {entry.bytes}"
    for name, entry in manifest.files.items():
        if sha256(path / name) != entry.sha256:
            return f"{name} does not match its sha256"
    return None


def latest(folder: Path, say: Callable[[str], None] | None = None) -> Path | None:
    """The newest checkpoint that is whole; `say` is told which newer ones were passed over, and why."""
    for path in finished(folder):
        wrong = problem(path)
        if wrong is None:
            return path
        if say is not None:
            say(f"skipping checkpoint {path.name}: {wrong}")
    return None


def read_meta(path: Path) -> dict[str, Any]:
    """`meta.json` of a checkpoint. Raises UserError if it cannot be read."""
    try:
        return msgspec.json.decode((path / "meta.json").read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.DecodeError) as error:
        raise UserError(f"{path} is not a checkpoint that can be read: {error}") from error


def weights_hash(path: Path) -> str:
    """sha256 of the weights, as the manifest records it. Raises UserError if it cannot be read."""
    try:
        manifest = msgspec.json.decode((path / "manifest.json").read_bytes(), type=Manifest)
        return manifest.files["model.safetensors"].sha256
    except (OSError, msgspec.DecodeError, KeyError) as error:
        raise UserError(f"{path} is not a whole checkpoint: {error!r}") from error


def info(path: Path) -> CheckpointInfo:
    """What the save that made `path` left behind, in no time. Raises UserError if it cannot be read."""
    try:
        entries = msgspec.json.decode((path / "manifest.json").read_bytes(), type=Manifest).files
        total = sum(entry.bytes for entry in entries.values())
        return CheckpointInfo(path, int(read_meta(path)["step"]), entries["model.safetensors"].sha256, total, 0.0)
    except (OSError, msgspec.DecodeError, KeyError) as error:
        raise UserError(f"{path} is not a whole checkpoint: {error!r}") from error


def check_tokenizer(meta: dict[str, Any], tokenizer_hash: str, where: Path) -> None:
    """Refuse weights that were trained with another tokenizer: they would produce gibberish. Raises UserError."""
    theirs = meta.get("tokenizer")
    if theirs != tokenizer_hash:
        raise UserError(
            f"{where} was trained with another tokenizer ({str(theirs)[:12]}, not {tokenizer_hash[:12]}): "
            "use the tokenizer of its own run"
        )


def load(path: Path, model: nn.Module, optimizer: Optimizer | None = None) -> dict[str, Any]:
    """Copy a checkpoint into `model` (and `optimizer`) on whatever device they are; returns its meta.

    Raises UserError when files are missing, damaged or of another shape.
    """
    meta = read_meta(path)
    try:
        model.load_state_dict(load_file(path / "model.safetensors"))
        if optimizer is not None:
            optimizer.load_state_dict(load_file(path / "optimizer.safetensors"))
    except (OSError, SafetensorError, KeyError, RuntimeError) as error:
        raise UserError(f"cannot load {path}: {str(error).splitlines()[0]}") from error
    return meta


def load_model(
    path: Path, *, device: torch.device | str = "cpu", tokenizer_hash: str | None = None
) -> tuple[GPT, dict[str, Any]]:
    """Build the model a checkpoint describes and fill it; for evaluation and chat. Returns the model and its meta.

    Raises UserError as `load` does, and when `tokenizer_hash` is given and differs from the one trained with.
    """
    meta = read_meta(path)
    if tokenizer_hash is not None:
        check_tokenizer(meta, tokenizer_hash, path)
    try:
        shape = msgspec.convert(meta["shape"], ModelShape)
    except (KeyError, msgspec.ValidationError) as error:
        raise UserError(f"{path}/meta.json does not describe a model: {error!r}") from error
    model = GPT(shape).to(device)
    load(path, model)
    return model.eval(), meta


def _on_cpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous and on the host, with no two sharing memory, as safetensors wants them."""
    return {name: t.detach().to("cpu").clone(memory_format=torch.contiguous_format) for name, t in tensors.items()}


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"no room for a checkpoint in {folder}: it needs {needed / 2**20:.0f} MiB and {free / 2**20:.0f} MiB are "
            "free; free some space, then resume"
        )


def _sweep(folder: Path) -> None:
    """Remove what a killed save left: one process saves into a folder at a time, so none of it is in use."""
    for path in folder.iterdir():
        if path.name.startswith((_UNFINISHED, _DOOMED)):
            shutil.rmtree(path, ignore_errors=True)


def _seal(path: Path) -> FileEntry:
    sync(path)
    return FileEntry(path.stat().st_size, sha256(path))
