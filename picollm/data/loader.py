"""Batches from token shards: a dense stream, and nothing remembered.

All documents of an epoch, in an order drawn from (seed, epoch), stand back to back, each led by <|bos|>; epochs
follow one another without a seam. Row r of step s is the T tokens from position (s·R + r)·T of that stream, its
targets the same moved on by one. So a batch is a function of (step, seed) alone: resuming needs no state, every
token of an epoch is an input exactly once, and any number of ranks sees the same global batch.

R rows in a step over all ranks, T positions in a row, W ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np

from picollm.data.shards import Tokens
from picollm.run.errors import UserError

KEPT_EPOCHS = 4  # orders held in memory: a batch touches one or two unless the text is tiny


class Splits(Protocol):
    """What the loaders read: a `ShardSet`, or a fake of two `Tokens`."""

    @property
    def train(self) -> Tokens: ...
    @property
    def val(self) -> Tokens: ...


class StreamLoader:
    """Training batches.

    Args:
        shards: where the tokens are.
        T: positions in a row. rows: R, rows of a step over all ranks.
        seed: draws the order of documents.
        rank, world: this rank gets rows rank·R//W … (rank+1)·R//W.

    Raises UserError when there is no training text.
    """

    def __init__(self, shards: Splits, T: int, rows: int, seed: int, rank: int = 0, world: int = 1) -> None:
        self._tokens = shards.train
        self.T, self.rows, self.seed = T, rows, seed
        self._first, self._end = rank * rows // world, (rank + 1) * rows // world
        self.tokens_per_epoch = len(self._tokens)
        if not self.tokens_per_epoch:
            raise UserError("the shards hold no training tokens; run the dataset and tokenizer stages again")
        self._orders: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def epoch(self, step: int) -> float:
        """Epochs completed before `step`."""
        return step * self.rows * self.T / self.tokens_per_epoch

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """This rank's inputs and targets of `step`, int64 (rows of this rank, T)."""
        start = (step * self.rows + self._first) * self.T
        count = (self._end - self._first) * self.T
        stream = self._stream(start, start + count + 1)
        return stream[:-1].reshape(-1, self.T), stream[1:].reshape(-1, self.T)

    def _stream(self, start: int, end: int) -> np.ndarray:
        """Tokens at positions start … end-1 of the endless stream."""
        parts = []
        while start < end:
            epoch, offset = divmod(start, self.tokens_per_epoch)
            count = min(end - start, self.tokens_per_epoch - offset)
            parts.append(self._of_epoch(epoch, offset, count))
            start += count
        return parts[0] if len(parts) == 1 else np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)

    def _of_epoch(self, epoch: int, offset: int, count: int) -> np.ndarray:
        shifts, ends = self._order(epoch)
        first = int(np.searchsorted(ends, offset, side="right"))
        last = int(np.searchsorted(ends, offset + count, side="left"))
        # how many of the wanted positions fall into each document first … last
        bounds = np.clip(ends[first : last + 1], offset, offset + count)
        lengths = np.diff(bounds, prepend=offset)
        positions = np.arange(offset, offset + count) + np.repeat(shifts[first : last + 1], lengths)
        return self._tokens.take(positions)

    def _order(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """(shifts, ends) of the documents in this epoch's order: where each ends in the stream, and what to add to a
        position in the stream to get its position in the shards. int64 (documents,) each."""
        if epoch not in self._orders:
            starts = self._tokens.starts
            order = np.random.default_rng((self.seed, epoch)).permutation(len(starts) - 1)
            lengths = np.diff(starts)[order]
            ends = np.cumsum(lengths)
            while len(self._orders) >= KEPT_EPOCHS:
                del self._orders[next(iter(self._orders))]
            self._orders[epoch] = (starts[:-1][order] - (ends - lengths), ends)
        return self._orders[epoch]


class ValLoader:
    """The validation text in order, once, in batches of one shape.

    Yields (inputs, targets, weights), int64 and float32, each (rows of this rank, T). Every token but the first is a
    target exactly once over all batches and ranks. What is left of the last batch is padding with weight 0, so
    every rank sees the same number of batches of the same shape.

    `max_tokens`: stop after about so many targets (whole rows); 0 reads everything.
    """

    def __init__(self, shards: Splits, T: int, rows: int, max_tokens: int = 0, rank: int = 0, world: int = 1) -> None:
        self._tokens = shards.val
        self.T, self.rows = T, rows
        self._first, self._end = rank * rows // world, (rank + 1) * rows // world
        targets = len(self._tokens) - 1
        if targets < 1:
            raise UserError("the shards hold no validation tokens; run the dataset and tokenizer stages again")
        self.targets = min(targets, -(-max_tokens // T) * T) if max_tokens else targets

    def __len__(self) -> int:
        """Batches."""
        return -(-self.targets // (self.rows * self.T))

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        for number in range(len(self)):
            start = (number * self.rows + self._first) * self.T
            positions = np.arange(start, start + (self._end - self._first) * self.T).reshape(-1, self.T)
            counted = positions < self.targets
            inputs = self._tokens.take(np.where(counted, positions, 0))
            targets = self._tokens.take(np.where(counted, positions + 1, 0))
            yield inputs, targets, counted.astype(np.float32)
