"""Batches made ahead of the device by a thread, so that no step waits for reading, packing or page-locking."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch

from picollm.train.batch import Batch

STOP_WAIT_S = 5.0


@contextmanager
def ahead(
    batches: Callable[[int], Iterable[Batch]], first: int, last: int, depth: int, device: torch.device
) -> Iterator[Callable[[int], Iterable[Batch]]]:
    """Inside, `batches` of steps `first`…`last`−1 as before, but made up to `depth` steps before they are asked for.

    They must be asked for in order. An exception (StopRequested included) comes out at the step that it belongs to, and
    nothing is made after it. `batches` runs in another thread: it may neither use the model nor talk to other ranks.
    With `depth` 0 there is no thread and none of these limits.
    """
    if depth == 0:
        yield batches
        return
    made: queue.Queue[tuple[int, list[Batch] | BaseException]] = queue.Queue(depth)
    leaving = threading.Event()

    def hand_over(step: int, what: list[Batch] | BaseException) -> None:
        while not leaving.is_set():
            try:
                made.put((step, what), timeout=0.1)
                return
            except queue.Full:
                continue

    def work() -> None:
        for step in range(first, last):
            try:
                found: list[Batch] | BaseException = [batch.staged(device) for batch in batches(step)]
            except BaseException as error:  # whatever it is, it belongs to whoever asks for this step
                found = error
            hand_over(step, found)
            if leaving.is_set() or isinstance(found, BaseException):
                return

    def ask(step: int) -> list[Batch]:
        number, found = made.get()
        assert number == step, f"batches of step {number} are next, not those of step {step}"
        if isinstance(found, BaseException):
            raise found
        return found

    thread = threading.Thread(target=work, name="batches", daemon=True)
    thread.start()
    try:
        yield ask
    finally:
        leaving.set()
        thread.join(STOP_WAIT_S)  # not for ever: it may be waiting for data that will not come
