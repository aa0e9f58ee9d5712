"""When the terminal itself is gone (a dropped connection, a closed window), leave at once.

Textual's writer thread dies with the terminal and its queue then blocks the event loop for good, while its input
thread spins; so a thread of our own looks whether the terminal still answers, and ends the process when it does not.
There is no screen left to restore, and the run does not need us.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import struct
import termios
import threading
import time
from collections.abc import Callable
from types import FrameType

EVERY_S, STEP_S = 0.5, 0.1
GRACE_S = 0.5


def gone(fd: int) -> bool:
    """Whether `fd` was a terminal that has been hung up."""
    try:
        termios.tcgetattr(fd)
    except (termios.error, OSError):
        return True
    return False


def _watch(fd: int) -> None:
    while not gone(fd):
        time.sleep(EVERY_S)
    time.sleep(GRACE_S)  # a conversation that is being written to disk gets done
    os._exit(0)


def leave_with(fd: int) -> None:
    """Watch the terminal behind `fd` until the process ends."""
    threading.Thread(target=_watch, args=(fd,), name="terminal", daemon=True).start()


def give_size(fd: int) -> None:
    """A terminal that says it has no size (a serial line, some containers) gets the usual 80 by 24.

    COLUMNS and LINES are left behind: where a shell exports them, the app would stay at that size for good.
    """
    for name in ("COLUMNS", "LINES"):
        os.environ.pop(name, None)
    try:
        lines, columns = struct.unpack("HHHH", fcntl.ioctl(fd, termios.TIOCGWINSZ, bytes(8)))[:2]
        if not (lines and columns):
            fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    except OSError:
        return  # no terminal at all is said elsewhere


PATIENCE_S = 1.5
"""What the event loop has to end the process when a signal asks it to; the terminal is to be restored within two."""
_NORMAL = (
    "\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1006l\x1b[?1015l"  # mouse
    "\x1b[?2004l\x1b[?1004l\x1b[?2048l\x1b[<u"  # bracketed paste, focus and resize reports, key protocol
    "\x1b[?2026l\x1b[0m\x1b[?1049l\x1b[?25h"  # held-back output, colours, the other screen, the cursor
)


def leave_on_signals(fd: int, leave: Callable[[], object]) -> None:
    """On SIGTERM and SIGHUP call `leave` in the event loop; when that has not ended the process soon, whatever keeps
    the loop busy, put the terminal behind `fd` back as it was found and end it."""
    try:
        found = termios.tcgetattr(fd)
    except (termios.error, OSError):
        return

    def force() -> None:
        for _ in range(round(PATIENCE_S / STEP_S)):  # in steps: a machine that stood still gave the loop no time either
            time.sleep(STEP_S)
        try:
            os.write(fd, _NORMAL.encode())
            termios.tcsetattr(fd, termios.TCSANOW, found)
        finally:  # also when the terminal is gone: then there is nothing to restore
            os._exit(1)

    def asked(number: int, frame: FrameType | None) -> None:
        threading.Thread(target=force, name="leave", daemon=True).start()
        try:
            asyncio.get_running_loop().call_soon_threadsafe(leave)
        except RuntimeError:  # before the app, or after it
            os.kill(os.getpid(), signal.SIGINT)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, asked)
