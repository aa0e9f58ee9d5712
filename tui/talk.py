"""Asking the models: one stream of text per answer, from the inference process, never from torch in here.

`Talker.answer()` is what Compare and Chat use. It starts the inference process when there is none, in a thread, and
yields `Piece`s; leaving the loop early cancels the answer on the other side.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec

from picollm.run.errors import UserError
from picollm.run.folder import Run
from picollm.run.stream import Token, ToolCall
from picollm.run.structs import complete
from tui.voices import Voice

LIKELIEST = 5  # tokens told beside each; plain completions allow no more


@complete
class Sampling(msgspec.Struct, kw_only=True):
    """How an answer is drawn. Same text, seed and settings: same answer."""

    temperature: float = 0.7
    top_k: int = 50
    seed: int = 1
    max_tokens: int = 96
    system: str = ""


class Piece(msgspec.Struct, kw_only=True):
    """Some more of an answer; the last piece says why it ended, and what was measured.

    `first_token_s` seconds, `tok_s` tokens per second; `seen` the tokens behind the text, where they were asked for.
    """

    text: str = ""
    finish_reason: str | None = None
    tok_s: float | None = None
    first_token_s: float | None = None
    tokens: int | None = None
    prompt_tokens: int | None = None
    cut_tokens: int = 0
    seen: tuple[Token, ...] = ()
    calls: tuple[ToolCall, ...] = ()


class Talker:
    """The way to the inference processes of runs, which are started when they are not there and leave when idle, and
    to endpoints of others. `run` is the one whose models need no other name."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._locks: dict[str, asyncio.Lock] = {}

    def voice(self, model: str) -> Voice:
        """One of the run's own models."""
        return Voice(model=model, run=str(self.run.dir))

    async def client(self, voice: Voice) -> Any:
        """A client of a living process. Raises `UserError` with its last words when it cannot start."""
        async with self._locks.setdefault(voice.run or voice.url, asyncio.Lock()):
            return await asyncio.to_thread(self._connect, voice)

    def _connect(self, voice: Voice) -> Any:
        from picollm.run import endpoint, serving

        if not voice.url:
            return serving.Client(serving.ensure_serving(Run(Path(voice.run))))
        return serving.Client(endpoint.at(voice.url))

    async def answer(self, voice: Voice, messages: list[dict[str, str]], sampling: Sampling, tokens: bool = False,
                     ) -> AsyncIterator[Piece]:  # fmt: skip
        """One answer. A base model continues the last message as raw text; others get the conversation.

        `tokens`: with the probability of each token. Raises `UserError`: one line, whatever went wrong on the way.
        """
        client = await self.client(voice)
        try:
            async for delta in self._stream(client, voice, messages, sampling, tokens):
                yield Piece(
                    text=delta.text, finish_reason=delta.finish_reason, tok_s=delta.tok_s,
                    tokens=delta.tokens if delta.finish_reason else None, first_token_s=delta.first_token_s,
                    prompt_tokens=delta.prompt_tokens, cut_tokens=delta.cut_tokens, seen=delta.seen, calls=delta.calls,
                )  # fmt: skip
        except OSError as error:
            raise UserError(f"the inference process does not answer: {error}; ask again to start it") from None

    def _stream(self, client: Any, voice: Voice, messages: list[dict[str, str]], sampling: Sampling,
                tokens: bool) -> Any:  # fmt: skip
        knobs: dict[str, Any] = {
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "seed": sampling.seed,
            "max_tokens": sampling.max_tokens,
        }
        if tokens:
            knobs["logprobs"] = LIKELIEST
        if voice.continues:
            return client.astream_completion(voice.model, messages[-1]["content"], **knobs)
        system = [{"role": "system", "content": sampling.system}] if sampling.system else []
        return client.astream_chat(voice.model, system + messages, show_tools=True, **knobs)
