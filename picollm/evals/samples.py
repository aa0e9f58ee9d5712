"""What a base model writes: continuations of fixed prompts.

A base model has not seen conversations, so a prompt is plain text after <|bos|> and the answer is whatever follows;
asked a question it usually goes on asking. The same prompts and seed make two checkpoints comparable.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import torch

from picollm.infer.engine import Engine
from picollm.infer.sampling import Sampling, row_seed
from picollm.model.gpt import GPT
from picollm.run.folder import write_atomic
from picollm.text.tokenizer import Tokenizer

DOCS_PROMPTS = (
    "The list is",
    "Return the number of",
    "A function definition",
    "This module provides",
    "If the file does not exist,",
    "Why is the sky blue?",
)
GENERAL_PROMPTS = (
    "The capital of France is",
    "If yesterday was Friday, then tomorrow will be",
    "The opposite of hot is",
    "The planets of the solar system are:",
    "My favorite color is",
    "Why is the sky blue?",
)


CHECKPOINT_TOKENS = 32
MOST_SHARE = 0.02  # of the time of training


class BaseSample(msgspec.Struct, frozen=True, kw_only=True):
    """One continuation; finish_reason and tok_s (tokens per second) as the engine gives them."""

    prompt: str
    text: str
    finish_reason: str
    tokens: int
    tok_s: float


def prompts_for(source: str) -> tuple[str, ...]:
    """Prompts that suit the text a model was trained on: `pydocs`, or anything else."""
    return DOCS_PROMPTS if source == "pydocs" else GENERAL_PROMPTS


def base_samples(
    engine: Engine,
    tok: Tokenizer,
    prompts: Sequence[str] = DOCS_PROMPTS,
    *,
    max_tokens: int = 64,
    temperature: float = 0.0,
    top_k: int = 50,
    seed: int = 0,
) -> list[BaseSample]:
    """One continuation per prompt, in order, each a function of (weights, prompt, its place in the list, settings)."""
    sampling = Sampling(max_tokens=max_tokens, temperature=temperature, top_k=top_k)
    seeds = [row_seed(seed, number) for number in range(len(prompts))]
    ids = [[tok.bos_id, *tok.encode(prompt)] for prompt in prompts]
    answers = engine.generate(ids, sampling, seeds=seeds, tools=False)
    return [
        BaseSample(
            prompt=prompt,
            text=answer.text,
            finish_reason=answer.finish_reason,
            tokens=len(answer.ids),
            tok_s=answer.tok_s,
        )
        for prompt, answer in zip(prompts, answers, strict=True)
    ]


class CheckpointSamples:
    """What the model writes at its checkpoints while it trains: `show` and a file `step-000200.jsonl` per step.

    Six prompts of 32 greedy tokens take a fifth of a second of one core for a model of 4 layers of 256 channels. The
    cost is bounded: a checkpoint that comes so soon that the last look is more than `MOST_SHARE` of the time since is
    passed over. Memory: the weights once more in the engine's dtype, given back after each look; where there is no room
    for them, `warn` is told once and training goes on without samples.

    A line of a file, every key always there: step, prompt, text, finish_reason, tokens, tok_s.
    """

    def __init__(
        self,
        model: GPT,
        tok: Tokenizer,
        prompts: Sequence[str],
        folder: Path,
        show: Callable[[int, BaseSample], None],
        warn: Callable[[str], None],
    ) -> None:
        self.model, self.tok, self.prompts, self.folder = model, tok, prompts, folder
        self.show, self.warn = show, warn
        self._cost, self._last, self._room = 0.0, time.monotonic(), True

    def __call__(self, step: int) -> None:
        begun = time.monotonic()
        if not self._room or self._cost > MOST_SHARE * (begun - self._last):
            return
        try:
            engine = Engine(self.model, self.tok)
            engine.model.backend = "auto"  # the one that trains may not suit so few tokens
            found = base_samples(engine, self.tok, self.prompts, max_tokens=CHECKPOINT_TOKENS)
        except torch.OutOfMemoryError:
            self._room = False
            self.warn("no memory left for samples at checkpoints; training goes on without them")
            return
        lines = [msgspec.json.encode({"step": step} | msgspec.structs.asdict(sample)) for sample in found]
        write_atomic(self.folder / f"step-{step:06d}.jsonl", b"\n".join(lines) + b"\n")
        for sample in found:
            self.show(step, sample)
        self._last = time.monotonic()
        self._cost = self._last - begun
