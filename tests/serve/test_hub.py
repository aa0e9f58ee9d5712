"""The worker's thread and the event loop: nothing lost, in order, and no flood for one that is behind."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

from picollm.infer.rows import Chunk
from picollm.serve.hub import Worker

PIECES = 200


def job(letter: str, made: threading.Event | None = None) -> Any:
    def work(cancel: threading.Event) -> Iterator[Any]:
        yield None
        for number in range(PIECES):
            yield Chunk(letter, [number])
        if made is not None:
            made.set()

    return work


async def test_one_that_is_behind_gets_fewer_and_larger_pieces() -> None:
    worker, made = Worker(), threading.Event()
    items = worker.run([job("a", made)])
    assert await anext(items) == (0, None)
    end = time.monotonic() + 30
    while not made.is_set() and time.monotonic() < end:
        time.sleep(0.01)  # the event loop does not turn meanwhile
    got = [item async for _, item in items]
    assert "".join(chunk.text for chunk in got) == "a" * PIECES
    assert [number for chunk in got for number in chunk.ids] == list(range(PIECES))
    assert len(got) < PIECES / 4
    worker.close()


async def test_many_at_once_get_what_is_theirs_in_order() -> None:
    worker = Worker()

    async def collect(letters: str) -> list[list[Chunk]]:
        answers: list[list[Chunk]] = [[] for _ in letters]
        async for index, item in worker.run([job(letter) for letter in letters]):
            if item is not None:
                answers[index].append(item)
        return answers

    found = await asyncio.gather(*(collect(letters) for letters in ("ab", "c", "def")))
    for letters, answers in zip(("ab", "c", "def"), found, strict=True):
        for letter, chunks in zip(letters, answers, strict=True):
            assert "".join(chunk.text for chunk in chunks) == letter * PIECES
            assert [number for chunk in chunks for number in chunk.ids] == list(range(PIECES))
    worker.close()
