"""pass@k: the chance that at least one of k sampled answers is right. What RL can reach by making it likelier.

Estimated without bias from n answers of which c are right: 1 - C(n-c, k) / C(n, k) (Chen et al. 2021, "Evaluating Large
Language Models Trained on Code"), averaged over the items.

Sample j of item i draws from (seed, i, j, position) alone: any number of ranks, and a reading after a resume, ask the
model with the same numbers, and two readings of one run differ by the model only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import msgspec

from picollm.evals.chat import BLOCK, wilson
from picollm.infer.engine import Engine, prompt_room
from picollm.infer.sampling import Sampling, row_seed
from picollm.run.errors import UserError
from picollm.tasks.base import Example, Task
from picollm.text.chat import render_prompt
from picollm.text.tokenizer import Tokenizer
from picollm.train.device import Ranks

KS = (1, 2, 4, 8)


class PassAt(msgspec.Struct, frozen=True, kw_only=True):
    """`n` items of `samples` answers each; `right`: how many answers were right, by item.

    rates       {k: (pass@k, low, high)}, 0 to 1, with its 95 % interval over the items
    too_long    items whose prompt leaves no room for an answer; they count as wrong
    """

    task: str
    n: int
    samples: int
    right: list[int]
    rates: dict[int, tuple[float, float, float]]
    too_long: int


def pass_at_k(n: int, c: int, k: int) -> float:
    """Unbiased estimate of pass@k from n answers of which c are right. Raises ValueError unless 1 <= k <= n."""
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass@{k} of {c} right answers among {n}")
    return 1 - math.comb(n - c, k) / math.comb(n, k)


def mean_with_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """The mean of shares and its 95 % interval: normal, from their spread, or Wilson's where all agree."""
    n, mean = len(values), math.fsum(values) / len(values)
    squares = math.fsum((value - mean) ** 2 for value in values)
    if squares < 1e-12 or n < 2:
        low, high = wilson(round(mean * n), n)
        return mean, min(low, mean), max(high, mean)
    reach = 1.96 * math.sqrt(squares / (n - 1) / n)
    return mean, max(0.0, mean - reach), min(1.0, mean + reach)


def sample_pass_at(
    task: Task,
    engine: Engine,
    tok: Tokenizer,
    items: int,
    ranks: Ranks,
    *,
    samples: int = max(KS),
    sampling: Sampling,
    seed: int = 0,
    on_progress: Callable[[], None] = lambda: None,
) -> PassAt:
    """pass@k, k = 1, 2, 4, 8 up to `samples`, on the first `items` held-out examples; the same on every rank.

    `on_progress` is called now and then, equally often on every rank: it may use collectives, and may raise to leave.

    Raises `UserError` when nothing is held out.
    """
    examples = task.heldout()[:items]
    if not examples:
        raise UserError(f"task '{task.name}' has no held-out examples; give it more data or leave it out")
    at_once = max(1, BLOCK // samples)
    blocks = [range(i, min(i + at_once, len(examples))) for i in range(0, len(examples), at_once)]
    found: dict[int, int | None] = {}
    for turn in range(0, len(blocks), ranks.world):
        for mine in blocks[turn : turn + ranks.world][ranks.rank : ranks.rank + 1]:
            found |= _ask(task, [(i, examples[i]) for i in mine], engine, tok, samples, sampling, seed)
        on_progress()
    everywhere = {index: right for share in ranks.gather(found) for index, right in share.items()}
    right = [everywhere[i] or 0 for i in range(len(examples))]
    return PassAt(
        task=task.name,
        n=len(examples),
        samples=samples,
        right=right,
        rates={k: mean_with_interval([pass_at_k(samples, c, k) for c in right]) for k in KS if k <= samples},
        too_long=sum(value is None for value in everywhere.values()),
    )


def _ask(
    task: Task, part: list[tuple[int, Example]], engine: Engine, tok: Tokenizer, samples: int, how: Sampling, seed: int
) -> dict[int, int | None]:
    """Right answers by item; None where the prompt leaves no room."""
    room = prompt_room(engine.context, how.max_tokens)
    prompts = {index: render_prompt(example.prompt, tok) for index, example in part}
    asked = [(index, example) for index, example in part if len(prompts[index]) <= room]
    answers = engine.generate(
        [prompts[index] for index, _ in asked for _ in range(samples)],
        how,
        seeds=[row_seed(seed, index, j) for index, _ in asked for j in range(samples)],
    )
    right: dict[int, int | None] = dict.fromkeys(prompts)
    for place, (index, example) in enumerate(asked):
        mine = answers[place * samples : (place + 1) * samples]
        right[index] = sum(task.score(example, answer.text) for answer in mine)
    return right
