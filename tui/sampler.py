"""Reads this machine for the app where no run records it: a thread, since a driver may take long to answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from textual.message import Message

from picollm.run.machine import EVERY_S, MachineReader


class MachineSampled(Message):
    def __init__(self, reading: Any) -> None:
        super().__init__()
        self.reading = reading


class Sampler(threading.Thread):
    """Posts a reading every two seconds while `wanted()` says that somebody looks and nobody else reads."""

    def __init__(self, run_dir: Path, post: Callable[[Message], Any], wanted: Callable[[], bool]) -> None:
        super().__init__(name="machine-sampler", daemon=True)
        self._run_dir, self._post, self._wanted = run_dir, post, wanted
        self._wake, self._closing = threading.Event(), threading.Event()

    def close(self) -> None:
        self._closing.set()
        self._wake.set()

    def poke(self) -> None:
        """Ask `wanted` again at once."""
        self._wake.set()

    def run(self) -> None:
        reader: MachineReader | None = None
        while not self._closing.is_set():
            if self._wanted():
                fresh = reader is None
                if reader is None:
                    reader = MachineReader(self._run_dir, self._run_dir)
                    self._closing.wait(0.3)  # percentages are over a time
                reading = reader.read()
                reading.time = round(time.time(), 3)
                self._post(MachineSampled(reading))
                self._closing.wait(0.7 if fresh else EVERY_S)
            else:
                self._wake.wait(EVERY_S)
                self._wake.clear()
