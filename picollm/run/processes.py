"""Who uses this machine: the busiest processes and those on the GPUs, with run and stage where a run started them.

A pid that NVML names is in the driver's numbering. In a container that is another one than ours, and a number may
belong to somebody else here; such a process is only named after it was seen to use the driver, and is hidden else.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from pathlib import Path
from typing import Any

import psutil

INITIAL_PIDS = 0xEFFFFFFC
"""Inode of Linux's first pid namespace (PROC_PID_INIT_INO in the kernel): no container."""
BUSY_PERCENT = 5.0
"""Of one core: less is nobody worth a line."""
MOST = 8


class Processes:
    """`read()` tells who used the CPU since the last call, and who is on the GPUs."""

    def __init__(self, run_dir: Path | None = None) -> None:
        self._run_dir = run_dir
        self._at = time.monotonic()
        self._before = {key: used for key, (used, _) in cpu_seconds().items()}

    def read(self, gpus: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Records of pid, name, user, cpu (percent of a core), memory (bytes), gpus ({index: bytes or None}), and for
        those of a run: run, stage, rank, ours (of the run at hand). A process that cannot be seen from here has
        `hidden` instead of a name. `gpus` are NVML's records."""
        now = time.monotonic()
        elapsed, self._at = max(1e-3, now - self._at), now
        seen = cpu_seconds()
        shares = {key: 100 * (used - self._before.get(key, used)) / elapsed for key, (used, _) in seen.items()}
        self._before = {key: used for key, (used, _) in seen.items()}
        percent = {pid: share for (pid, _), share in shares.items()}
        names = {pid: name for (pid, _), (_, name) in seen.items()}
        on_gpus: dict[int, dict[str, int | None]] = {}
        for gpu in gpus:
            for pid, used in gpu.get("processes", ()):
                on_gpus.setdefault(pid, {})[str(gpu["index"])] = used
        busy = sorted((pid for pid, share in percent.items() if share >= BUSY_PERCENT), key=lambda pid: -percent[pid])
        listed = list(dict.fromkeys([*on_gpus, *busy[:MOST]]))
        found = []
        for pid in listed:
            record: dict[str, Any] = {"pid": pid}
            if pid in on_gpus:
                record["gpus"] = on_gpus[pid]
            if pid not in names or (pid in on_gpus and not _is_here(pid)):
                found.append(record | {"hidden": True})
                continue
            record |= {"name": names[pid], "cpu": round(max(0.0, percent.get(pid, 0.0)), 1)}
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(pid)
                record["memory"] = process.memory_info().rss
                record["user"] = process.username()
                record |= self._role(process)
            found.append(record)
        return found

    def _role(self, process: psutil.Process) -> dict[str, Any]:
        """The run, stage and rank of a process that a run started, told by its command line or an ancestor's."""
        for one in (process, *process.parents()):
            try:
                words = one.cmdline()
            except psutil.Error:
                continue
            role = role_of(words)
            if role is None:
                continue
            folder = role.pop("folder")
            role["ours"] = self._run_dir is not None and folder == str(self._run_dir)
            if one is process:
                with contextlib.suppress(psutil.Error, ValueError):
                    environment = process.environ()
                    if int(environment.get("WORLD_SIZE", "1")) > 1:
                        role["rank"] = int(environment["RANK"])
            return role
        return {}


def role_of(words: list[str]) -> dict[str, Any] | None:
    """`python -m stages.sft --run /runs/demo` is stage "sft" of run "demo" in `folder`; None for other commands."""
    if "-m" not in words or "--run" not in words:
        return None
    module, at = words[words.index("-m") + 1 :][:1], words.index("--run") + 1
    if not module or at >= len(words):
        return None
    package, _, name = module[0].partition(".")
    if package not in ("stages", "picollm"):
        return None
    if package == "picollm":
        name = "launcher" if name == "run.launch" else name.rpartition(".")[2]
    return {"stage": name, "run": Path(words[at]).name, "folder": words[at]}


def cpu_seconds() -> dict[tuple[int, float], tuple[float, str]]:
    """By pid and start, so that a reused pid is another process: seconds of CPU, and the name."""
    found = {}
    for process in psutil.process_iter(["cpu_times", "create_time", "name"]):
        times = process.info["cpu_times"]
        if times is not None:
            key = (process.pid, process.info["create_time"] or 0.0)
            found[key] = (times.user + times.system, process.info["name"] or "?")
    return found


def _is_here(pid: int) -> bool:
    """Whether the driver's `pid` is the process that has this number here."""
    if not sys.platform.startswith("linux"):
        return True
    try:
        if os.stat("/proc/self/ns/pid").st_ino == INITIAL_PIDS:
            return True
        return b"nvidia" in Path(f"/proc/{pid}/maps").read_bytes()
    except OSError:
        return False
