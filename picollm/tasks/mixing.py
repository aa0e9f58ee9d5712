"""From the mixture table of `picollm.toml` to rendered conversations: what midtraining and SFT are fed.

{ docs_qa = 3000, identity = 1000 }  ──TASKS──>  examples  ──render──>  (ids, mask)  ──>  packed rows

A conversation longer than a row is cut after the last answer that fits; where not even the first exchange fits it is
dropped. Both are counted. The order is drawn from the seed alone.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import msgspec
import numpy as np

from picollm.run.errors import UserError
from picollm.tasks import make
from picollm.tasks.conversations import CUT, DROPPED, Conversations, Portion, is_kept, portion
from picollm.text.tokenizer import Tokenizer

Look = Callable[[int, int], None]


class Mixed(msgspec.Struct, kw_only=True):
    """`conversations`: (ids, mask) arrays in a deterministic order, with `lengths`.

    By task: `rows` and `tokens` of them, `sources` where Hub tasks are from. `cut` and `dropped`: too long; `problems`:
    a line for each task with published rows that cannot be used.
    """

    conversations: Conversations
    rows: dict[str, int]
    tokens: dict[str, int]
    dropped: int = 0
    cut: int = 0
    problems: list[str] = []
    sources: dict[str, Any] = {}


def mix(
    table: Mapping[str, int], tok: Tokenizer, max_tokens: int, seed: int, *, custom: str = "", identity: str = "",
    look: Look = lambda done, rows: None, say: Callable[[str], None] = lambda text: None,
) -> Mixed:  # fmt: skip
    """Draw `table[task]` training examples of each task, shuffled together.

    A task may carry settings ("arithmetic:digits=3"). A count above what a task has repeats its examples in whole
    rounds. `custom`: a file of the person's own conversations, all drawn once; `identity`: the verified rows. `look` is
    told (conversations rendered, all of them) now and then, and may raise to leave; `say`: what is downloaded.

    Raises `UserError` for an unknown task, a malformed file, or when nothing is left to learn from.
    """
    wanted: list[tuple[str, int | None]] = [("custom", None)] if custom else []
    wanted += _drawn(table)
    names, portions, drawn = [], [], []
    problems: list[str] = []
    sources: dict[str, Any] = {}
    known = sum(count for _, count in wanted if count)
    done = 0
    for name, count in wanted:
        given = {"seed": seed, **_files(name, custom if count is None else "", identity)}
        task = make(name, given)
        if found := task.fetch(say=say):
            sources[name] = found
        problems += task.problems()
        examples = task.train()
        if not len(examples):
            raise UserError(f"mixture: task '{name}' has no training examples{_why(task)}")
        count = len(examples) if count is None else count
        portions.append(portion(name, given, task, count, tok, max_tokens, partial(_further, look, done, known)))
        names.append(name)
        done += count
        drawn += [(len(names) - 1, i % len(examples)) for i in range(count)]
    random.Random(f"{seed}|mixture").shuffle(drawn)
    return _mixed(names, portions, np.array(drawn, dtype=np.int64).reshape(-1, 2), problems, sources)


def prepare(
    table: Mapping[str, int], tok: Tokenizer, max_tokens: int, seed: int, *, identity: str = "", mirrors: str = "",
    look: Look = lambda done, rows: None, say: Callable[[str], None] = lambda text: None,
) -> None:  # fmt: skip
    """Have ready what `mix` of the same arguments would download (from `mirrors`, if any) or render into a shared
    folder: for one rank, ahead of the others. `look` is told of bytes while it downloads."""
    for name, count in _drawn(table):
        given = {"seed": seed, **_files(name, "", identity)}
        task = make(name, given)
        task.fetch(mirrors, say, look)
        task.problems(look)
        if is_kept(task, count):
            portion(name, given, task, count, tok, max_tokens, look)


def _drawn(table: Mapping[str, int]) -> list[tuple[str, int]]:
    """The entries from which anything is drawn; the others are as if they were not there."""
    return [(name, count) for name, count in table.items() if count]


def _mixed(
    names: list[str], portions: list[Portion], drawn: np.ndarray, problems: list[str], sources: dict[str, Any]
) -> Mixed:
    owners, places = drawn[:, 0].astype(np.int16), drawn[:, 1].astype(np.int32)
    rows: dict[str, int] = {}
    tokens: dict[str, int] = {}
    cut = 0
    kept = np.ones(len(drawn), dtype=bool)
    for number, (name, one) in enumerate(zip(names, portions, strict=True)):
        mine = owners == number
        found = one.index[places[mine]]
        kept[mine] = found[:, 2] != DROPPED
        cut += int((found[:, 2] == CUT).sum())
        if kept[mine].any():
            rows[name] = rows.get(name, 0) + int(kept[mine].sum())
            tokens[name] = tokens.get(name, 0) + int(found[:, 1].sum())
    if not kept.any():
        raise UserError("mixture: no conversation to learn from; add tasks to the stage's mixture in picollm.toml")
    return Mixed(
        conversations=Conversations(portions, owners[kept], places[kept]),
        rows=rows,
        tokens=tokens,
        dropped=int((~kept).sum()),
        cut=cut,
        problems=problems,
        sources=sources,
    )


def _further(look: Look, before: int, known: int, part: int, of_part: int) -> None:
    look(before + part, max(known, before + of_part))


def _files(name: str, custom: str, identity: str) -> dict[str, str]:
    kind = name.partition(":")[0]
    path = identity if kind == "identity" else custom
    return {"path": path} if path else {}


def _why(task: object) -> str:
    return ": it is held out, for evaluation only" if getattr(task, "published", None) else " on this machine"
