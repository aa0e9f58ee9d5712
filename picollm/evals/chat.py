"""Held-out accuracy of a chat model on a task, with its uncertainty and its failures.

Choice tasks compare the logits of the letters after the prompt; nothing is sampled. Generative tasks sample greedily
through the engine, tools running, and let the task's rule judge what a reader would see; a rule may run programs, so
several answers are judged at once.

Items are cut into blocks of consecutive indices and block b goes to rank b mod world, so a block is computed the same
way whatever the number of ranks, and 1 rank and 2 ranks report the same figures.

A result as JSON (`Result.as_dict`), every key always there:

    task kind            name of the task; "generative" or "choice"
    n correct            items asked, items right
    accuracy low high    correct / n and its Wilson 95 % interval, 0 to 1
    baseline             accuracy of blind guessing
    too_long             items whose prompt did not fit the context; they count as wrong
    ended                share of sampled answers that the model ended itself; null for choice
    topics               {topic: [correct, n]} where the task has topics
    max_new_tokens       limit of an answer; 0 for choice
    sampling             {temperature, max_tokens, tools} of the answers; null for choice
    seconds              wall clock
    failures             [{index, topic, prompt, expected, got}], the first ones by index; index into the held-out list
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import torch
import torch.distributed as dist

from picollm.infer.engine import Engine, prompt_room
from picollm.infer.sampling import Sampling
from picollm.run.errors import UserError
from picollm.tasks.base import Example, Task
from picollm.text.chat import render_prompt
from picollm.text.tokenizer import Tokenizer
from picollm.train.device import usable_cpus

BLOCK = 64  # items computed together; the engine's own batch
CHOICE_TOKENS = 16_384  # of prompts read at once, padding counted: bounds the memory of long questions
JUDGES = 8  # answers judged at the same time, at most
KEPT_FAILURES = 20
Z_95 = 1.959963984540054
TOO_LONG = "(the prompt does not fit the context)"


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """A wrong answer: what was asked, what was right, what came."""

    index: int
    topic: str
    prompt: str
    expected: str
    got: str


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """See the module for the meaning of each field."""

    task: str
    kind: str
    n: int
    correct: int
    accuracy: float
    low: float
    high: float
    baseline: float
    too_long: int
    ended: float | None
    topics: dict[str, tuple[int, int]]
    max_new_tokens: int
    sampling: dict[str, Any] | None
    seconds: float
    failures: list[Failure]

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return msgspec.to_builtins(self)


class _Outcome(msgspec.Struct, frozen=True):
    """What became of one item on the rank that computed it."""

    index: int
    right: bool
    got: str
    ended: bool


def evaluate(
    task: Task,
    engine: Engine,
    tok: Tokenizer,
    n: int | None = None,
    *,
    examples: Sequence[Example] | None = None,
    max_new_tokens: int | None = None,
    keep_failures: int = KEPT_FAILURES,
    block: int = BLOCK,
    on_progress: Callable[[int, int], None] | None = None,
) -> Result:
    """Accuracy on the first `n` held-out examples of the task (all by default); every rank returns the same result.

    Args:
        examples: asked instead of the held-out ones, for example some of the training ones.
        max_new_tokens: limit of a generated answer; the task's own by default.
        on_progress: called with (items done, items) of this rank after each block, equally often on every rank: it may
            use collectives, and may raise to leave.

    Raises:
        UserError: there is nothing to ask.
        torch.OutOfMemoryError: on every rank, when one of them has no memory for a single item.
    """
    started = time.perf_counter()
    items = list((task.heldout() if examples is None else examples)[:n])
    if not items:
        raise UserError(f"task '{task.name}' has no held-out examples; give it more data or leave it out")
    limit = max_new_tokens or task.max_new_tokens
    rank, world = _place()
    blocks = [range(i, min(i + block, len(items))) for i in range(0, len(items), block)]
    share = sum(map(len, blocks[rank::world]))
    outcomes: list[_Outcome] = []
    no_memory = ""
    if engine.live:
        engine.refresh()

    def compute(part: list[tuple[int, Example]]) -> list[_Outcome]:
        return _choose(part, engine, tok) if task.kind == "choice" else _answer(task, part, engine, tok, limit)

    for turn in range(0, len(blocks), world):
        for mine in blocks[turn : turn + world][rank : rank + 1]:  # none for some ranks in the last turn
            try:
                outcomes += _as_fits(compute, [(index, items[index]) for index in mine] if not no_memory else [])
            except torch.OutOfMemoryError as error:  # the others learn of it where they would wait for this rank
                no_memory = str(error) or "out of memory"
        if on_progress is not None:
            on_progress(len(outcomes), share)
    everywhere = _gather(outcomes, no_memory, world)
    return _result(task, items, everywhere, limit, keep_failures, time.perf_counter() - started)


def wilson(correct: int, n: int, z: float = Z_95) -> tuple[float, float]:
    """Wilson score interval of a share (Wilson 1927), 95 % by default; (0, 1) when nothing was asked."""
    if n == 0:
        return 0.0, 1.0
    share = correct / n
    middle = share + z * z / (2 * n)
    reach = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # the interval of 0 of n starts at 0 and that of n of n ends at 1; rounding would miss both
    low = 0.0 if correct == 0 else (middle - reach) / scale
    high = 1.0 if correct == n else (middle + reach) / scale
    return low, high


def chat_core(cells: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """ChatCORE: the mean over tasks of (accuracy - baseline) / (1 - baseline), so 0 is guessing and 1 is perfect.

    Its 95 % interval is put together from those of the tasks, as independent estimates, by the method of variance
    estimates recovery (Zou and Donner 2008), which keeps the skew of each near 0 and 1.

    Args:
        cells: results by task, as `Result.as_dict` gives them.

    Returns:
        {chatcore, low, high, n: items, tasks: how many}; {} without tasks.
    """
    if not cells:
        return {}
    mean = below = above = 0.0
    for cell in cells.values():
        weight = 1 / (len(cells) * (1 - cell["baseline"]))
        mean += weight * (cell["accuracy"] - cell["baseline"])
        below += (weight * (cell["accuracy"] - cell["low"])) ** 2
        above += (weight * (cell["high"] - cell["accuracy"])) ** 2
    return {
        "chatcore": mean,
        "low": mean - math.sqrt(below),
        "high": mean + math.sqrt(above),
        "n": sum(cell["n"] for cell in cells.values()),
        "tasks": len(cells),
    }


def _as_fits(
    compute: Callable[[list[tuple[int, Example]]], list[_Outcome]], part: list[tuple[int, Example]]
) -> list[_Outcome]:
    """`compute(part)`, in halves where there is no memory for all of it at once."""
    if not part:
        return []
    try:
        return compute(part)
    except torch.OutOfMemoryError:
        if len(part) == 1:
            raise
    half = len(part) // 2
    return [*_as_fits(compute, part[:half]), *_as_fits(compute, part[half:])]


@torch.inference_mode()
def _choose(part: list[tuple[int, Example]], engine: Engine, tok: Tokenizer) -> list[_Outcome]:
    """The likeliest letter of each question. Prompts are padded on the right: causal attention never looks there."""
    outcomes, asked, prompts = [], [], []
    for index, example in part:
        prompt = render_prompt(example.prompt, tok)
        if len(prompt) > engine.context:
            outcomes.append(_Outcome(index, False, TOO_LONG, False))
        else:
            asked.append((index, example))
            prompts.append(prompt)
    for rows in _batches([len(prompt) for prompt in prompts]):
        logits = _last_logits([prompts[row] for row in rows], engine)
        for row, found in zip(rows, logits, strict=True):
            index, example = asked[row]
            letters = [chr(ord("A") + i) for i in range(len(example.choices or []))]
            best = letters[int(found[[_letter_id(letter, tok) for letter in letters]].argmax())]
            outcomes.append(_Outcome(index, best == example.letter, best, True))
    return outcomes


def _batches(lengths: list[int]) -> list[list[int]]:
    """Places of the prompts that are read together, those of like length, at most `CHOICE_TOKENS` with the padding."""
    batches: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lambda place: (-lengths[place], place)):
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= CHOICE_TOKENS:
            batches[-1].append(place)
        else:
            batches.append([place])
    return batches


def _last_logits(prompts: list[list[int]], engine: Engine) -> torch.Tensor:
    """(prompts, ids), after the last token of each."""
    ids = torch.zeros(len(prompts), max(map(len, prompts)), dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = torch.tensor(prompt)
    last = torch.tensor([len(prompt) - 1 for prompt in prompts], device=engine.device)
    x = engine.model.hidden(ids.to(engine.device))
    return engine.model.logits(x[torch.arange(len(prompts), device=engine.device), last][:, None])[:, 0].cpu()


def _answer(task: Task, part: list[tuple[int, Example]], engine: Engine, tok: Tokenizer, limit: int) -> list[_Outcome]:
    """Sampled greedily and judged by the task."""
    outcomes, asked, prompts = [], [], []
    room = prompt_room(engine.context, limit)  # beyond it the engine would cut the prompt
    for index, example in part:
        prompt = render_prompt(example.prompt, tok)
        if len(prompt) > room:
            outcomes.append(_Outcome(index, False, TOO_LONG, False))
        else:
            asked.append((index, example))
            prompts.append(prompt)
    answers = engine.generate(prompts, Sampling(max_tokens=limit, temperature=0.0)) if prompts else []
    with ThreadPoolExecutor(min(JUDGES, usable_cpus())) as judges:
        judged = list(judges.map(task.score, [example for _, example in asked], [answer.text for answer in answers]))
    for (index, _), answer, right in zip(asked, answers, judged, strict=True):
        outcomes.append(_Outcome(index, right, answer.text, answer.finish_reason == "stop"))
    return outcomes


def _letter_id(letter: str, tok: Tokenizer) -> int:
    ids = tok.encode(letter)
    if len(ids) != 1:
        raise UserError(f"the tokenizer splits the letter {letter!r}; choice tasks need one token per letter")
    return ids[0]


def _place() -> tuple[int, int]:
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def _gather(outcomes: list[_Outcome], no_memory: str, world: int) -> list[_Outcome]:
    """Those of all ranks, by index. Raises `torch.OutOfMemoryError` where one of them says `no_memory`."""
    shares: list[Any] = [(outcomes, no_memory)]
    if world > 1:
        shares *= world
        dist.all_gather_object(shares, (outcomes, no_memory))
    for _, reason in shares:
        if reason:
            raise torch.OutOfMemoryError(reason)
    return sorted((outcome for share, _ in shares for outcome in share), key=lambda outcome: outcome.index)


def _result(
    task: Task, items: list[Example], outcomes: list[_Outcome], limit: int, keep: int, seconds: float
) -> Result:
    correct = sum(outcome.right for outcome in outcomes)
    low, high = wilson(correct, len(outcomes))
    topics: dict[str, tuple[int, int]] = {}
    failures: list[Failure] = []
    for outcome in outcomes:
        example = items[outcome.index]
        right, asked = topics.get(example.topic, (0, 0))
        topics[example.topic] = (right + outcome.right, asked + 1)
        if not outcome.right and len(failures) < keep:
            failures.append(
                Failure(
                    index=outcome.index,
                    topic=example.topic,
                    prompt=example.question,
                    expected=task.expected(example),
                    got=outcome.got,
                )
            )
    too_long = sum(outcome.got == TOO_LONG for outcome in outcomes)
    sampled = len(outcomes) - too_long
    generative = task.kind == "generative"
    ended = sum(outcome.ended for outcome in outcomes) / sampled if generative and sampled else None
    return Result(
        task=task.name,
        kind=task.kind,
        n=len(outcomes),
        correct=correct,
        accuracy=correct / len(outcomes),
        low=low,
        high=high,
        baseline=task.baseline,
        too_long=too_long,
        ended=ended,
        topics=topics if set(topics) != {""} else {},
        max_new_tokens=limit if generative else 0,
        sampling={"temperature": 0.0, "max_tokens": limit, "tools": True} if generative else None,
        seconds=seconds,
        failures=failures,
    )
