"""Batched generation with a KV cache. It knows ids, not conversations: rendering a chat is `picollm.text.chat`.

    engine = Engine(model, tok)
    [answer] = engine.generate([prompt_ids], Sampling(temperature=0.8, max_tokens=100))
    for piece in engine.stream(prompt_ids, Sampling()): ...   # Chunk, Chunk, ..., Completion

Prompts of different length share a batch, each row ends by itself, and a row says the same alone as in any company:
its random numbers depend on its seed and the position only. (Kernels may round differently at another batch size; that
moves logits in their last bits, which decides a token only in a near tie.)

A prompt longer than the context is cut from the left, see `fit`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from picollm.infer.rows import Chunk, Completion, Marks, Row, Vocabulary
from picollm.infer.sampling import Sampling, logprobs_of, penalise, pick, uniforms
from picollm.model.gpt import GPT, KVCache
from picollm.run.errors import UserError


def fit(prompt: Sequence[int], context: int, max_tokens: int, keep_first: int) -> list[int]:
    """The part of a prompt the model reads, leaving room for an answer of min(max_tokens, context / 4) tokens.

    A prompt that is too long loses tokens from the left; if it begins with `keep_first` (bos), that one stays.
    """
    most = context - min(max_tokens, max(1, context // 4))
    if len(prompt) <= most:
        return list(prompt)
    if prompt[0] == keep_first and most > 1:
        return [keep_first, *prompt[len(prompt) - most + 1 :]]
    return list(prompt[len(prompt) - most :])


class Engine:
    """A model, its tokenizer, and the weights in the form that decodes fastest.

    `source` is the model as given (for a loss over text), `model` the twin that decodes.

    Args:
        model: its weights are shared where their dtype fits and copied where not.
        tok: gives the ids that end an answer or call a tool, and the bytes of the rest.
        dtype: of weights and cache; by default fp32 on a CPU (small products are faster in it than in bf16 there),
            bf16 on a GPU.
        live: the model may be trained between calls, so read the weights anew at each. Turn off to serve.
        max_rows: rows decoded together; more prompts than that are answered in several batches.
    """

    def __init__(
        self, model: GPT, tok: Vocabulary, *, dtype: torch.dtype | None = None, live: bool = True, max_rows: int = 64
    ) -> None:
        if tok.vocab_size != model.shape.vocab_size:
            raise UserError(
                f"the model has {model.shape.vocab_size} tokens and the tokenizer {tok.vocab_size}; "
                "use the tokenizer the model was trained with"
            )
        self.tok, self.live, self.max_rows = tok, live, max_rows
        self.dtype = dtype or (torch.float32 if model.device.type == "cpu" else torch.bfloat16)
        self.marks = Marks(tok)
        self.meta: dict[str, Any] = {}  # the checkpoint's, when it came from one
        self.source = model
        with torch.device("meta"):
            self.model = GPT(model.shape)
        self.model.cos, self.model.sin = model.cos, model.sin
        self.model.attention_backend = model.attention_backend
        self.refresh()

    @property
    def context(self) -> int:
        """Most tokens of prompt and answer together."""
        return self.model.shape.seq_len

    @property
    def device(self) -> torch.device:
        return self.source.device

    @torch.no_grad()
    def refresh(self) -> None:
        """Take over the model's present weights."""
        weights = {name: p.detach().to(self.dtype) for name, p in self.source.named_parameters()}
        self.model.load_state_dict(weights, assign=True)
        self.model.requires_grad_(False)
        self.model.fuse()

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
        seeds = [sampling.seed] * len(prompts) if seeds is None else list(seeds)
        if self.live:
            self.refresh()
        answers: list[Completion] = []
        for i in range(0, len(prompts), self.max_rows):
            part = slice(i, i + self.max_rows)
            batch = _Batch(self, prompts[part], sampling, seeds[part], tools)
            while not batch.done:
                if cancel is not None and cancel.is_set():
                    batch.cancel()
                else:
                    batch.step()
            answers += [row.completion() for row in batch.rows]
        return answers

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
        a character, the beginning of a stop text).
        """
        if self.live:
            self.refresh()
        batch = _Batch(self, [prompt], sampling, [sampling.seed if seed is None else seed], tools)
        [row] = batch.rows
        while not batch.done:
            if cancel is not None and cancel.is_set():
                [text] = batch.cancel()
                yield Chunk(text, logprobs=row.take_logprobs())
            else:
                [text] = batch.step()
                yield Chunk(text, row.ids[-1:], row.take_logprobs())
        yield row.completion()


class _Batch:
    """Rows decoded in step. Finished rows idle in the cache until half of it idles, then it is compacted."""

    def __init__(
        self, engine: Engine, prompts: Sequence[Sequence[int]], sampling: Sampling, seeds: Sequence[int], tools: bool
    ) -> None:
        self.engine, self.sampling = engine, sampling
        self.prompts: list[list[int]] = []
        self.rows: list[Row] = []
        for prompt in prompts:
            _check_prompt(prompt, engine.tok.vocab_size)
            ids = fit(prompt, engine.context, sampling.max_tokens, engine.tok.bos_id)
            limit = min(sampling.max_tokens, engine.context - len(ids))
            self.prompts.append(ids)
            self.rows.append(
                Row(engine.marks, sampling, prompt_tokens=len(ids), limit=limit,
                    cut_tokens=len(prompt) - len(ids), tools=tools)
            )  # fmt: skip
        self.live = list(range(len(self.rows)))  # index into rows, by cache row
        self.steps = 0
        most = max((row.limit for row in self.rows), default=0)
        self.u = torch.from_numpy(uniforms(list(seeds), most)).to(engine.device) if sampling.temperature else None
        self.cache: KVCache | None = None
        self.next: Tensor | None = None
        self.seen: Tensor | None = None  # bool (rows, vocabulary), for the penalty on repetition
        if sampling.repetition_penalty != 1:
            self.seen = torch.zeros(len(self.rows), engine.tok.vocab_size, dtype=torch.bool, device=engine.device)
            for b, ids in enumerate(self.prompts):
                self.seen[b, ids] = True

    @property
    def done(self) -> bool:
        return all(row.finish_reason for row in self.rows)

    def cancel(self) -> list[str]:
        return ["" if row.finish_reason else row.cancel() for row in self.rows]

    @torch.inference_mode()
    def step(self) -> list[str]:
        """One more token for every unfinished row; the new text of each row."""
        engine, model = self.engine, self.engine.model
        if self.cache is None:
            logits = self._read_prompts()
        else:
            assert self.next is not None
            logits = model.logits(model.hidden(self.next, self.cache))[:, -1]
        u = self.u[:, self.steps] if self.u is not None else logits[:, 0]
        allowed = logits if self.seen is None else penalise(logits, self.seen, self.sampling.repetition_penalty)
        picked = pick(allowed, self.sampling, u)
        logprobs = logprobs_of(logits, picked, self.sampling.top_logprobs) if self.sampling.logprobs else None
        self.steps += 1

        texts = [""] * len(self.rows)
        tokens, changed = picked.tolist(), False
        for b, i in enumerate(self.live):
            row = self.rows[i]
            if row.finish_reason:
                continue
            forced = bool(row.queue)
            if forced:
                tokens[b], changed = row.queue.popleft(), True
            texts[i] = row.push(tokens[b], forced=forced, logprob=logprobs[b] if logprobs else None)
        self.next = (torch.tensor(tokens, device=engine.device) if changed else picked)[:, None]
        if self.seen is not None:
            self.seen.scatter_(1, self.next, True)
        self._compact()
        return texts

    def _read_prompts(self) -> Tensor:
        """Fill the cache and return the logits after each prompt. Equal prompts are read once and shared."""
        model, device = self.engine.model, self.engine.device
        index: dict[tuple[int, ...], int] = {}
        which = [index.setdefault(tuple(p), len(index)) for p in self.prompts]
        lengths = [len(p) for p in index]
        ids = torch.zeros(len(index), max(lengths), dtype=torch.int64)
        for b, prompt in enumerate(index):
            ids[b, : len(prompt)] = torch.tensor(prompt)
        length = max(row.prompt_tokens + row.limit for row in self.rows)
        self.cache = KVCache(model.shape, len(index), length, device=device, dtype=self.engine.dtype)
        self.cache.expect(lengths)
        x = model.hidden(ids.to(device), self.cache)
        last = torch.tensor(lengths, device=device) - 1
        logits = model.logits(x[torch.arange(len(index), device=device), last])
        if len(index) < len(self.prompts):
            rows = torch.tensor(which, device=device)
            self.cache.keep(rows)
            logits = logits[rows]
        return logits

    def _compact(self) -> None:
        assert self.cache is not None and self.next is not None
        busy = [b for b, i in enumerate(self.live) if not self.rows[i].finish_reason]
        # An idle row may be the longest: it must not push the cache past its end.
        full = self.cache.bound >= self.cache.length
        if not busy or len(busy) == len(self.live) or (2 * len(busy) > len(self.live) and not full):
            return
        rows = torch.tensor(busy, device=self.engine.device)
        self.cache.keep(rows)
        self.live = [self.live[b] for b in busy]
        self.next = self.next[rows]
        if self.u is not None:
            self.u = self.u[rows]
        if self.seen is not None:
            self.seen = self.seen[rows]


def _check_prompt(prompt: Sequence[int], vocab_size: int) -> None:
    if not prompt:
        raise UserError("the prompt is empty; start it with <|bos|>")
    if min(prompt) < 0 or max(prompt) >= vocab_size:
        raise UserError(f"the prompt has token ids outside 0..{vocab_size - 1}; was it made with another tokenizer?")
