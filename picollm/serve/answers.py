"""From a sound request to its response: waiting for a place, generating, collecting or streaming, being left."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Any, TypeVar

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from picollm.infer.engine import Engine
from picollm.infer.rows import Chunk, Completion, Vocabulary
from picollm.infer.sampling import Sampling, TokenLogprob
from picollm.serve.hub import ModelHub, Unavailable
from picollm.serve.limits import Gate, Limits
from picollm.serve.logprobs import LogprobWriter
from picollm.serve.metrics import Metrics
from picollm.serve.protocol import Answer, Envelope, error_body, usage_of

Item = Chunk | Completion | None
Items = AsyncIterator[tuple[int, Item]]
LINE_ENDS = "\x85\u2028\u2029"  # that JSON leaves as they are: clients that split text into lines break at them, too
LAST_WORD_S = 5  # seconds beyond the deadline in which a stream may still say that it is late
_T = TypeVar("_T")


class Generation:
    """One answer to be made: a job for the worker. `tok` is known from its first item on.

    Args:
        make: the prompt's ids, given the engine; raises `UserError` for a prompt that cannot be answered.
        offset: characters of a raw prompt, from which the places of tokens are counted.
    """

    def __init__(
        self, hub: ModelHub, model: str, make: Callable[[Engine], list[int]], sampling: Sampling, seed: int, *,
        chat: bool, offset: int = 0,
    ) -> None:  # fmt: skip
        self.hub, self.model, self.make, self.sampling, self.seed, self.chat = hub, model, make, sampling, seed, chat
        self.tok: Vocabulary | None = None
        self._writer = LogprobWriter(chat=chat, offset=offset)

    def __call__(self, cancel: threading.Event) -> Iterator[Item]:
        engine = self.hub.engine(self.model)
        ids = self.make(engine)
        self.tok = engine.tok
        yield None  # the request is sound: a stream may open
        yield from engine.stream(ids, self.sampling, cancel, seed=self.seed, tools=self.chat)

    def write_logprobs(self, records: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        if not self.sampling.logprobs:
            return None
        assert self.tok is not None
        return self._writer.write(self.tok, records)


class Answering:
    """The generations of one request, and where they run."""

    def __init__(
        self, hub: ModelHub, gate: Gate, metrics: Metrics, limits: Limits, generations: Sequence[Generation],
        per_prompt: int,
    ) -> None:  # fmt: skip
        self.hub, self.gate, self.metrics, self.limits = hub, gate, metrics, limits
        self.generations, self.per_prompt = generations, per_prompt
        self.begun = time.monotonic()
        self.deadline = asyncio.get_running_loop().time() + limits.answer_s

    async def items(self) -> Items:
        """What the worker says, as it says it, counted for /metrics. Leaving early frees the place."""
        model, last = self.generations[0].model, [0.0] * len(self.generations)
        async with (
            self.gate.enter(len(self.generations)),
            contextlib.aclosing(self.hub.worker.run(self.generations)) as found,  # type: ignore[type-var]
        ):
            async for index, item in found:
                if isinstance(item, Chunk) and item.ids:
                    now, later, wait = time.monotonic(), len(item.ids), 0.0
                    if last[index]:
                        wait = (now - last[index]) / later
                    else:
                        self.metrics.observe("picollm_first_token_seconds", now - self.begun, model=model)
                        later -= 1
                    for _ in range(later):
                        self.metrics.observe("picollm_token_seconds", wait, model=model)
                    last[index] = now
                elif isinstance(item, Completion):
                    self.metrics.add("picollm_completion_tokens_total", len(item.ids), model=model)
                    if index % self.per_prompt == 0:
                        self.metrics.add("picollm_prompt_tokens_total", item.prompt_tokens, model=model)
                yield index, item

    async def whole(self, envelope: Envelope) -> dict[str, Any]:
        """The body of a response that does not stream. Raises what a generation raised, and `Unavailable` when late."""
        done: dict[int, Completion] = {}
        records: list[list[TokenLogprob]] = [[] for _ in self.generations]
        try:
            async with asyncio.timeout_at(self.deadline), contextlib.aclosing(self.items()) as items:  # type: ignore[type-var]
                async for index, item in items:
                    if isinstance(item, Completion):
                        done[index] = item
                    elif item is not None:
                        records[index] += item.logprobs
        except TimeoutError:
            raise Unavailable(self.late()) from None
        answers = [
            Answer(done=done[k], seed=generation.seed, logprobs=generation.write_logprobs(records[k]))
            for k, generation in enumerate(self.generations)
        ]
        return envelope.whole(answers, usage_of([answer.done for answer in answers], self.per_prompt))

    async def open(self) -> EventSource:
        """Wait until every generation has begun: what is wrong with the request surfaces here, as an exception."""
        items, kept, begun = self.items(), [], 0
        try:
            async with asyncio.timeout_at(self.deadline):
                while begun < len(self.generations):
                    kept.append(await anext(items))
                    begun += kept[-1][1] is None
        except BaseException as error:
            await items.aclose()  # type: ignore[attr-defined]
            if isinstance(error, TimeoutError):
                raise Unavailable(self.late()) from None
            raise
        return EventSource(self, items, kept)

    def late(self) -> str:
        return f"the answer took longer than {self.limits.answer_s:g} s; ask for fewer tokens (max_tokens)"


class EventSource:
    """An opened stream: `kept` was read while opening, `items` are still to come."""

    def __init__(self, answering: Answering, items: Items, kept: list[tuple[int, Item]]) -> None:
        self.answering, self.items, self.kept = answering, items, kept

    async def close(self) -> None:
        """End what is under way; also for a stream that nobody began to read."""
        await self.items.aclose()  # type: ignore[attr-defined]

    async def events(self, envelope: Envelope) -> AsyncIterator[dict[str, Any] | None]:
        """Chunks of all choices as they come; None stands for the closing [DONE]."""
        generations = self.answering.generations
        done: dict[int, Completion] = {}
        async with contextlib.aclosing(self.items):  # type: ignore[type-var]
            try:
                async for index, item in self._everything():
                    generation = generations[index]
                    if item is None:
                        if envelope.chat:
                            yield envelope.opening(index)
                    elif isinstance(item, Completion):
                        done[index] = item
                        yield envelope.ending(index, item, generation.seed)
                    else:
                        if item.calls and envelope.with_tools:
                            yield envelope.tools_piece(index, item.calls)
                        if item.text or item.logprobs:
                            yield envelope.piece(index, item.text, generation.write_logprobs(item.logprobs))
            except Exception as error:  # the status is already sent: the stream itself must say it
                yield error_body(str(error) or repr(error), kind="server_error")
                return
        if envelope.with_usage:
            ordered = [done[index] for index in range(len(generations))]
            yield envelope.usage_piece(usage_of(ordered, self.answering.per_prompt))
        yield None

    async def _everything(self) -> Items:
        for pair in self.kept:
            yield pair
        while True:
            try:
                async with asyncio.timeout_at(self.answering.deadline):
                    pair = await anext(self.items)
            except StopAsyncIteration:
                return
            except TimeoutError:
                raise Unavailable(self.answering.late()) from None
            yield pair


class EventStream(Response):
    """Server-sent events that stop being made when the client hangs up, or reads too slowly until the deadline."""

    def __init__(self, source: EventSource, envelope: Envelope) -> None:
        super().__init__(None, media_type="text/event-stream", headers={"cache-control": "no-store"})
        self.source, self.events = source, source.events(envelope)
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def write() -> None:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async with contextlib.aclosing(self.events):  # type: ignore[type-var]
                async for event in self.events:
                    data = b"[DONE]" if event is None else _on_one_line(msgspec.json.encode(event))
                    await send({"type": "http.response.body", "body": b"data: " + data + b"\n\n", "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})

        left = self.source.answering.deadline - asyncio.get_running_loop().time()
        try:
            with contextlib.suppress(TimeoutError):  # it does not read; the server closes what is left unfinished
                await unless_gone(receive, asyncio.wait_for(write(), max(left, 0) + LAST_WORD_S))
        finally:
            await self.source.close()


def _on_one_line(data: bytes) -> bytes:
    """JSON without a character that anybody could take for the end of a line; they stand in texts only."""
    for end in LINE_ENDS:
        data = data.replace(end.encode(), f"\\u{ord(end):04x}".encode())
    return data


async def unless_gone(receive: Receive, work: Awaitable[_T]) -> _T | None:
    """Await `work`; or cancel it, and return None, as soon as the client hangs up."""

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    answer, hangup = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait([answer, hangup], return_when=asyncio.FIRST_COMPLETED)
        return answer.result() if answer.done() else None
    finally:
        for task in (answer, hangup):
            task.cancel()
        await asyncio.gather(answer, hangup, return_exceptions=True)
