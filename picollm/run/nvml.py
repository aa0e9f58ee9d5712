"""GPUs through NVML: what each one says of itself, and in words why one says nothing.

What a GPU does not report is never given as 0: it is left out of its record, and `missing` has the reason.
"""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

LOST = {
    15: "does not answer any more (the driver lost it): see dmesg for 'Xid'; often only a restart of the machine helps",
    16: "needs a reset before it works again: nvidia-smi --gpu-reset, or a restart of the machine",
}
"""NVML's error codes (nvml.h) after which nothing can be read from a GPU, in words."""
WORDS = LOST | {
    1: "NVML is not open",
    3: "not reported by this GPU",
    4: "no permission to read it",
    9: "the NVIDIA driver is installed but not loaded (no NVIDIA GPU, or: modprobe nvidia)",
    10: "it did not answer in time",
    12: "no NVIDIA driver on this machine",
    13: "not known to this driver",
    18: "the driver was updated while the old one runs: restart the machine",
    999: "the driver says 'unknown error'",
}
NOT_SUPPORTED = 3

SLOWED = {
    0x2: "clocks set by hand",
    0x4: "power limit",
    0x8: "heat or power supply",
    0x10: "waits for its group",
    0x20: "heat",
    0x40: "heat (hardware brake)",
    0x80: "power supply brake",
}
"""Bits of NVML's clock event reasons that keep a busy GPU below its clock (nvml.h); idle and display are left out."""
HARMFUL = ("heat or power supply", "heat", "heat (hardware brake)", "power supply brake")
"""Those of `SLOWED` that somebody should do something about; a power limit is usual at full load."""


def words(error: Exception) -> str:
    """An NVML error as a sentence."""
    code = getattr(error, "value", None)
    return WORDS.get(code, str(error)) if isinstance(code, int) else str(error)


class Gpus:
    """NVML, opened once. `reason` says in words why there is nothing to read."""

    def __init__(self) -> None:
        self.reason = ""
        self._handles: dict[int, Any] = {}
        self._fixed: dict[int, dict[str, Any]] = {}
        try:
            import pynvml

            self._nvml = pynvml
            pynvml.nvmlInit()
            count = pynvml.nvmlDeviceGetCount()
        except Exception as error:
            self.reason = _without(error)
            return
        for index in range(count):
            self._open(index)
        if not count:
            self.reason = "the NVIDIA driver shows no GPU"

    def __len__(self) -> int:
        """GPUs that answered when they were opened."""
        return len(self._handles)

    def read(self) -> list[dict[str, Any]]:
        """One record per GPU; `index` is NVML's.

        name, uuid, utilisation (percent), memory_used, memory_total (bytes), power_w, power_limit_w, temperature_c,
        temperature_limit_c (where it slows itself), clock_mhz, clock_max_mhz, slowed (why it runs below its clock),
        ecc_errors (uncorrected, since the driver was loaded), processes ([pid, bytes or None]). `missing`: why a
        reading is not there. `unified`: its memory is the machine's. `mig`: its slices, each with name, uuid and
        memory. A GPU that cannot be read has `lost`, the reason, and nothing else.
        """
        return [self._read_one(index) for index in sorted(self._fixed)]

    def processes(self) -> list[list[int]]:
        """Per GPU the pids that compute on it, in the driver's numbering (in a container: perhaps not ours)."""
        found: list[list[int]] = []
        for handle in self._handles.values():
            found.append([])
            with contextlib.suppress(self._nvml.NVMLError):
                found[-1] = [process.pid for process in self._nvml.nvmlDeviceGetComputeRunningProcesses(handle)]
        return found

    def _open(self, index: int) -> None:
        """A handle and what does not change."""
        nvml = self._nvml
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
        except nvml.NVMLError as error:
            self._fixed[index] = {"index": index, "lost": words(error)}
            return
        self._handles[index] = handle
        self._fixed[index] = {"index": index} | self._each({
            "name": lambda: nvml.nvmlDeviceGetName(handle),
            "uuid": lambda: nvml.nvmlDeviceGetUUID(handle),
            "clock_max_mhz": lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM),
            "temperature_limit_c": lambda: nvml.nvmlDeviceGetTemperatureThreshold(
                handle, nvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN
            ),
        })[0]  # fmt: skip

    def _read_one(self, index: int) -> dict[str, Any]:
        fixed, handle, nvml = self._fixed[index], self._handles.get(index), self._nvml
        if handle is None:
            return dict(fixed)
        found, failed = self._each({
            "utilisation": lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu,
            "memory": lambda: nvml.nvmlDeviceGetMemoryInfo(handle),
            "power_w": lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000,
            "power_limit_w": lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000,
            "temperature_c": lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
            "clock_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
            "slowed": lambda: _slowed(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)),
            "ecc_errors": lambda: nvml.nvmlDeviceGetTotalEccErrors(
                handle, nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC
            ),
            "processes": lambda: [
                [process.pid, process.usedGpuMemory] for process in nvml.nvmlDeviceGetComputeRunningProcesses(handle)
            ],
            "mig": lambda: self._slices(handle),
        })  # fmt: skip
        gone = next((error for error in failed.values() if getattr(error, "value", None) in LOST), None)
        if gone is not None:
            return {key: fixed[key] for key in ("index", "name", "uuid") if key in fixed} | {"lost": words(gone)}
        if "memory" in found:
            memory = found.pop("memory")
            found["memory_used"], found["memory_total"] = memory.used, memory.total
        missing: dict[str, str] = {}
        for key in ("utilisation", "power_w", "temperature_c"):
            if key in failed:
                missing[key] = words(failed[key])
        if "memory" in failed:
            found["unified"] = getattr(failed["memory"], "value", None) == NOT_SUPPORTED and not found.get("mig")
            missing["memory_used"] = (
                "it has none of its own and uses the machine's" if found["unified"] else words(failed["memory"])
            )
        if found.get("mig") is not None and "utilisation" in missing:
            missing["utilisation"] = "not reported while the GPU is cut into slices (MIG)"
        kept = {key: value for key, value in found.items() if value not in (None, [], False, 0) or key in _ZERO_IS_NEWS}
        return fixed | kept | ({"missing": missing} if missing else {})

    def _slices(self, handle: Any) -> list[dict[str, Any]] | None:
        """The MIG devices of a GPU; None where it is not cut."""
        nvml = self._nvml
        if not nvml.nvmlDeviceGetMigMode(handle)[0]:
            return None
        found = []
        for place in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
            try:
                part = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, place)
            except nvml.NVMLError:  # nothing is cut there
                continue
            record, failed = self._each({
                "name": partial(nvml.nvmlDeviceGetName, part),
                "uuid": partial(nvml.nvmlDeviceGetUUID, part),
                "memory": partial(nvml.nvmlDeviceGetMemoryInfo, part),
            })  # fmt: skip
            if "memory" in record:
                memory = record.pop("memory")
                record["memory_used"], record["memory_total"] = memory.used, memory.total
            else:
                record["missing"] = {"memory_used": words(failed["memory"])}
            found.append(record)
        return found

    def _each(self, readings: dict[str, Callable[[], Any]]) -> tuple[dict[str, Any], dict[str, Exception]]:
        """Every reading that could be made, and the errors of the others."""
        found: dict[str, Any] = {}
        failed: dict[str, Exception] = {}
        for key, reading in readings.items():
            try:
                value = reading()
            except self._nvml.NVMLError as error:
                failed[key] = error
                continue
            found[key] = value.decode(errors="replace") if isinstance(value, bytes) else value
        return found, failed


_ZERO_IS_NEWS = ("utilisation", "memory_used", "memory_total", "power_w", "temperature_c", "clock_mhz", "mig")


def _slowed(bits: int) -> list[str]:
    return [why for bit, why in SLOWED.items() if bits & bit]


def _without(error: Exception) -> str:
    """Why there are no readings on this machine."""
    if platform.system() == "Darwin":
        return "Apple's GPU does not tell other programs how busy it is; its memory is the machine's"
    if getattr(error, "value", None) in (9, 12) and Path("/dev/kfd").exists():
        return "there is an AMD GPU, and only NVIDIA's can be read"
    if isinstance(error, ImportError):
        return "the package nvidia-ml-py is not installed"
    return words(error)
