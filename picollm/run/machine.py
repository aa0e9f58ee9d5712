"""What the machine is doing: CPU, memory, disk, and GPUs through NVML where there are any."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import shutil
import threading
from pathlib import Path
from typing import Any

import psutil

from picollm.run import events as ev

EVERY_S = 2.0


class Gpus:
    """NVML, opened once. `reason` says in words why there is nothing to read."""

    def __init__(self) -> None:
        self.reason = ""
        self._handles: list[Any] = []
        try:
            import pynvml

            self._nvml = pynvml
            pynvml.nvmlInit()
            self._handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        except Exception as error:
            self.reason = f"no GPU readings: {error}"

    def __len__(self) -> int:
        return len(self._handles)

    def read(self) -> list[dict[str, Any]]:
        """One record per GPU: name, uuid, utilisation (percent), memory (bytes), power (W), temperature (°C).

        What a GPU does not report is left out of its record, never given as 0.
        """
        return [self._read_one(handle) for handle in self._handles]

    def processes(self) -> list[list[int]]:
        """Per GPU the pids that compute on it, in the driver's numbering (in a container: perhaps not ours)."""
        found: list[list[int]] = []
        for handle in self._handles:
            found.append([])
            with contextlib.suppress(self._nvml.NVMLError):
                found[-1] = [process.pid for process in self._nvml.nvmlDeviceGetComputeRunningProcesses(handle)]
        return found

    def _read_one(self, handle: Any) -> dict[str, Any]:
        nvml = self._nvml
        readings = {
            "name": lambda: nvml.nvmlDeviceGetName(handle),
            "uuid": lambda: nvml.nvmlDeviceGetUUID(handle),
            "utilisation": lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu,
            "memory_used": lambda: nvml.nvmlDeviceGetMemoryInfo(handle).used,
            "memory_total": lambda: nvml.nvmlDeviceGetMemoryInfo(handle).total,
            "power_w": lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000,
            "temperature_c": lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
        }
        record: dict[str, Any] = {}
        for key, reading in readings.items():
            with contextlib.suppress(nvml.NVMLError):
                value = reading()
                record[key] = value.decode() if isinstance(value, bytes) else value
        return record


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


def read_machine(gpus: Gpus, folder: Path) -> ev.Machine:
    """One reading; CPU percentages are since the last call in this process."""
    memory = psutil.virtual_memory()
    cores = psutil.cpu_percent(percpu=True)
    return ev.Machine(
        cpu=sum(cores) / max(1, len(cores)),
        cores=cores,
        memory_used=memory.total - memory.available,
        memory_total=memory.total,
        disk_free=shutil.disk_usage(folder).free,
        gpus=gpus.read(),
    )


class MachineRecorder:
    """Appends a reading every two seconds to a file that is cut in half when it passes 8 MB."""

    LIMIT_BYTES = 8 << 20

    def __init__(self, file: Path, folder: Path) -> None:
        self.file, self.folder = file, folder

    def record(self, stopping: threading.Event) -> None:
        gpus = Gpus()
        psutil.cpu_percent(percpu=True)
        while not stopping.wait(EVERY_S):
            with contextlib.suppress(OSError):
                if self.file.exists() and self.file.stat().st_size > self.LIMIT_BYTES:
                    lines = self.file.read_bytes().splitlines(keepends=True)
                    self.file.write_bytes(b"".join(lines[len(lines) // 2 :]))
                ev.append(self.file, read_machine(gpus, self.folder))


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
