"""What one server takes on: sizes, numbers and times, and the gate that keeps to them."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator

import msgspec

from picollm.run.errors import UserError

RETRY_AFTER_S = 2  # what a client that was turned away is told to wait


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds that keep one client from harming the others.

    Attributes:
        body: bytes of a request; far beyond any context these models have.
        body_s: seconds a request may take to arrive.
        messages: messages of a conversation.
        answers: answers made at once; a request with n = 4 makes four.
        waiting: requests in the queue; the next one is refused with 429.
        wait_s: seconds in the queue before a request is refused with 503.
        answer_s: seconds from a request to its last token.
    """

    body: int = 2**20
    body_s: float = 30.0
    messages: int = 1024
    answers: int = 64
    waiting: int = 256
    wait_s: float = 60.0
    answer_s: float = 600.0


class Busy(UserError):
    """The server has too much to do. `status`: 429 = the queue is full, 503 = it did not get to this request."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Gate:
    """Lets so many answers be made at once; the others wait their turn, first come, first served.

    Not thread-safe: for one event loop.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.active = 0  # answers being made
        self._queue: deque[tuple[asyncio.Future[None], int]] = deque()

    @property
    def waiting(self) -> int:
        return len(self._queue)

    @contextlib.asynccontextmanager
    async def enter(self, answers: int) -> AsyncIterator[None]:
        """Wait until there is room for this many answers. Raises `Busy` when the queue or the wait is too long."""
        if self._queue or not self._fits(answers):
            await self._wait(answers)
        else:
            self.active += answers
        try:
            yield
        finally:
            self.active -= answers
            self._admit()

    def _fits(self, answers: int) -> bool:
        # More than all places at once are let in when they are alone, else they would wait forever.
        return not self.active or self.active + answers <= self.limits.answers

    async def _wait(self, answers: int) -> None:
        if len(self._queue) >= self.limits.waiting:
            raise Busy(f"{len(self._queue)} requests are waiting already; ask again later", 429)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        place = (turn, answers)
        self._queue.append(place)
        try:
            async with asyncio.timeout(self.limits.wait_s):
                await turn
        except BaseException as error:
            if place in self._queue:
                self._queue.remove(place)
            else:  # let in at the very moment it left
                self.active -= answers
            self._admit()
            if isinstance(error, TimeoutError):
                raise Busy(f"no room for this request within {self.limits.wait_s:g} s; ask again later", 503) from None
            raise

    def _admit(self) -> None:
        # One that was cancelled stays at the head until its own clean-up, which admits the next.
        while self._queue and not self._queue[0][0].cancelled() and self._fits(self._queue[0][1]):
            turn, answers = self._queue.popleft()
            self.active += answers
            turn.set_result(None)
