"""Rollouts for reinforcement learning: questions answered several times, and which answers did better than the rest.

Group-relative policy optimisation (Shao et al. 2024) in its plainest form: advantage = reward - mean reward of the
question's answers, not divided by their spread (Liu et al. 2025, "Dr. GRPO"); no reference model, no clipping, since
every batch is used once; normalised by tokens, so that a long answer weighs more than a short one.

Question q of step s, sample n draws from (seed, s, q, n, position): a rollout that was interrupted is redone the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec
import numpy as np

from picollm.infer.engine import Engine
from picollm.infer.rows import Completion
from picollm.infer.sampling import Sampling, row_seed
from picollm.run.errors import UserError
from picollm.tasks.base import Example
from picollm.text.chat import render_prompt

ROW_MULTIPLE = 64  # row lengths are rounded up to this, so that compiled training meets few shapes


class Rewarder(Protocol):
    """What a rollout needs of a task."""

    name: str

    def reward(self, example: Example, answer_text: str) -> float: ...


@dataclass(frozen=True)
class Rollouts:
    """Answers to a set of questions, as arrays to train on. N = questions * samples rows, sample index fastest.

    Attributes:
        inputs, targets: int64 (N, T); rows end in padding of weight 0.
        weights: float32 (N, T): the answer's advantage where the target is a sampled token, else 0 (prompt, tool
            output, padding).
        counted: bool (N, T): the sampled tokens. Not `weights != 0`: an advantage may be 0.
        denom: number of counted tokens; sum it over ranks before use.
        rewards: float64 (questions, samples).
        texts: what a reader sees of each answer, (questions, samples).
        completions: the answers with their ids, in the order of the rows.
        sums: what `figures` makes a step's curves of; add those of several ranks first (`added`).
    """

    inputs: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    counted: np.ndarray
    denom: float
    rewards: np.ndarray
    texts: list[list[str]]
    completions: list[Completion]
    sums: dict[str, float]

    def teaching(self, multiple: int = ROW_MULTIPLE) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """inputs, targets and weights of the rows that teach something, as long as the longest of them needs.

        The others have advantage 0 and add exactly nothing to the gradient, so the work of a step is what questions
        with unequal answers make. At least one row, and a length that is a multiple of `multiple` or all there is.
        """
        rows = np.flatnonzero(self.weights.any(axis=1))
        rows = rows if len(rows) else np.arange(1)
        last = np.flatnonzero(self.counted[rows].any(axis=0)).max(initial=0) + 1
        T = min(self.inputs.shape[1], -(-last // multiple) * multiple)
        return self.inputs[rows, :T], self.targets[rows, :T], self.weights[rows, :T]


def advantages(rewards: np.ndarray) -> np.ndarray:
    """reward - mean over each question's answers; (questions, samples) -> the same shape, rows sum to 0."""
    return rewards - rewards.mean(axis=1, keepdims=True)


def rollout(
    engine: Engine,
    task: Rewarder,
    examples: Sequence[Example],
    *,
    samples: int,
    seed: int,
    step: int,
    first_question: int = 0,
    sampling: Sampling | None = None,
    row_length: int | None = None,
) -> Rollouts:
    """Answer each example `samples` times with the engine's present weights, and weigh the tokens.

    Args:
        first_question: number of the first example within the whole step's questions, so that ranks that share the
            questions draw what a single rank would have drawn.
        sampling: default temperature 1, top-k 50, 256 tokens. Its seed is not used.
        row_length: T; by default the longest row rounded up to a multiple of 64, at most the context.

    Raises:
        UserError: no examples, fewer than 2 samples, a prompt that leaves no room for an answer of
            `sampling.max_tokens`, or a row longer than `row_length`.
    """
    if not examples:
        raise UserError(f"rl: the task {task.name!r} gave no questions; check its settings")
    if samples < 2:
        raise UserError(f"rl: samples = {samples}, but an answer is judged against others: set at least 2")
    sampling = msgspec.structs.replace(sampling or Sampling(temperature=1.0, top_k=50, max_tokens=256), logprobs=True)
    engine.refresh()
    room = engine.context - sampling.max_tokens
    if room < 1:
        raise UserError(f"rl: max_tokens = {sampling.max_tokens} leaves no room for a question in a context of "
                        f"{engine.context} tokens; lower it")  # fmt: skip
    prompts = [render_prompt(example.prompt, engine.tok, max_tokens=room) for example in examples]  # type: ignore[arg-type]
    questions = range(first_question, first_question + len(examples))
    completions = engine.generate(
        [prompt for prompt in prompts for _ in range(samples)],
        sampling,
        seeds=[row_seed(seed, step, q, n) for q in questions for n in range(samples)],
    )
    rewards = np.array([
        [task.reward(example, completions[q * samples + n].text) for n in range(samples)]
        for q, example in enumerate(examples)
    ], dtype=np.float64)  # fmt: skip

    rows = [(prompts[i // samples], done) for i, done in enumerate(completions)]
    inputs, targets, counted = _rows(rows, engine.context, row_length)
    weights = counted * advantages(rewards).reshape(-1, 1)
    return Rollouts(
        inputs=inputs,
        targets=targets,
        weights=weights.astype(np.float32),
        counted=counted,
        denom=float(counted.sum()),
        rewards=rewards,
        texts=[[completions[q * samples + n].text for n in range(samples)] for q in range(len(examples))],
        completions=completions,
        sums=_sums(rewards, completions),
    )


def _rows(
    rows: Sequence[tuple[list[int], Completion]], context: int, row_length: int | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """inputs, targets, counted (N, T) of prompts and their answers."""
    longest = max(len(prompt) + len(done.ids) for prompt, done in rows) - 1
    T = row_length or min(context, -(-longest // ROW_MULTIPLE) * ROW_MULTIPLE)
    if longest > T:
        raise UserError(f"rl: an answer makes a row of {longest} tokens and row_length is {T}; raise it")
    inputs = np.zeros((len(rows), T), dtype=np.int64)
    targets = np.zeros((len(rows), T), dtype=np.int64)
    counted = np.zeros((len(rows), T), dtype=bool)
    for b, (prompt, done) in enumerate(rows):
        ids = prompt + done.ids
        n, start = len(ids) - 1, len(prompt) - 1
        inputs[b, :n], targets[b, :n] = ids[:-1], ids[1:]
        counted[b, start:n] = ~np.array(done.forced, dtype=bool)
    return inputs, targets, counted


def _sums(rewards: np.ndarray, completions: Sequence[Completion]) -> dict[str, float]:
    sampled = [
        token
        for done in completions
        for token, forced in zip(done.logprobs or [], done.forced, strict=True)
        if not forced
    ]
    return {
        "questions": len(rewards),
        "answers": rewards.size,
        "sampled": len(sampled),
        "reward": float(rewards.sum()),
        "reward_squared": float((rewards**2).sum()),
        "solved": float((rewards.max(axis=1) >= 1).sum()),
        "useful": float((rewards.max(axis=1) > rewards.min(axis=1)).sum()),
        "tokens": float(sum(len(done.ids) for done in completions)),
        "ended": float(sum(done.finish_reason == "stop" for done in completions)),
        "nll": -math.fsum(token.logprob for token in sampled),
        "entropy": math.fsum(token.entropy for token in sampled),
    }


def added(several: Iterable[dict[str, float]]) -> dict[str, float]:
    """The sums of all ranks together."""
    total: dict[str, float] = {}
    for sums in several:
        for key, value in sums.items():
            total[key] = total.get(key, 0.0) + value
    return total


def figures(sums: dict[str, float]) -> dict[str, float]:
    """A step's curves, from the sums over all its answers.

    reward, reward_std   of the answers
    solved               questions with at least one full reward
    useful               questions whose answers differ in reward: only these teach
    tokens               mean length of an answer, tool output included
    ended                share of the answers that ended themselves
    nll                  mean -log p of the sampled tokens, nats
    entropy              mean entropy of the distributions they were drawn from, nats; both before temperature and top-k
    """
    mean = {
        key: sums[key] / max(1, sums[over])
        for over, keys in (
            ("answers", ("reward", "tokens", "ended")),
            ("questions", ("solved", "useful")),
            ("sampled", ("nll", "entropy")),
        )
        for key in keys
    }
    spread = sums["reward_squared"] / max(1, sums["answers"]) - mean["reward"] ** 2
    return mean | {"reward_std": math.sqrt(max(0.0, spread))}
