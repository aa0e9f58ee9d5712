"""Every way in which a GPU can fail to say something, with a stand-in for NVML: words, never a false 0."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from picollm.run.nvml import Gpus

NOT_SUPPORTED, NO_PERMISSION, NOT_FOUND, LOST = 3, 4, 6, 15


class NVMLError(Exception):
    def __init__(self, value: int) -> None:
        super().__init__(f"code {value}")
        self.value = value


class FakeNvml:
    """Speaks as `pynvml`; `fails` maps a function (without "nvmlDeviceGet") and a GPU to an error code."""

    NVMLError = NVMLError
    NVML_CLOCK_SM = NVML_TEMPERATURE_GPU = NVML_VOLATILE_ECC = 0
    NVML_TEMPERATURE_THRESHOLD_SLOWDOWN = NVML_MEMORY_ERROR_TYPE_UNCORRECTED = 1

    def __init__(self, count: int = 1, **values: Any) -> None:
        self.count, self.init_error = count, 0
        self.fails: dict[tuple[str, int], int] = {}
        self.parts: dict[int, Any] = {}
        self.values = {
            "Name": "NVIDIA H100 80GB HBM3", "UUID": "GPU-1", "MaxClockInfo": 1980, "TemperatureThreshold": 87,
            "UtilizationRates": SimpleNamespace(gpu=97), "MemoryInfo": SimpleNamespace(used=70 << 30, total=80 << 30),
            "PowerUsage": 612_000, "EnforcedPowerLimit": 700_000, "Temperature": 64, "ClockInfo": 1755,
            "CurrentClocksThrottleReasons": 0, "TotalEccErrors": 0, "ComputeRunningProcesses": [], "MigMode": (0, 0),
            "MaxMigDeviceCount": 7,
        } | values  # fmt: skip

    def nvmlInit(self) -> None:
        if self.init_error:
            raise NVMLError(self.init_error)

    def nvmlDeviceGetCount(self) -> int:
        return self.count

    def __getattr__(self, name: str) -> Any:
        what = name.removeprefix("nvmlDeviceGet")

        def answer(handle: Any, *more: Any) -> Any:
            if (what, handle) in self.fails:
                raise NVMLError(self.fails[what, handle])
            if what == "HandleByIndex":
                return handle
            if what == "MigDeviceHandleByIndex":
                if more[0] not in self.parts:
                    raise NVMLError(NOT_FOUND)
                return f"part {more[0]}"
            if isinstance(handle, str):
                return {"Name": "MIG 1g.10gb", "UUID": f"MIG-{handle}", "MemoryInfo": self.values["MemoryInfo"]}[what]
            return self.values[what]

        return answer


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    fake = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)  # type: ignore[arg-type]
    return fake


def test_a_healthy_gpu_says_everything(nvml: FakeNvml) -> None:
    nvml.values["ComputeRunningProcesses"] = [SimpleNamespace(pid=41, usedGpuMemory=8 << 30)]
    [gpu] = Gpus().read()
    assert gpu["utilisation"] == 97 and gpu["memory_used"] == 70 << 30 and gpu["power_limit_w"] == 700
    assert gpu["clock_mhz"] == 1755 and gpu["clock_max_mhz"] == 1980 and gpu["processes"] == [[41, 8 << 30]]
    assert "missing" not in gpu and "slowed" not in gpu and "lost" not in gpu and not gpu.get("unified")


def test_an_idle_gpu_is_at_zero_and_says_so(nvml: FakeNvml) -> None:
    nvml.values |= {"UtilizationRates": SimpleNamespace(gpu=0), "CurrentClocksThrottleReasons": 0x1}
    [gpu] = Gpus().read()
    assert gpu["utilisation"] == 0 and "slowed" not in gpu


def test_why_it_is_slow(nvml: FakeNvml) -> None:
    nvml.values |= {"CurrentClocksThrottleReasons": 0x4 | 0x40, "TotalEccErrors": 3}
    [gpu] = Gpus().read()
    assert gpu["slowed"] == ["power limit", "heat (hardware brake)"] and gpu["ecc_errors"] == 3


@pytest.mark.parametrize(
    ("code", "words"), [(12, "no NVIDIA driver"), (9, "not loaded"), (18, "restart the machine"), (4, "no permission")]
)
def test_no_nvml_is_a_sentence(nvml: FakeNvml, code: int, words: str) -> None:
    nvml.init_error = code
    gpus = Gpus()
    assert words in gpus.reason and gpus.read() == [] and len(gpus) == 0 and gpus.processes() == []


def test_a_driver_without_a_gpu(nvml: FakeNvml) -> None:
    nvml.count = 0
    assert "no GPU" in Gpus().reason


def test_a_gpu_lost_while_it_is_watched(nvml: FakeNvml) -> None:
    nvml.count = 2
    gpus = Gpus()
    nvml.fails["MemoryInfo", 1] = LOST
    well, lost = gpus.read()
    assert well["utilisation"] == 97
    assert "lost it" in lost["lost"] and lost["index"] == 1 and "utilisation" not in lost and lost["name"]


def test_a_gpu_lost_before_does_not_hide_the_others(nvml: FakeNvml) -> None:
    nvml.count, nvml.fails = 2, {("HandleByIndex", 0): LOST}
    gpus = Gpus()
    lost, well = gpus.read()
    assert len(gpus) == 1 and "lost it" in lost["lost"] and well["index"] == 1 and well["utilisation"] == 97


def test_slices_have_memory_and_the_whole_has_no_utilisation(nvml: FakeNvml) -> None:
    nvml.values["MigMode"], nvml.parts = (1, 1), {0: "a", 3: "b"}
    nvml.fails["UtilizationRates", 0] = NOT_SUPPORTED
    [gpu] = Gpus().read()
    assert [part["uuid"] for part in gpu["mig"]] == ["MIG-part 0", "MIG-part 3"]
    assert "utilisation" not in gpu and "slices" in gpu["missing"]["utilisation"]


def test_a_slice_lent_to_a_container_may_not_read_the_whole(nvml: FakeNvml) -> None:
    nvml.values["MigMode"], nvml.parts = (1, 1), {0: "a"}
    nvml.fails |= {("MemoryInfo", 0): NO_PERMISSION, ("UtilizationRates", 0): NOT_SUPPORTED}
    [gpu] = Gpus().read()
    assert gpu["missing"]["memory_used"] == "no permission to read it" and not gpu.get("unified")
    assert gpu["mig"][0]["memory_total"] == 80 << 30


def test_unified_memory_is_the_machines(nvml: FakeNvml) -> None:
    nvml.values["Name"] = b"NVIDIA GB10"
    nvml.fails |= {(what, 0): NOT_SUPPORTED for what in ("MemoryInfo", "EnforcedPowerLimit", "MigMode")}
    [gpu] = Gpus().read()
    assert gpu["unified"] and gpu["name"] == "NVIDIA GB10" and "memory_used" not in gpu
    assert "machine's" in gpu["missing"]["memory_used"] and gpu["utilisation"] == 97
