"""From the mixture table of `picollm.toml` to rendered conversations: what midtraining and SFT are fed.

{ docs_qa = 3000, identity = 1000 }  ──TASKS──>  examples  ──render──>  (ids, mask)  ──>  packed rows
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import msgspec

from picollm.run.errors import UserError
from picollm.tasks import make
from picollm.tasks.base import Example
from picollm.text.chat import Rendered, render
from picollm.text.tokenizer import Tokenizer


class Mixed(msgspec.Struct, kw_only=True):
    """`conversations`: (ids, mask) in a deterministic order. `rows` and `tokens`: per task. `dropped`: too long."""

    conversations: list[Rendered]
    rows: dict[str, int]
    tokens: dict[str, int]
    dropped: int = 0


def mix(
    table: Mapping[str, int], tok: Tokenizer, max_tokens: int, seed: int, *, custom: str = "", identity: str = ""
) -> Mixed:
    """Draw `table[task]` training examples of each task, shuffled together.

    A task may carry settings ("arithmetic:digits=3"). A count above what a task has repeats its examples in whole
    rounds. `custom`: a file of the person's own conversations, all drawn once; `identity`: the verified rows.

    Raises `UserError` for an unknown task, a malformed file, or when nothing is left to learn from.
    """
    drawn: list[tuple[str, Example]] = []
    if custom:
        drawn += [("custom", example) for example in make("custom", path=custom, seed=seed).train()]
    for name, count in table.items():
        more = {"path": identity} if name == "identity" else {}
        drawn += [(name, example) for example in _take(make(name, seed=seed, **more).train(), count, name)]
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
