"""Asking the models: one stream of text per answer, from the inference process, never from torch in here.

`Talker.answer()` is what Compare and Chat use. It starts the inference process when there is none, in a thread, and
yields `Piece`s; leaving the loop early cancels the answer on the other side.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from picollm.run.errors import UserError
from picollm.run.folder import Run


class Sampling(msgspec.Struct, kw_only=True):
    """How an answer is drawn. Same text, seed and settings: same answer."""

    temperature: float = 0.7
    top_k: int = 50
    seed: int = 1
    max_tokens: int = 96
    system: str = ""


class Piece(msgspec.Struct, kw_only=True):
    """Some more text; the last piece says why it ended and how fast it came (tokens a second)."""

    text: str = ""
    finish_reason: str | None = None
    tok_s: float | None = None
    tokens: int | None = None


class Talker:
    """The way to one run's inference process, which is started when it is not there: it leaves when idle."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._lock = asyncio.Lock()

    async def client(self) -> Any:
        """A client of a living process. Raises `UserError` with its last words when it cannot start."""
        async with self._lock:
            return await asyncio.to_thread(self._connect)

    def _connect(self) -> Any:
        from picollm.run import serving

        return serving.Client(serving.ensure_serving(self.run))

    async def answer(self, model: str, messages: list[dict[str, str]], sampling: Sampling) -> AsyncIterator[Piece]:
        """One answer. The base model continues the last message as raw text; chat models get the conversation.

        Raises `UserError`: one line, whatever went wrong on the way.
        """
        client = await self.client()
        try:
            async for delta in self._stream(client, model, messages, sampling):
                yield Piece(
                    text=delta.text, finish_reason=delta.finish_reason, tok_s=delta.tok_s,
                    tokens=delta.tokens if delta.finish_reason else None,
                )  # fmt: skip
        except OSError as error:
            raise UserError(f"the inference process does not answer: {error}; ask again to start it") from None

    def _stream(self, client: Any, model: str, messages: list[dict[str, str]], sampling: Sampling) -> Any:
        knobs = {
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "seed": sampling.seed,
            "max_tokens": sampling.max_tokens,
        }
        if model == "base":
            return client.astream_completion(model, messages[-1]["content"], **knobs)
        system = [{"role": "system", "content": sampling.system}] if sampling.system else []
        return client.astream_chat(model, system + messages, **knobs)
