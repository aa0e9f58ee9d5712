"""Who else is busy on this machine: other processes by CPU time, and by memory on the GPUs."""

from __future__ import annotations

import contextlib
import time

import psutil

from picollm.run.nvml import Gpus
from picollm.run.processes import cpu_seconds

BUSY_SHARE = 0.10
"""Of one core: less than this is nobody's fault."""
MOST = 3


class Neighbours:
    """`busiest()` tells who used the CPU since this was made. Our own stage, with what it started, does not count."""

    def __init__(self) -> None:
        self._begun = time.monotonic()
        self._before = {key: used for key, (used, _) in cpu_seconds().items()}

    def busiest(self) -> str:
        """One line such as "also busy here: python3 (pid 41, 96 % of a core)"; "" when nobody is."""
        elapsed = max(1e-3, time.monotonic() - self._begun)
        ours = _own_pids()
        shares = [
            (100 * (used - self._before.get(key, 0.0)) / elapsed, key[0], name)
            for key, (used, name) in cpu_seconds().items()
            if key[0] not in ours
        ]
        named = [
            f"{name} (pid {pid}, {share:.0f} % of a core)"
            for share, pid, name in sorted(shares, reverse=True)[:MOST]
            if share >= 100 * BUSY_SHARE
        ] + [f"{name} (pid {pid}, on GPU {gpu})" for gpu, pid, name in _on_gpus(ours)[:MOST]]
        return "also busy here: " + ", ".join(named) if named else ""


def _own_pids() -> set[int]:
    """Ourselves, our ancestors, and everything that our parent (the launcher, or torchrun) started."""
    me = psutil.Process()
    ours = {me.pid}
    with contextlib.suppress(psutil.Error):
        ours |= {process.pid for process in me.parents()}
        parent = me.parent() or me
        ours |= {process.pid for process in (me if parent.pid == 1 else parent).children(recursive=True)}
    return ours


def _on_gpus(ours: set[int]) -> list[tuple[int, int, str]]:
    """(GPU, pid, name) of other processes that compute on a GPU, as far as NVML tells.

    Where it does not even know us, it counts processes in another namespace than ours: nothing can be said then.
    """
    by_gpu = Gpus().processes()
    if not any(pid in ours for pids in by_gpu for pid in pids):
        return []
    found = []
    for gpu, pids in enumerate(by_gpu):
        for pid in pids:
            if pid not in ours and psutil.pid_exists(pid):
                with contextlib.suppress(psutil.Error):
                    found.append((gpu, pid, psutil.Process(pid).name()))
    return found
