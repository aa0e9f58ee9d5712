"""The doctor's checks: each looks at one thing and gives found, wanted and a fix. No torch is loaded.

A check that cannot look says so as a warning; only what would certainly break the run fails.
"""

from __future__ import annotations

import fcntl
import importlib.metadata
import os
import platform
import re
import shutil
import socket
import sys
import tempfile
import urllib.parse
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import msgspec
import psutil

from picollm.run import estimate, memory
from picollm.run.config import Config
from picollm.run.errors import UserError
from picollm.run.folder import Run, picollm_home
from picollm.run.machine import Gpus, control_group, visible_gpus
from picollm.run.memory import GIB
from picollm.run.plan import HUB_SHARDS, at_depth
from picollm.run.scaling import ModelShape

USUAL_DEPTH = 4


class Verdict(msgspec.Struct, frozen=True):
    """`status` is ok, warn or fail."""

    name: str
    status: str
    found: str
    wanted: str = ""
    fix: str = ""


class Check(msgspec.Struct, frozen=True):
    """One thing to look at; `about` says what for, to a person."""

    look: Callable[[Run, Config], Verdict]
    about: str


def run_checks(run: Run, config: Config, only: Collection[str] = ()) -> Iterator[Verdict]:
    """Every check, or those named in `only`, one after the other, as they are ready."""
    for name, check in CHECKS.items():
        if only and name not in only:
            continue
        try:
            yield check.look(run, config)
        except Exception as error:
            yield Verdict(name, "warn", f"could not look: {error}")


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text.partition("+")[0])[:3])


def _python(run: Run, config: Config) -> Verdict:
    good = sys.version_info >= (3, 11)
    fix = "" if good else "make the virtual environment with Python 3.11 or newer"
    return Verdict("python", "ok" if good else "fail", platform.python_version(), "≥ 3.11", fix)


def _packages(run: Run, config: Config) -> Verdict:
    try:
        wanted = importlib.metadata.requires("picollm-tui") or []
    except importlib.metadata.PackageNotFoundError:
        return Verdict("packages", "warn", "picollm-tui is not installed (run from a folder?)", fix="pip install -e .")
    wrong = []
    count = 0
    for line in wanted:
        match = re.match(r"([A-Za-z0-9_.-]+)\s*([^;]*)(;.*extra.*)?", line)
        if not match or match[3]:
            continue
        count += 1
        try:
            have = importlib.metadata.version(match[1])
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{match[1]} is missing")
            continue
        for operator, bound in re.findall(r"(>=|<)([\d.]+)", match[2]):
            below = _version(have) < _version(bound)
            if below if operator == ">=" else not below:
                wrong.append(f"{match[1]} {have}, wanted {operator}{bound}")
    if wrong:
        return Verdict("packages", "fail", "; ".join(wrong), "all present", "pip install -e . -c constraints.txt")
    return Verdict("packages", "ok", f"{count} packages, versions fit")


def _torch(run: Run, config: Config) -> Verdict:
    try:
        have = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return Verdict("torch", "fail", "not installed", "≥ 2.9", "pip install torch -c constraints.txt")
    good = _version(have) >= (2, 9)
    return Verdict("torch", "ok" if good else "fail", have, "≥ 2.9", "" if good else "pip install -U torch")


def _cores(run: Run, config: Config) -> Verdict:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    load = os.getloadavg()[0]
    found = f"{usable} usable, load {load:.1f}"
    if load > 1.5 * usable:
        return Verdict("cpu", "warn", found, "an idle machine", "other work here makes the plan's times too short")
    return Verdict("cpu", "ok", found)


def _memory(run: Run, config: Config) -> Verdict:
    """Host memory: on a CPU for a training step of a single row, beside a GPU for the copy that is being saved."""
    free = min(psutil.virtual_memory().available, memory_limit())
    shape = _expected_shape(config)
    step = memory.step_bytes(shape, 1, memory.How(device="cpu", checkpointing=config.machine.checkpointing != "off"))
    host = step["weights"] + step["optimizer"] if visible_gpus() and config.machine.device != "cpu" else step["total"]
    need = host + 1.2 * GIB  # Python, torch and the app
    found, wanted = f"{free / GIB:.1f} GiB available", f"≥ {need / GIB:.1f} GiB at depth {shape.depth}"
    if free < need:
        return Verdict("memory", "fail", found, wanted, "close other programs, or use a smaller model.depth")
    return Verdict("memory", "ok" if free > 2 * need else "warn", found, wanted)


def _expected_shape(config: Config) -> ModelShape:
    """The model as set, or with the depth that a budget on a small machine leads to."""
    return at_depth(config, config.model.depth or USUAL_DEPTH)


def memory_limit() -> int:
    """Bytes that the control group of this process may use; a very large number where there is no limit."""
    return control_group()[0]


def _disk(run: Run, config: Config) -> Verdict:
    """Checkpoints lie in the run, text and token shards in the cache folder: two disks, or one for both."""
    shape = _expected_shape(config)
    text = estimate.text_bytes(config) or sum(f.stat().st_size for f in _own_files(Path(config.data.source)))
    need = estimate.disk(config, shape, text)
    places = {
        "run": (run.dir, need["checkpoints"]),
        "PICOLLM_HOME": (picollm_home(), need["total"] - need["checkpoints"]),
    }
    found, wanted, by_disk = [], [], dict[int, list[int]]()
    for label, (path, share) in places.items():
        while not path.exists():
            path = path.parent
        free = shutil.disk_usage(path).free
        found.append(f"{label} {free / GIB:.1f} GiB free")
        wanted.append(f"{label} {share / GIB:.1f} GiB")
        total = by_disk.setdefault(path.stat().st_dev, [free, 0])
        total[1] += share
    short = [free - needed for free, needed in by_disk.values()]
    status = "fail" if min(short) < 0 else "warn" if min(short) < GIB else "ok"
    fix = "" if status == "ok" else "free space, or set PICOLLM_RUNS and PICOLLM_HOME to another disk"
    return Verdict("disk", status, ", ".join(found), f"{', '.join(wanted)} at depth {shape.depth}", fix)


def _own_files(source: Path) -> Iterator[Path]:
    source = source.expanduser()
    yield from (file for file in (source.rglob("*") if source.is_dir() else [source]) if file.is_file())


def _writable(name: str, folder: Path, variable: str) -> Verdict:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            file.write(b"x" * 4096)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return Verdict(
            name, "fail", f"{folder}: {error.strerror}", "writable", f"fix its permissions or set {variable}"
        )
    return Verdict(name, "ok", f"{folder} is writable")


def _run_folder(run: Run, config: Config) -> Verdict:
    return _writable("run folder", run.dir, "PICOLLM_RUNS")


def _home(run: Run, config: Config) -> Verdict:
    return _writable("cache folder", picollm_home(), "PICOLLM_HOME")


def _locks(run: Run, config: Config) -> Verdict:
    """flock must exclude on the run's file system: liveness rests on it."""
    with tempfile.NamedTemporaryFile(dir=run.dir) as file, open(file.name, "rb") as second:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return Verdict("file locks", "ok", "flock works here")
    return Verdict("file locks", "fail", "flock does not exclude here", "flock", "put PICOLLM_RUNS on a local disk")


def _compiler(run: Run, config: Config) -> Verdict:
    found = next((path for name in ("g++", "clang++", "c++") if (path := shutil.which(name))), None)
    if found:
        return Verdict("compiler", "ok", found)
    return Verdict("compiler", "warn", "no C++ compiler", "g++ or clang++", "training works without one, more slowly")


def _gpu(run: Run, config: Config) -> Verdict:
    gpus = Gpus()
    records = gpus.read()
    if records:
        names = ", ".join(f"{r.get('name', '?')} {r.get('memory_total', 0) / GIB:.0f} GiB" for r in records)
        smallest = min((r["memory_total"] for r in records if r.get("memory_total")), default=0)
        how = memory.How(device="cuda", precision="bf16", world=max(1, visible_gpus()))
        if smallest and config.machine.device in ("auto", "cuda") and visible_gpus():
            try:
                memory.fit(_expected_shape(config), 1, smallest, how, config.machine.checkpointing)
            except UserError as error:
                return Verdict("gpu", "fail", f"{names}: {error}", "a row that fits", "set a smaller model.depth")
        return Verdict("gpu", "ok", names)
    if config.machine.device == "cuda":
        return Verdict("gpu", "fail", gpus.reason or "no GPU", "a CUDA GPU", "set machine.device = 'auto'")
    return Verdict("gpu", "ok", f"none ({gpus.reason or 'NVML lists no device'}): the CPU trains")


def _text(run: Run, config: Config) -> Verdict:
    source = config.data.source
    if source == "pydocs":
        found = Path(os.__file__).parent / "pydoc_data" / "topics.py"
        if found.exists():
            return Verdict("text", "ok", f"Python {platform.python_version()} documentation on this machine")
        return Verdict(
            "text", "warn", f"{found} is missing: the docstrings alone will be read", "", "install python3-doc"
        )
    if source in HUB_SHARDS:
        files = f"{config.data.shards} files to train on and one to validate with"
        return Verdict("text", "ok", f"{source}, from the Hugging Face Hub: {files}")
    path = Path(source).expanduser()
    if path.exists() and os.access(path, os.R_OK):
        return Verdict("text", "ok", str(path))
    return Verdict("text", "fail", f"{path} does not exist or cannot be read", "a file or folder", "set data.source")


def _network(run: Run, config: Config) -> Verdict:
    """Only the Hub is ever asked for anything: no network is fine, unless the text has to come from there."""
    mirror = config.data.mirrors.split(",")[0].strip()
    url = urllib.parse.urlparse(mirror or os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    needed = config.data.source in HUB_SHARDS
    without = "only text that was downloaded before can be used" if needed else "this run needs no network"
    if os.environ.get("HF_HUB_OFFLINE", "0") not in ("0", ""):
        return Verdict("network", "ok", f"HF_HUB_OFFLINE is set; {without}")
    try:
        port = url.port or (443 if url.scheme == "https" else 80)
        with socket.create_connection((url.hostname or "", port), timeout=1.0):
            return Verdict("network", "ok", f"{url.hostname} answers")
    except OSError as error:
        fix = "check the network, or set HF_ENDPOINT or data.mirrors" if needed else ""
        return Verdict("network", "warn" if needed else "ok", f"{url.hostname}: {error}; {without}", "", fix)


def _token(run: Run, config: Config) -> Verdict:
    """Whether a Hub token is set, never what it is."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    there = bool(os.environ.get("HF_TOKEN")) or (home / "token").exists()
    return Verdict("hub token", "ok", "set (not validated: nothing here uses it)" if there else "none (none is needed)")


CHECKS: dict[str, Check] = {
    "python": Check(_python, "The Python that runs all stages."),
    "packages": Check(_packages, "What picollm needs installed, in versions it was tested with."),
    "torch": Check(_torch, "The library that trains. Its version only: it is not loaded here."),
    "cpu": Check(_cores, "The cores that may be used, and whether somebody else uses them now."),
    "memory": Check(_memory, "Free memory, against what a training step of this model takes."),
    "disk": Check(_disk, "Free space where the run and the cache lie, against checkpoints, text and token shards."),
    "run folder": Check(_run_folder, "Whether the run can be written where it lies."),
    "cache folder": Check(_home, "Whether text and token shards, shared by all runs, can be written."),
    "file locks": Check(_locks, "Whether locks exclude there: by them picollm knows which stage is alive."),
    "compiler": Check(_compiler, "A C++ compiler, with which training on a processor is faster."),
    "gpu": Check(_gpu, "The GPUs, and whether this model fits into their memory."),
    "text": Check(_text, "The text to train on."),
    "network": Check(_network, "Whether the place that the text comes from answers."),
    "hub token": Check(_token, "Whether a Hugging Face token is set. What it is, is never shown."),
}
"""In the order in which they are made."""
