"""Batched generation with a KV cache. It knows ids, not conversations: rendering a chat is `picollm.text.chat`.

    engine = Engine(model, tok)
    [answer] = engine.generate([prompt_ids], Sampling(temperature=0.8, max_tokens=100))
    for piece in engine.stream(prompt_ids, Sampling()): ...   # Chunk, Chunk, ..., Completion

All answers of an engine, whoever asked for them, are decoded in one batch that they join and leave (`scheduler`). A row
says the same alone as in any company: its random numbers depend on its seed and the position only. (Kernels may round
differently at another batch size; that moves logits in their last bits, which decides a token only in a near tie.)

A prompt longer than the context is cut from the left, see `fit`.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from picollm.infer.decoder import Decoder
from picollm.infer.rows import Chunk, Completion, Marks, Row, Vocabulary
from picollm.infer.sampling import Sampling
from picollm.infer.scheduler import Request, Scheduler
from picollm.model.gpt import GPT
from picollm.run.errors import UserError


def prompt_room(context: int, max_tokens: int) -> int:
    """Tokens that a prompt may have: the answer is left min(max_tokens, context / 4) of the context."""
    return context - min(max_tokens, max(1, context // 4))


def fit(prompt: Sequence[int], context: int, max_tokens: int, keep_first: int) -> list[int]:
    """The part of a prompt the model reads, of at most `prompt_room` tokens.

    A prompt that is too long loses tokens from the left; if it begins with `keep_first` (bos), that one stays.
    """
    most = prompt_room(context, max_tokens)
    if len(prompt) <= most:
        return list(prompt)
    if prompt[0] == keep_first and most > 1:
        return [keep_first, *prompt[len(prompt) - most + 1 :]]
    return list(prompt[len(prompt) - most :])


class Engine:
    """A model, its tokenizer, and the weights in the form that decodes fastest.

    `source` is the model as given (for a loss over text), `model` the twin that decodes. Several threads may ask.

    Args:
        model: its weights are shared where their dtype fits and copied where not.
        tok: gives the ids that end an answer or call a tool, and the bytes of the rest.
        dtype: of weights and cache; by default fp32 on a CPU, bf16 on a GPU (`precision` chooses for a server).
        int8: the matrices are multiplied in 8 bits (CPU only).
        live: the model may be trained between calls, so read the weights anew at each. Turn off to serve.
        max_rows: rows decoded together; others wait.
        ahead: tokens decoded before the host looks at them; by default 1 on a CPU, 8 on a GPU.
        cache_bytes: of keys and values; by default a quarter of the memory.
    """

    def __init__(
        self,
        model: GPT,
        tok: Vocabulary,
        *,
        dtype: torch.dtype | None = None,
        int8: bool = False,
        live: bool = True,
        max_rows: int = 64,
        ahead: int | None = None,
        cache_bytes: int | None = None,
    ) -> None:
        if tok.vocab_size != model.shape.vocab_size:
            raise UserError(
                f"the model has {model.shape.vocab_size} tokens and the tokenizer {tok.vocab_size}; "
                "use the tokenizer the model was trained with"
            )
        on_gpu = model.device.type == "cuda"
        self.tok, self.live = tok, live
        self.marks = Marks(tok)
        self.meta: dict[str, Any] = {}  # the checkpoint's, when it came from one
        self.source = model
        dtype = dtype or (torch.bfloat16 if model.device.type != "cpu" else torch.float32)
        self.model = Decoder(model, dtype, int8=int8)
        self.scheduler = Scheduler(
            self.model,
            max_rows=max_rows,
            ahead=ahead or (8 if on_gpu else 1),
            cache_bytes=_memory(model.device) // 4 if cache_bytes is None else cache_bytes,
        )

    @property
    def context(self) -> int:
        """Most tokens of prompt and answer together."""
        return self.model.shape.seq_len

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and cache."""
        return self.model.dtype

    def refresh(self) -> None:
        """Take over the model's present weights."""
        with self.scheduler.lock:
            self.model.refresh(self.source)

    def only_decode(self) -> None:
        """Give back the memory of what decoding does not read: the model as it was given, and matrices that the
        decoder has in a form of its own. From now on there is no `source` to measure a loss with, and no `refresh`.
        """
        self.live = False
        self.model.forget_matrices()
        for parameter in self.source.parameters():
            parameter.data = parameter.new_empty(0)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        seeds: Sequence[int] | None = None,
        tools: bool = True,
        cancel: threading.Event | None = None,
    ) -> list[Completion]:
        """One answer per prompt, in order.

        Args:
            seeds: one per prompt; without them every row uses `sampling.seed`, so equal prompts get equal answers.
            tools: run the calculator when the model calls it.
            cancel: when set, unfinished answers end as they are, with finish_reason `cancel`.

        Raises:
            UserError: a prompt is empty or has ids outside the vocabulary.
        """
        seeds = [sampling.seed] * len(prompts) if seeds is None else seeds
        requests = [self._request(prompt, sampling, seed, tools) for prompt, seed in zip(prompts, seeds, strict=True)]
        with self._joined(requests):
            for request in requests:
                while not request.done:
                    self._advance(request, cancel)
        for request in requests:
            if request.error is not None:
                raise request.error
        return [request.row.completion() for request in requests]

    def stream(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        cancel: threading.Event | None = None,
        *,
        seed: int | None = None,
        tools: bool = True,
    ) -> Iterator[Chunk | Completion]:
        """The same answer as `generate`, as it is made: chunks of new text, then one Completion.

        Joined, the chunks' texts are the completion's text. A chunk may hold tokens and no text (a tool call, half
        a character, the beginning of a stop text), several tokens (others made the batch step), or nothing (the
        prompt is being read). Streams that are asked in turn are decoded together.
        """
        request = self._request(prompt, sampling, sampling.seed if seed is None else seed, tools)
        with self._joined([request]):
            while True:
                if not request.ids and not request.done:
                    self._advance(request, cancel)
                with self.scheduler.lock:
                    chunk, done = request.take(), request.done
                if request.error is not None:
                    raise request.error
                yield chunk
                if done:
                    break
        yield request.row.completion()

    def _request(self, prompt: Sequence[int], sampling: Sampling, seed: int, tools: bool) -> Request:
        _check_prompt(prompt, self.tok.vocab_size)
        ids = fit(prompt, self.context, sampling.max_tokens, self.tok.bos_id)
        limit = min(sampling.max_tokens, self.context - len(ids))
        cut = len(prompt) - len(ids)
        row = Row(self.marks, sampling, prompt_tokens=len(ids), limit=limit, cut_tokens=cut, tools=tools)
        return Request(row, ids, sampling, seed)

    @contextlib.contextmanager
    def _joined(self, requests: Sequence[Request]) -> Iterator[None]:
        """The requests are with the scheduler inside, and what is left of them is gone afterwards."""
        with self.scheduler.lock:
            if self.live:
                self.model.refresh(self.source)
            for request in requests:
                self.scheduler.join(request)
        try:
            yield
        finally:
            with self.scheduler.lock:
                for request in requests:
                    self.scheduler.leave(request)

    def _advance(self, request: Request, cancel: threading.Event | None) -> None:
        """One step for everybody, or the end of this request if it is cancelled."""
        with self.scheduler.lock:
            if cancel is not None and cancel.is_set():
                request.cancel()
                self.scheduler.leave(request)
            elif not request.done:
                self.scheduler.step()


def _memory(device: torch.device) -> int:
    """Bytes of memory of the device, or of the machine where the device has none of its own."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _check_prompt(prompt: Sequence[int], vocab_size: int) -> None:
    if not prompt:
        raise UserError("the prompt is empty; start it with <|bos|>")
    if min(prompt) < 0 or max(prompt) >= vocab_size:
        raise UserError(f"the prompt has token ids outside 0..{vocab_size - 1}; was it made with another tokenizer?")
