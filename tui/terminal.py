"""When the terminal itself is gone (a dropped connection, a closed window), leave at once.

Textual's writer thread dies with the terminal and its queue then blocks the event loop for good, while its input
thread spins; so a thread of our own looks whether the terminal still answers, and ends the process when it does not.
There is no screen left to restore, and the run does not need us.
"""

from __future__ import annotations

import os
import termios
import threading
import time

EVERY_S = 0.5
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
