"""Who is alive: flock for processes, and a careful identity for the pids that we signal.

A stage's processes all hold `stages/<stage>/lock` shared; whoever wants to start one must first hold it exclusively.
The launcher hands its open lock down, so that a stage which is still loading counts as alive without its launcher.
The kernel drops a lock with its process, however it dies, and a zombie holds none; a pid proves nothing, since it is
reused, so it is only ever signalled after its start ticks, boot id and host name were compared.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import platform
import signal
import time
from pathlib import Path
from typing import NamedTuple

import psutil

INHERITED = "PICOLLM_LOCK_FD"
"""Environment variable: the number under which a stage finds its launcher's open lock."""
ASK_PATIENCE_S = 2.0  # holding a turn takes microseconds; longer means that somebody was halted while asking


class Identity(NamedTuple):
    """One process, for ever: `start_ticks` counts from boot, `boot_id` names the boot."""

    pid: int
    host: str
    boot_id: str
    start_ticks: int


def boot_id() -> str:
    """Linux's boot id; elsewhere the boot time in whole minutes stands in for it."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return f"boot-{round(psutil.boot_time() / 60)}"


def start_ticks(pid: int) -> int:
    """Clock ticks from boot to the start of `pid`; -1 when there is no such living process (a zombie is dead)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return -1 if fields[0] in (b"Z", b"X") else int(fields[19])
    except FileNotFoundError:
        pass
    except (OSError, IndexError, ValueError):
        return -1
    if os.path.exists("/proc/self/stat"):
        return -1
    try:
        process = psutil.Process(pid)
        return (
            -1
            if process.status() == psutil.STATUS_ZOMBIE
            else round((process.create_time() - psutil.boot_time()) * 100)
        )
    except psutil.Error:
        return -1


def identify(pid: int | None = None) -> Identity:
    """The identity of a process, by default of this one."""
    pid = os.getpid() if pid is None else pid
    return Identity(pid, platform.node(), boot_id(), start_ticks(pid))


def is_same(identity: Identity) -> bool:
    """Whether that very process still lives on this machine."""
    return (
        identity.pid > 1
        and identity.host == platform.node()
        and identity.boot_id == boot_id()
        and identity.start_ticks >= 0
        and start_ticks(identity.pid) == identity.start_ticks
    )


def signal_process(identity: Identity, number: int) -> bool:
    """Signal that very process; False when it is gone, elsewhere, or its pid belongs to somebody else now."""
    if not is_same(identity):
        return False
    try:
        os.kill(identity.pid, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def kill_tree(identity: Identity) -> bool:
    """SIGKILL that very process, everything below it, and the process groups that these lead.

    torchrun gives every rank a session of its own, so killing one group is not enough. The parent goes first: it can
    start no replacement. False when that process is gone.
    """
    if not is_same(identity):
        return False
    try:
        root = psutil.Process(identity.pid)
        family = [root, *root.children(recursive=True)]
    except psutil.Error:
        return False
    for process in family:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if os.getpgid(process.pid) == process.pid:
                os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(psutil.Error):
            process.kill()
    return True


class Lock:
    """An flock on a file that is never deleted. `exclusive()` to own, `share()` to be counted among the living."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = -1

    def _take(self, how: int) -> bool:
        if self._fd < 0:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._fd, how)
            return True
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN):
                return False
            raise

    def exclusive(self, patience: float = 0.0) -> bool:
        """Own the lock; tries for `patience` seconds, since a reader's probe may hold it for a moment."""
        end = time.monotonic() + patience
        while not self._take(fcntl.LOCK_EX | fcntl.LOCK_NB):
            if time.monotonic() >= end:
                self.release()
                return False
            time.sleep(0.02)
        return True

    def share(self, patience: float = 5.0) -> bool:
        """Hold it together with the other ranks of the same stage."""
        end = time.monotonic() + patience
        while not self._take(fcntl.LOCK_SH | fcntl.LOCK_NB):
            if time.monotonic() >= end:
                return False
            time.sleep(0.02)
        return True

    @property
    def fd(self) -> int:
        """The open file, to hand down to a child: as long as either has it open, the lock is held."""
        return self._fd

    def release(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def keep_inherited(path: Path) -> None:
    """Keep the lock that the launcher handed down, open in this process alone: what it starts must not hold it.

    A rank under torchrun finds the variable but not the file, which torchrun itself keeps.
    """
    number = os.environ.pop(INHERITED, "")
    if not number.isdigit():
        return
    with contextlib.suppress(OSError):
        if os.path.samestat(os.fstat(int(number)), path.stat()):
            os.set_inheritable(int(number), False)


def is_held(path: Path) -> bool:
    """Whether any process holds this lock file now.

    Asking means taking it exclusively for a moment, so two who ask at once would see each other and call a dead stage
    alive. Therefore one asks at a time: whoever asks first locks the folder around the file.
    """
    with contextlib.ExitStack() as stack:
        try:
            turn = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
            stack.callback(os.close, turn)
            fd = _open_to_ask(path)
            stack.callback(os.close, fd)
        except (FileNotFoundError, NotADirectoryError):
            return False
        end = time.monotonic() + ASK_PATIENCE_S
        while not _try_flock(turn) and time.monotonic() < end:
            time.sleep(0.0005)
        return not _try_flock(fd)


def freed(path: Path, within: float) -> bool:
    """Wait until nobody holds this lock file, for `within` seconds at most; whether nobody does."""
    end = time.monotonic() + within
    while is_held(path):
        if time.monotonic() >= end:
            return False
        time.sleep(0.05)
    return True


def _open_to_ask(path: Path) -> int:
    """Writable where possible: NFS grants exclusive locks only to those who may write."""
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def _try_flock(fd: int) -> bool:
    """False when somebody else holds it. A folder that cannot be locked (NFS) counts as ours."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EWOULDBLOCK, errno.EAGAIN)
    return True
