"""What the machine is doing: CPU, memory, disks, network, GPUs, and who uses them."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from picollm.run import event_file
from picollm.run import events as ev
from picollm.run.errors import UserError
from picollm.run.folder import picollm_home, write_atomic
from picollm.run.nvml import Gpus
from picollm.run.processes import Processes

EVERY_S = 2.0
PROCESSES_EVERY = 5
"""Readings: looking at every process costs more than all the rest."""


def visible_gpus() -> int:
    """How many GPUs a process started now may use: those that NVML lists and `CUDA_VISIBLE_DEVICES` does not hide.

    As CUDA reads it, the first entry that names no GPU hides itself and all after it. 0 with a torch built for the CPU.
    """
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        if importlib.metadata.version("torch").endswith("+cpu"):
            return 0
    there, wanted = len(Gpus()), os.environ.get("CUDA_VISIBLE_DEVICES")
    if wanted is None:
        return there
    count = 0
    for entry in wanted.split(","):
        if not (entry.strip().startswith(("GPU-", "MIG-")) or (entry.strip().isdigit() and int(entry) < there)):
            break
        count += 1
    return min(count, there) if "MIG-" not in wanted else min(count, 1)


class MachineReader:
    """Reads this machine again and again; rates and percentages are since the last reading.

    `folder`: where its disk is looked at. `run_dir`: the run whose processes are ours.
    """

    def __init__(self, folder: Path, run_dir: Path | None = None) -> None:
        self.folder = folder
        self.gpus = Gpus()
        self._processes = Processes(run_dir)
        self._count = 0
        self._at = time.monotonic()
        self._counters = _counters()
        psutil.cpu_percent(percpu=True)

    def read(self) -> ev.Machine:
        """One reading; every fifth one, the first included, also tells who uses the machine."""
        memory = psutil.virtual_memory()
        cores = psutil.cpu_percent(percpu=True)
        gpus = self.gpus.read()
        now, counters = time.monotonic(), _counters()
        elapsed, before = max(1e-3, now - self._at), self._counters
        self._at, self._counters = now, counters
        rates = {key: max(0, round((value - before.get(key, value)) / elapsed)) for key, value in counters.items()}
        limit, limit_used = control_group()
        disks = _disks(self.folder)
        machine = ev.Machine(
            cpu=round(sum(cores) / max(1, len(cores)), 1),
            cores=cores,
            memory_used=memory.total - memory.available,
            memory_total=memory.total,
            disk_free=disks[0]["free"],
            gpus=gpus,
            host=platform.node(),
            load=round(os.getloadavg()[0], 2),
            swap_used=psutil.swap_memory().used,
            memory_limit=limit if limit < memory.total else 0,
            memory_limit_used=limit_used if limit < memory.total else 0,
            disks=disks,
            rates=rates,
            gpu_note=self.gpus.reason,
        )
        if self._count % PROCESSES_EVERY == 0:
            machine.processes = self._processes.read(gpus)
        for gpu in gpus:
            gpu.pop("processes", None)
        self._count += 1
        return machine


def _counters() -> dict[str, int]:
    """Bytes since boot: received and sent on all networks but the loopback, read from and written to all disks."""
    found: dict[str, int] = {}
    with contextlib.suppress(OSError, RuntimeError):
        cards = [card for name, card in psutil.net_io_counters(pernic=True).items() if not name.startswith("lo")]
        found |= {"received": sum(c.bytes_recv for c in cards), "sent": sum(c.bytes_sent for c in cards)}
    with contextlib.suppress(OSError, RuntimeError):
        if (disks := psutil.disk_io_counters()) is not None:
            found |= {"read": disks.read_bytes, "written": disks.write_bytes}
    return found


def _disks(folder: Path) -> list[dict[str, Any]]:
    """The run's disk, and the cache folder's where that is another one: what, path, free and total bytes."""
    found: dict[int, dict[str, Any]] = {}
    for what, path in (("run", folder), ("cache", picollm_home())):
        while not path.exists() and path != path.parent:
            path = path.parent
        usage = shutil.disk_usage(path)
        found.setdefault(
            path.stat().st_dev, {"what": what, "path": str(path), "free": usage.free, "total": usage.total}
        )
    return list(found.values())


def control_group() -> tuple[int, int]:
    """Bytes that the control group of this process may use (a very large number where there is no limit), and uses;
    files that were read and could be dropped do not count."""
    for folder, limit, used, key in (
        ("/sys/fs/cgroup", "memory.max", "memory.current", b"inactive_file"),
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", b"total_inactive_file"),
    ):
        try:
            most = int(Path(folder, limit).read_text())
            now = int(Path(folder, used).read_text())
            for line in Path(folder, "memory.stat").read_bytes().splitlines():
                name, _, value = line.partition(b" ")
                if name == key:
                    now -= int(value)
            return most, max(0, now)
        except (OSError, ValueError):
            continue
    return 1 << 62, 0


class MachineRecorder:
    """Appends a reading every two seconds to a file that is thinned when it passes 8 MB: of its older half every second
    reading stays, so a long run's beginning is kept, more coarsely."""

    LIMIT_BYTES = 8 << 20

    def __init__(self, file: Path, folder: Path) -> None:
        self.file, self.folder = file, folder

    def record(self, stopping: threading.Event) -> None:
        reader = MachineReader(self.folder, self.folder)
        said = ""
        while not stopping.wait(EVERY_S):
            try:
                self.thin()
                event_file.append(self.file, reader.read())
            except (OSError, UserError, psutil.Error) as error:  # a full disk, mostly: the run goes on unrecorded
                if str(error) != said:
                    said = str(error)
                    print(f"machine record: {said}", file=sys.stderr, flush=True)

    def thin(self) -> None:
        """Halve the density of the older half of a file that has grown too large."""
        if self.file.exists() and self.file.stat().st_size > self.LIMIT_BYTES:
            lines = self.file.read_bytes().splitlines(keepends=True)
            middle = len(lines) // 2
            write_atomic(self.file, b"".join(lines[:middle:2] + lines[middle:]))


def described() -> dict[str, Any]:
    """This machine: system, processor, cores, memory in bytes, Python, and the name and memory of each GPU."""
    return {
        "system": platform.platform(),
        "processor": processor(),
        "cores": psutil.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "python": platform.python_version(),
        "gpus": [
            {"name": str(gpu.get("name", "unknown")), "memory_total": int(gpu.get("memory_total", 0))}
            for gpu in Gpus().read()
        ],
    }


def processor() -> str:
    """The processor's name: as Linux has it, else as Python does."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", errors="replace") as lines:
        for line in lines:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
