"""The gate: first come, first served, nothing lost when somebody leaves, refusals that say when to come back."""

from __future__ import annotations

import asyncio

import pytest

from picollm.serve.limits import Busy, Gate, Limits


class Visitors:
    """Tasks that enter a gate and stay until they are let go."""

    def __init__(self, gate: Gate) -> None:
        self.gate, self.inside = gate, []
        self.free: dict[str, asyncio.Event] = {}

    def send(self, name: str, answers: int = 1) -> asyncio.Task[None]:
        self.free[name] = asyncio.Event()

        async def visit() -> None:
            async with self.gate.enter(answers):
                self.inside.append(name)
                await self.free[name].wait()
            self.inside.remove(name)

        return asyncio.ensure_future(visit())


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_first_come_first_served_by_weight() -> None:
    gate = Gate(Limits(answers=4))
    who = Visitors(gate)
    tasks = [who.send("a", 3), who.send("b", 2), who.send("c", 1)]
    await settle()
    assert who.inside == ["a"] and gate.waiting == 2  # c would fit, and b was there before
    who.free["a"].set()
    await settle()
    assert who.inside == ["b", "c"] and gate.active == 3 and gate.waiting == 0
    for name in "bc":
        who.free[name].set()
    await asyncio.gather(*tasks)
    assert gate.active == 0


async def test_more_than_all_places_is_let_in_alone() -> None:
    gate = Gate(Limits(answers=2))
    who = Visitors(gate)
    tasks = [who.send("a"), who.send("big", 5), who.send("c")]
    await settle()
    assert who.inside == ["a"]
    who.free["a"].set()
    await settle()
    assert who.inside == ["big"]
    who.free["big"].set()
    who.free["c"].set()
    await asyncio.gather(*tasks)
    assert gate.active == 0


async def test_who_leaves_frees_the_place() -> None:
    gate = Gate(Limits(answers=1))
    who = Visitors(gate)
    tasks = {name: who.send(name) for name in "abcd"}
    await settle()
    tasks["b"].cancel()  # in the queue
    tasks["a"].cancel()  # inside
    await settle()
    assert who.inside[-1] == "c" and gate.active == 1 and gate.waiting == 1
    tasks["c"].cancel()
    tasks["d"].cancel()  # at the moment it is let in
    await asyncio.gather(*tasks.values(), return_exceptions=True)
    assert gate.active == 0 and gate.waiting == 0


@pytest.mark.parametrize("seed", range(20))
async def test_nothing_is_lost_in_any_order_of_leaving(seed: int) -> None:
    import random

    rng = random.Random(seed)
    gate = Gate(Limits(answers=3, waiting=100))
    who = Visitors(gate)
    tasks = {f"{i}": who.send(f"{i}", rng.randint(1, 4)) for i in range(30)}
    names = list(tasks)
    rng.shuffle(names)
    for name in names:
        (tasks[name].cancel if rng.random() < 0.5 else who.free[name].set)()
        if rng.random() < 0.5:
            await settle()
    async with asyncio.timeout(60):
        await asyncio.gather(*tasks.values(), return_exceptions=True)
    assert gate.active == 0 and gate.waiting == 0


async def test_a_full_queue_and_a_long_wait_are_refused() -> None:
    gate = Gate(Limits(answers=1, waiting=1))
    who = Visitors(gate)
    first, second = who.send("a"), who.send("b")
    await settle()
    with pytest.raises(Busy) as full:
        async with gate.enter(1):
            raise AssertionError("let in")
    assert full.value.status == 429
    second.cancel()
    await asyncio.wait([second])
    gate.limits = Limits(answers=1, waiting=1, wait_s=0.05)
    with pytest.raises(Busy) as late:
        await who.send("c")
    assert late.value.status == 503 and gate.waiting == 0
    first.cancel()
    await asyncio.wait([first])
    assert gate.active == 0
