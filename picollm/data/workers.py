"""A few processes at a time, each for one piece of work: several cores without one Python lock, and a clean end.

A worker that fails says why in one line; one that is killed is named with its signal. Workers end with their parent,
however that ends.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import traceback
from collections.abc import Callable, Hashable
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any, NamedTuple

from picollm.run.errors import UserError

NICENESS = 5  # training, if it is under way already, goes first
Look = Callable[[int, int], None]


class _Running(NamedTuple):
    process: SpawnProcess
    ear: Connection


class Workers:
    """At most `most` processes that each call `work(look, *arguments)`; `look(done, all)` is how far it is.

    `work` and its arguments must be importable and picklable: the processes are spawned, so nothing of ours (threads,
    locks, open files) is copied into them.
    """

    def __init__(self, work: Callable[..., None], most: int) -> None:
        self._work, self._most = work, most
        self._running: dict[Hashable, _Running] = {}
        self._shares: dict[Hashable, float] = {}

    @property
    def free(self) -> bool:
        return len(self._running) < self._most

    @property
    def busy(self) -> bool:
        return bool(self._running)

    @property
    def under_way(self) -> float:
        """Pieces of work that are being done, counted by how far they are."""
        return sum(self._shares[key] for key in self._running)

    def start(self, key: Hashable, *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        ear, mouth = context.Pipe(duplex=False)
        process = context.Process(target=_worker, args=(mouth, self._work, arguments), daemon=True)
        process.start()
        mouth.close()
        self._running[key], self._shares[key] = _Running(process, ear), 0.0

    def finished(self, patience_s: float) -> list[Hashable]:
        """The keys of what was finished, waiting a moment for news. Raises UserError when one failed, OSError as it met
        it, RuntimeError when the fault is ours; the others go on."""
        done = []
        ears = {running.ear: key for key, running in self._running.items()}
        for ear in multiprocessing.connection.wait(list(ears), patience_s):
            key = ears[ear]  # type: ignore[index]
            try:
                kind, value = self._running[key].ear.recv()
            except EOFError:
                kind, value = "gone", ""
            if kind == "share":
                self._shares[key] = value
                continue
            process = self._running.pop(key).process
            process.join()
            if kind == "user":
                raise UserError(value)
            if kind == "system":
                raise OSError(*value)
            if kind == "gone":
                raise UserError(f"{key}: its process {_end(process.exitcode)}; free memory if that ran out, and resume")
            if kind == "ours":
                raise RuntimeError(f"{key}: {value}")
            done.append(key)
        return done

    def stop(self) -> None:
        """Kill what is running; what it had not published is lost."""
        for running in self._running.values():
            running.process.kill()
        for running in self._running.values():
            running.process.join()
        self._running.clear()


def _end(code: int | None) -> str:
    if code is not None and code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with code {code}"


def _worker(mouth: Connection, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.nice(NICENESS)
    told = -1.0

    def look(done: int, everything: int) -> None:
        nonlocal told
        share = done / everything if everything else 1.0
        if share - told >= 0.01:
            told = share
            mouth.send(("share", share))

    try:
        work(look, *arguments)
        mouth.send(("done", None))
    except UserError as error:
        mouth.send(("user", str(error)))
    except OSError as error:
        traceback.print_exc()
        mouth.send(("system", (error.errno, error.strerror or str(error), error.filename)))
    except Exception as error:
        traceback.print_exc()
        mouth.send(("ours", f"{type(error).__name__}: {error}"))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)
