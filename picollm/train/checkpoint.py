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
from concurrent.futures import ThreadPoolExecutor
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
from picollm.run.structs import complete
from picollm.train.sharded import AnyOptimizer

FORMAT = 2  # 1: models of two layers backed out their last layer, see `check_format`
_FINISHED = re.compile(r"step-(\d{6,})")
_UNFINISHED = ".saving-"
_DOOMED = ".removing-"


class FileEntry(msgspec.Struct, frozen=True):
    bytes: int
    sha256: str


@complete
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


class Keep(msgspec.Struct, frozen=True):
    """Which checkpoints of a folder outlive a save: those of any of the rules.

    Attributes:
        last: so many of the newest; 0 keeps every one.
        best: also the one whose meta has the lowest "score".
        milestone: also every one whose step is a multiple of it; 0 for none.
    """

    last: int = 2
    best: bool = False
    milestone: int = 0


class Snapshot(msgspec.Struct, frozen=True):
    """What goes into a checkpoint, on the host and independent of what training does next."""

    files: dict[str, dict[str, Tensor]]
    shape: ModelShape | None
    copied: Any  # the CUDA event after the last copy, or None when everything is there

    @property
    def bytes(self) -> int:
        return sum(t.numel() * t.element_size() for tensors in self.files.values() for t in tensors.values())


def snapshot(
    model: nn.Module, optimizer: AnyOptimizer | None, buffers: dict[str, Tensor] | None = None, *, wanted: bool = True
) -> Snapshot | None:
    """Copy model and optimizer to the host; on CUDA into page-locked memory while the program goes on.

    A sharded optimizer is gathered tensor by tensor, so every rank must call this; `wanted` says on which of them a
    snapshot is made. `buffers` keeps the page-locked memory, which is slow to get, for the next one.
    """
    files: dict[str, dict[str, Tensor]] = {}
    parts = [("model.safetensors", iter(model.state_dict().items() if wanted else ()))]
    if optimizer is not None:
        parts.append(("optimizer.safetensors", optimizer.state()))
    for file, tensors in parts:
        for name, t in tensors:
            if wanted:
                files.setdefault(file, {})[name] = _to_host(f"{file}/{name}", t.detach(), buffers)
    if not wanted:
        return None
    if optimizer is not None:
        files.setdefault("optimizer.safetensors", {})  # without moments before the first step
    shape = getattr(model, "shape", None)
    copied = None
    if any(t.is_pinned() for tensors in files.values() for t in tensors.values()):
        copied = torch.cuda.Event()
        copied.record()
    return Snapshot(files, shape if isinstance(shape, ModelShape) else None, copied)


def save(
    folder: Path,
    step: int,
    model: nn.Module,
    optimizer: AnyOptimizer | None,
    meta: dict[str, Any],
    *,
    keep: Keep = Keep(),  # noqa: B008  frozen
) -> CheckpointInfo:
    """`write` of a `snapshot`, in one process."""
    taken = snapshot(model, optimizer)
    assert taken is not None
    return write(folder, step, taken, meta, keep=keep)


def write(folder: Path, step: int, taken: Snapshot, meta: dict[str, Any], *, keep: Keep) -> CheckpointInfo:
    """Write `<folder>/step-<step>` whole or not at all, then drop the checkpoints that `keep` does not.

    `meta` must survive JSON; "step", "format" and (for a GPT) "shape" are added. An earlier checkpoint of the same step
    is replaced. May run in a thread of its own: it calls no collective. Raises UserError when the disk has no room for
    it or refuses the write.
    """
    started = time.perf_counter()
    if taken.copied is not None:
        taken.copied.synchronize()
    meta = {**meta, "step": step, "format": FORMAT}
    if taken.shape is not None:
        meta["shape"] = msgspec.to_builtins(taken.shape)
    final = path_of(folder, step)
    draft = folder / f"{_UNFINISHED}{final.name}-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _sweep(folder)
        _check_room(folder, taken.bytes + 2**20)
        draft.mkdir()
        (draft / "meta.json").write_bytes(msgspec.json.format(msgspec.json.encode(meta)))
        with ThreadPoolExecutor(1) as pool:  # one file is synced and hashed while the next is written
            sealed = {}
            for name, tensors in taken.files.items():
                save_file(tensors, draft / name)
                sealed[name] = pool.submit(_seal, draft / name)
            sealed["meta.json"] = pool.submit(_seal, draft / "meta.json")
        entries = {name: work.result() for name, work in sealed.items()}
        (draft / "manifest.json").write_bytes(msgspec.json.format(msgspec.json.encode(Manifest(FORMAT, entries))))
        sync(draft / "manifest.json")
        sync(draft)
        if final.exists():
            final.rename(folder / f"{_DOOMED}{final.name}-{os.getpid()}")
        draft.rename(final)
        sync(folder)
        for old in _superseded(folder, keep):
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


def _superseded(folder: Path, keep: Keep) -> list[Path]:
    """The checkpoints that no rule keeps."""
    if keep.last == 0:
        return []
    paths = finished(folder)
    kept = set(paths[: keep.last])
    if keep.milestone:
        kept |= {path for path in paths if int(path.name.removeprefix("step-")) % keep.milestone == 0}
    if keep.best:
        scores = {path: score for path in paths if (score := _score(path)) is not None}
        kept |= {min(scores, key=lambda path: scores[path])} if scores else set()
    return [path for path in paths if path not in kept]


def _score(path: Path) -> float | None:
    """What a checkpoint was worth when it was saved, lower being better; None when nobody knows."""
    try:
        score = read_meta(path).get("score")
    except UserError:
        return None
    return float(score) if isinstance(score, (int, float)) else None


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
    if manifest.format not in (1, FORMAT):
        return f"it has format {manifest.format} and this program reads formats up to {FORMAT}"
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


def check_format(meta: dict[str, Any], where: Path) -> None:
    """Refuse weights that meant something else when they were saved: they would produce gibberish. Raises UserError."""
    shape = meta.get("shape") or {}
    if meta.get("format") == 1 and shape.get("depth") == 2 and shape.get("backout"):
        raise UserError(
            f"{where} was made by an earlier picollm, which computed models of two layers otherwise: "
            "make its run's models again, beginning with pretrain"
        )


def load(path: Path, model: nn.Module, optimizer: AnyOptimizer | None = None) -> dict[str, Any]:
    """Copy a checkpoint into `model` (and `optimizer`) on whatever device they are; returns its meta.

    Raises UserError when files are missing, damaged, of another shape, or too old.
    """
    meta = read_meta(path)
    check_format(meta, path)
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


def _to_host(key: str, t: Tensor, buffers: dict[str, Tensor] | None) -> Tensor:
    """A contiguous copy on the host that shares memory with nothing, as safetensors wants it."""
    if t.device.type != "cuda" or buffers is None:
        return t.to("cpu", copy=True, memory_format=torch.contiguous_format)
    if key not in buffers:
        try:
            buffers[key] = torch.empty(t.shape, dtype=t.dtype, pin_memory=True)
        except RuntimeError:  # no memory to lock: an ordinary copy, which the program waits for
            return t.to("cpu", memory_format=torch.contiguous_format)
    return buffers[key].copy_(t, non_blocking=True)


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
