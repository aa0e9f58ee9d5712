"""Conversations into rows of one length, wasting little.

A row of T positions is T+1 tokens, T inputs each with the next token as its target. Conversations are put whole into
rows by best-fit decreasing (Johnson 1974; for language models Ding et al., arXiv 2404.10830): longest first, each
into the fullest row that still has space. What is left of a row is padding with weight 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np


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


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Rows of indices into `lengths`, each row's lengths summing to at most `capacity`.

    Every index is in exactly one row, except those longer than `capacity`, which are in none: one that never fits
    must not hold up the rest. Equal lengths keep their order, so a shuffled list packs differently.
    O(n log n + n·capacity/64).
    """
    rows: list[list[int]] = []
    by_space: dict[int, list[int]] = {}  # space left -> rows with it
    spaces = 0  # bit s is set while by_space[s] is not empty
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[index]
        if length > capacity:
            continue
        enough = spaces >> length
        if enough:
            space = length + (enough & -enough).bit_length() - 1  # the smallest that is enough
            row = by_space[space].pop()
            if not by_space[space]:
                spaces ^= 1 << space
        else:
            space, row = capacity, len(rows)
            rows.append([])
        rows[row].append(index)
        by_space.setdefault(space - length, []).append(row)
        spaces |= 1 << (space - length)
    return rows


def pack_conversations(conversations: Sequence[tuple[Sequence[int], Sequence[int]]], T: int, pad_id: int) -> Packed:
    """Pack rendered (ids, mask) conversations into rows of T positions.

    A target counts (weight 1) where its own mask is 1; the first token of a conversation is never counted, for it
    follows whatever stood before it in the row. Conversations of more than T+1 tokens are dropped and counted.
    """
    rows = best_fit([len(ids) for ids, _ in conversations], T + 1)
    tokens = np.full((len(rows), T + 1), pad_id, dtype=np.int64)
    weights = np.zeros((len(rows), T + 1), dtype=np.float32)
    used = 0
    for number, row in enumerate(rows):
        at = 0
        for index in row:
            ids, mask = conversations[index]
            tokens[number, at : at + len(ids)] = ids
            weights[number, at : at + len(ids)] = mask
            weights[number, at : at + 1] = 0.0
            at += len(ids)
        used += at
    dropped = sum(len(ids) > T + 1 for ids, _ in conversations)
    return Packed(tokens[:, :-1], tokens[:, 1:], weights[:, 1:], used, dropped)
