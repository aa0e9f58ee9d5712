"""Conversations into rows of one length, wasting little.

A row of T positions is T+1 tokens, T inputs each with the next token as its target. Conversations are put whole into
rows by best-fit decreasing (Johnson 1974; for language models Ding et al., arXiv 2404.10830): longest first, each
into the fullest row that still has space. What is left of a row is padding with weight 0.

Which conversation goes where (`plan_rows`) needs their lengths alone; the tokens of a row are put together when it is
asked for (`fill`), so that half a million conversations need no second copy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

Conversation = tuple[Sequence[int] | np.ndarray, Sequence[int] | np.ndarray]
"""Token ids, and for each 1 where it is to be learnt."""


@dataclass(frozen=True)
class Packed:
    """Rows ready for training; unpacks as `inputs, targets, weights = packed`.

    Attributes:
        inputs, targets: int64 (rows, T). weights: float32 (rows, T), the mask of each *target*.
        used: tokens of conversations in the rows; used / (rows·(T+1)) is how full they are.
        dropped: conversations longer than a row, left out. `chat.render(max_tokens=T+1)` cuts them instead.
    """

    inputs: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    used: int
    dropped: int

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter((self.inputs, self.targets, self.weights))

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> np.ndarray:
        return (self.inputs, self.targets, self.weights)[index]


@dataclass(frozen=True)
class RowPlan:
    """What is in each row: `items[bounds[r] : bounds[r + 1]]` are the conversations of row r. 4 bytes an item."""

    items: np.ndarray
    bounds: np.ndarray

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        return self.items[self.bounds[row] : self.bounds[row + 1]]


def plan_rows(lengths: Sequence[int] | np.ndarray, capacity: int) -> RowPlan:
    """Rows of indices into `lengths`, each row's lengths summing to at most `capacity`.

    Every index is in exactly one row, except those longer than `capacity`, which are in none: one that never fits
    must not hold up the rest. Equal lengths keep their order, so a shuffled list packs differently.
    O(n log n + n·capacity/64).
    """
    sizes = np.asarray(lengths, dtype=np.int64)
    order = np.argsort(-sizes, kind="stable")
    order = order[sizes[order] <= capacity]
    row_of = np.empty(len(order), dtype=np.int32)
    count = 0
    by_space: dict[int, list[int]] = {}  # space left -> rows with it
    spaces = 0  # bit s is set while by_space[s] is not empty
    for place, length in enumerate(sizes[order].tolist()):
        enough = spaces >> length
        if enough:
            space = length + (enough & -enough).bit_length() - 1  # the smallest that is enough
            row = by_space[space].pop()
            if not by_space[space]:
                spaces ^= 1 << space
        else:
            space, row = capacity, count
            count += 1
        row_of[place] = row
        by_space.setdefault(space - length, []).append(row)
        spaces |= 1 << (space - length)
    items = order[np.argsort(row_of, kind="stable")].astype(np.int32)
    return RowPlan(items, np.concatenate([[0], np.cumsum(np.bincount(row_of, minlength=count))]).astype(np.int64))


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """`plan_rows` as plain lists."""
    plan = plan_rows(lengths, capacity)
    return [plan[row].tolist() for row in range(len(plan))]


def fill(
    conversations: Sequence[Conversation], rows: Sequence[Sequence[int] | np.ndarray], T: int, pad_id: int,
    *, all_tokens: bool = False,
) -> Packed:  # fmt: skip
    """Put together rows of T positions from the indices of their conversations.

    A target counts (weight 1) where its own mask is 1, or with `all_tokens` wherever it is no padding; the first token
    of a conversation is never counted, for it follows whatever stood before it in the row.
    """
    tokens = np.full((len(rows), T + 1), pad_id, dtype=np.int64)
    weights = np.zeros((len(rows), T + 1), dtype=np.float32)
    used = 0
    for number, row in enumerate(rows):
        at = 0
        for index in row:
            ids, mask = conversations[int(index)]
            tokens[number, at : at + len(ids)] = ids
            weights[number, at : at + len(ids)] = 1.0 if all_tokens else mask
            weights[number, at : at + 1] = 0.0
            at += len(ids)
        used += at
    return Packed(tokens[:, :-1], tokens[:, 1:], weights[:, 1:], used, 0)


def pack_conversations(conversations: Sequence[Conversation], T: int, pad_id: int) -> Packed:
    """All of the rendered (ids, mask) conversations in rows of T positions; those of more than T+1 tokens are dropped
    and counted."""
    plan = plan_rows([len(ids) for ids, _ in conversations], T + 1)
    packed = fill(conversations, [plan[row] for row in range(len(plan))], T, pad_id)
    return replace(packed, dropped=len(conversations) - len(plan.items))
