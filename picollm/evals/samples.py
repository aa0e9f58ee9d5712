"""What a base model writes: continuations of fixed prompts.

A base model has not seen conversations, so a prompt is plain text after <|bos|> and the answer is whatever follows;
asked a question it usually goes on asking. The same prompts and seed make two checkpoints comparable.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from picollm.infer.engine import Engine
from picollm.infer.sampling import Sampling, row_seed
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
