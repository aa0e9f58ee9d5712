"""From the mixture table of `picollm.toml` to rendered conversations: what midtraining and SFT are fed.

    { docs_qa = 3000, identity = 1000 }  ──TASKS──>  examples  ──render──>  (ids, mask)  ──>  packed rows
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import msgspec

from picollm.run.errors import UserError
from picollm.tasks import TASKS, make_task
from picollm.tasks.base import Example
from picollm.text.chat import Rendered, render
from picollm.text.tokenizer import Tokenizer


class Mixed(msgspec.Struct, kw_only=True):
    """`conversations`: (ids, mask) in a deterministic order. `rows` and `tokens`: per task. `dropped`: too long."""

    conversations: list[Rendered]
    rows: dict[str, int]
    tokens: dict[str, int]
    dropped: int = 0


def mix(table: Mapping[str, int], tok: Tokenizer, max_tokens: int, seed: int, custom: str = "") -> Mixed:
    """Draw `table[task]` training examples of each task, shuffled together.

    A count above what a task has repeats its examples in whole rounds. Raises `UserError` for an unknown task, or
    when nothing is left to learn from.
    """
    counts = dict(table)
    drawn: list[tuple[str, Example]] = []
    if custom:
        examples = make_task("custom", {"file": custom}).train()
        drawn += [("custom", example) for example in examples]
    for name, count in counts.items():
        if name not in TASKS:
            raise UserError(f"mixture: unknown task '{name}'; expected one of {', '.join(TASKS)}")
        drawn += [(name, example) for example in _take(make_task(name, {"seed": seed}).train(), count, name)]
    random.Random(f"{seed}|mixture").shuffle(drawn)
    mixed = Mixed(conversations=[], rows={}, tokens={})
    for name, example in drawn:
        ids, mask = render(example.messages, tok, max_tokens)
        if not any(mask):
            mixed.dropped += 1
            continue
        mixed.conversations.append((ids, mask))
        mixed.rows[name] = mixed.rows.get(name, 0) + 1
        mixed.tokens[name] = mixed.tokens.get(name, 0) + len(ids)
    if not mixed.conversations:
        raise UserError("mixture: no conversation to learn from; add tasks to the stage's mixture in picollm.toml")
    return mixed


def _take(examples: Sequence[Example], count: int, name: str) -> list[Example]:
    if not examples:
        raise UserError(f"mixture: task '{name}' has no training examples on this machine")
    return [examples[i % len(examples)] for i in range(count)]
