"""The worker's thread and the event loop: nothing lost, in order, and no flood for one that is behind."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

from picollm.infer.engine import Engine
from picollm.infer.rows import Chunk
from picollm.serve.hub import ModelHub, Worker
from tests.infer.fakes import ByteTokenizer, tiny_model

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
    assert made.wait(60)  # the event loop does not turn meanwhile
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


def test_models_may_be_added_while_one_is_loaded() -> None:
    hub, begun, go_on = ModelHub(), threading.Event(), threading.Event()
    old, new = (Engine(tiny_model(), ByteTokenizer(), live=False) for _ in range(2))

    def load() -> Engine:
        begun.set()
        assert go_on.wait(60)
        return old

    hub.add("a", load)
    loading = threading.Thread(target=lambda: hub.engine("a"))
    loading.start()
    assert begun.wait(60)
    adding = threading.Thread(target=lambda: [hub.add("b", new), hub.add("a", lambda: new)])
    adding.start()
    adding.join(60)
    waited = adding.is_alive()
    go_on.set()
    loading.join(60)
    adding.join(60)
    assert not waited and hub.names == ["a", "b"]
    assert hub.engine("a") is new  # not what was loaded under that name before
