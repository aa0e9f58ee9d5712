"""CORE: one figure for a base model, the mean centred accuracy over 22 tasks (Li et al. 2024, DataComp-LM).

    centred = (accuracy − baseline) / (1 − baseline)        CORE = mean of the tasks' centred accuracies

Kinds of task, all scored by likelihood, nothing is sampled:

    multiple_choice     one query, several continuations: the one with the lowest mean nll per token is the answer
    schema              several contexts, one continuation: likewise, over the tokens of the continuation
    language_modeling   right if each token of the continuation is the likeliest one

A prompt is <|bos|>, the solved examples, and the item. The rows of a file are shuffled with Random(1337) and cut to as
many as wanted; the examples shown for item i are drawn from what is left, without i, by Random(1234 + i). So a cut is
the same for everybody, and two cuts of one file are not comparable item by item. A prompt that is longer than the
context loses its beginning, <|bos|> first.

Every figure has n and a 95 % interval: Wilson's for an accuracy; for CORE, that of a sum of independent shares. It is
the error of the items alone. Training again with another seed moves CORE too: seven runs of one recipe gave .2512 to
.2677, so smaller differences between two models say nothing, whatever the interval.

A task's cell, every key always there:

    task kind shots              as in core.yaml; kind as above
    n correct accuracy low high  items, right ones, their share and its interval, 0 to 1
    baseline                     accuracy of blind guessing, from the bundle's baseline file
    centered centered_low centered_high
    truncated                    items of which a prompt did not fit the context
    sha256                       of the file that holds the items
    seconds                      wall clock
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from typing import Any

from picollm.evals.chat import wilson
from picollm.evals.core_bundle import CoreTask, refuse_few
from picollm.evals.likelihood import Option, Score, common_prefix, cropped, scores
from picollm.infer.engine import Engine
from picollm.infer.rows import Vocabulary
from picollm.train.device import Ranks

Row = dict[str, Any]

BLOCK = 64  # items a rank computes at a time
TOKENS_AT_ONCE = {"cpu": 8192, "mps": 16384, "cuda": 65536}
NAMES = frozenset((
    "hellaswag_zeroshot", "hellaswag", "arc_easy", "arc_challenge", "copa", "commonsense_qa", "piqa", "openbook_qa",
    "boolq", "agi_eval_lsat_ar", "bigbench_language_identification", "winograd", "winogrande", "jeopardy",
    "bigbench_qa_wikidata", "bigbench_dyck_languages", "bigbench_cs_algorithms", "bigbench_operators",
    "bigbench_repeat_copy_logic", "squad", "lambada_openai", "coqa",
))  # fmt: skip


def prompts(task: CoreTask, item: Row, examples: list[Row]) -> list[str]:
    """The texts to compare: one per option; for language modelling the text without its continuation, and with it."""
    delimiter = task.delimiter
    if task.kind == "multiple_choice":
        shown = "".join(f"{e['query']}{delimiter}{e['choices'][e['gold']]}\n\n" for e in examples)
        return [f"{shown}{item['query']}{delimiter}{choice}" for choice in item["choices"]]
    if task.kind == "schema":
        shown = "".join(f"{e['context_options'][e['gold']]}{delimiter}{e['continuation']}\n\n" for e in examples)
        return [f"{shown}{context}{delimiter}{item['continuation']}" for context in item["context_options"]]
    shown = "".join(f"{e['context'].strip()}{delimiter}{e['continuation']}\n\n" for e in examples)
    whole = f"{shown}{item['context'].strip()}{delimiter}"
    # White space at the end of a text would be a token of its own there, and part of the next word's in the other.
    return [whole.strip(), whole + item["continuation"]]


def options(kind: str, texts: list[str], tok: Vocabulary, context: int) -> tuple[list[Option], bool]:
    """What is to be scored, and whether something did not fit.

    Scored are the ids after the common beginning, in multiple choice and of the text with its continuation in language
    modelling, and in schema the common ending. An option that has none has `start` = length.
    """
    rows = [[tok.bos_id, *tok.encode(text)] for text in texts]
    if kind == "language_modeling":
        starts, rows = [common_prefix(rows)], rows[1:]
    elif kind == "multiple_choice":
        starts = [common_prefix(rows)] * len(rows)
    else:
        ending = common_prefix([row[::-1] for row in rows])
        starts = [len(row) - ending for row in rows]
    made = [cropped(row, start, context) for row, start in zip(rows, starts, strict=True)]
    return made, any(len(row) > context for row in rows)


def is_right(kind: str, gold: int, found: list[Score | None]) -> bool:
    """Whether the item is answered; an option without anything to score (None) cannot win."""
    if kind == "language_modeling":
        return found[0] is not None and found[0].greedy
    means = [math.inf if score is None else score.mean for score in found]
    return means.index(min(means)) == gold and means[gold] < math.inf


def evaluate_task(
    task: CoreTask,
    rows: list[Row],
    engine: Engine,
    tok: Vocabulary,
    ranks: Ranks,
    *,
    items: int = 0,
    tokens_at_once: int = 0,
    on_progress: Callable[[int, int], None] = lambda done, of: None,
) -> dict[str, Any]:
    """The cell of one task but for `sha256` (see the module); the same on every rank, whatever their number.

    Args:
        rows: of the task's file, in its order.
        items: most of them to use; 0: all.
        tokens_at_once: positions computed together, see `likelihood.scores`; 0: what suits the device.
        on_progress: called with (items done, items), equally often on every rank; it may raise to leave.

    Raises:
        UserError: fewer items than the solved examples and one more.
    """
    begun = time.perf_counter()
    rows = list(rows)
    random.Random(1337).shuffle(rows)
    rows = rows[:items] if items else rows
    refuse_few(task, len(rows))
    budget = tokens_at_once or TOKENS_AT_ONCE[engine.device.type]
    if engine.live:
        engine.refresh()

    def texts(index: int) -> list[str]:
        places = random.Random(1234 + index).sample(range(len(rows) - 1), task.shots)  # among the rows without this one
        return prompts(task, rows[index], [rows[place + (place >= index)] for place in places])

    # Neighbours in length share a batch. Long ones first: what does not fit the memory shows at once. Blocks do not
    # depend on the number of ranks, so neither do their figures.
    lengths = [max(map(len, texts(index))) for index in range(len(rows))]
    order = sorted(range(len(rows)), key=lambda index: (-lengths[index], index))
    blocks = [order[i : i + BLOCK] for i in range(0, len(order), BLOCK)]
    correct = truncated = done = 0
    for turn in range(0, len(blocks), ranks.world):
        for block in blocks[turn : turn + ranks.world][ranks.rank : ranks.rank + 1]:
            asked = [options(task.kind, texts(index), tok, engine.context) for index in block]
            found = _scored([made for made, _ in asked], engine, budget)
            correct += sum(
                is_right(task.kind, rows[index].get("gold", 0), score)
                for index, score in zip(block, found, strict=True)
            )
            truncated += sum(cut for _, cut in asked)
        done += sum(map(len, blocks[turn : turn + ranks.world]))
        on_progress(done, len(rows))
    shares = ranks.gather((correct, truncated))
    correct, truncated = sum(share[0] for share in shares), sum(share[1] for share in shares)
    n = len(rows)
    low, high = wilson(correct, n)
    accuracy, baseline = correct / n, task.baseline
    return {
        "task": task.label,
        "kind": task.kind,
        "shots": task.shots,
        "n": n,
        "correct": correct,
        "accuracy": accuracy,
        "low": low,
        "high": high,
        "baseline": baseline,
        "centered": centered(accuracy, baseline),
        "centered_low": centered(low, baseline),
        "centered_high": centered(high, baseline),
        "truncated": truncated,
        "seconds": time.perf_counter() - begun,
    }


def _scored(asked: list[list[Option]], engine: Engine, budget: int) -> list[list[Score | None]]:
    """`scores`, with None for options of which there is nothing to score."""
    kept = [[option for option in made if option.start < len(option.ids)] for made in asked]
    found = scores(engine.model, kept, budget)
    answers = []
    for made, got in zip(asked, found, strict=True):
        rest = iter(got)
        answers.append([next(rest) if option.start < len(option.ids) else None for option in made])
    return answers


def centered(accuracy: float, baseline: float) -> float:
    """0 for blind guessing, 1 for all right."""
    return (accuracy - baseline) / (1 - baseline)


def core(cells: list[dict[str, Any]]) -> dict[str, Any]:
    """{core, low, high, tasks, n, complete} of the tasks' cells; `complete`: they are the 22 tasks of the metric."""
    mean = sum(cell["centered"] for cell in cells) / len(cells)
    halves = [(cell["centered_high"] - cell["centered_low"]) / 2 for cell in cells]
    reach = math.sqrt(sum(half * half for half in halves)) / len(cells)
    return {
        "core": mean,
        "low": mean - reach,
        "high": mean + reach,
        "tasks": len(cells),
        "n": sum(cell["n"] for cell in cells),
        "complete": {cell["task"] for cell in cells} == NAMES,
    }
