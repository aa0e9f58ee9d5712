"""Batches from token shards: a dense stream, and nothing remembered.

All documents of an epoch stand back to back, each led by <|bos|>; epochs follow one another without a seam. Row r of
step s is the T tokens from position (s·R + r)·T of that stream, its targets the same moved on by one. So a batch is a
function of (step, seed) alone: resuming needs no state, every token of an epoch is an input exactly once, none is
dropped, and any number of ranks sees the same global batch.

The order of documents is drawn from (seed, epoch). Of a set that still grows (`Growing`) the shards come one after the
other and the order within one is drawn from (seed, epoch, shard): a batch needs only the shards up to its own, and is
the same however early it was asked for. One that is not there yet is waited for.

R rows in a step over all ranks, T positions in a row, W ranks.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Protocol, runtime_checkable

import numpy as np

from picollm.data.shards import Tokens
from picollm.run.errors import UserError

KEPT_ORDERS = 4  # held in memory: a batch touches one or two unless the text is tiny


class Splits(Protocol):
    """What the loaders read: a `ShardSet`, or a fake of two `Tokens`."""

    @property
    def train(self) -> Tokens: ...
    @property
    def val(self) -> Tokens: ...


@runtime_checkable
class Growing(Protocol):
    """Training shards of which the later ones may still be missing."""

    @property
    def blocks(self) -> int:
        """Shards there will be."""

    def block(self, number: int) -> Tokens | None:
        """One of them; None while it is not there."""

    def block_name(self, number: int) -> str:
        """As people know it."""


def not_there(name: str) -> None:
    """The default of who does not want to wait."""
    raise UserError(f"the shard of {name} is missing; run the tokenizer stage again")


class StreamLoader:
    """Training batches.

    Args:
        shards: where the tokens are.
        T: positions in a row. rows: R, rows of a step over all ranks.
        seed: draws the order of documents.
        rank, world: this rank gets rows rank·R//W … (rank+1)·R//W.
        waiting: called with the name of a shard that is not there, again and again until it is; it sleeps a little,
            and raises to give up.

    Raises UserError when there is no training text.
    """

    def __init__(
        self,
        shards: Splits,
        T: int,
        rows: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        waiting: Callable[[str], None] = not_there,
    ) -> None:
        self._growing = shards if isinstance(shards, Growing) else None
        self._tokens: list[Tokens] = [] if self._growing else [shards.train]
        self._blocks = self._growing.blocks if self._growing else 1
        self._taking = threading.Lock()
        self._waiting = waiting
        self.T, self.rows, self.seed = T, rows, seed
        self._first, self._end = rank * rows // world, (rank + 1) * rows // world
        self._orders: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = {}
        self._have(1)
        if not self._length:
            raise UserError("the shards hold no training tokens; run the dataset and tokenizer stages again")

    @property
    def tokens_per_epoch(self) -> int:
        """Exact when all shards are here, else what it will be if the others are like those."""
        while (number := len(self._tokens)) < self._blocks and self._take(number):
            pass
        return self._length * self._blocks // len(self._tokens)

    @property
    def dropped_tokens(self) -> int:
        """Tokens of the shards that no epoch has as inputs."""
        return sum(len(tokens) for tokens in self._tokens) - self._length

    def epoch(self, step: int) -> float:
        """Epochs completed before `step`."""
        return step * self.rows * self.T / self.tokens_per_epoch

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """This rank's inputs and targets of `step`, int64 (rows of this rank, T).

        Every rank waits for what the whole step needs, so that none goes on into an exchange without the others.
        """
        self._have((step + 1) * self.rows * self.T + 1)
        start = (step * self.rows + self._first) * self.T
        count = (self._end - self._first) * self.T
        stream = self._stream(start, start + count + 1)
        return stream[:-1].reshape(-1, self.T), stream[1:].reshape(-1, self.T)

    @property
    def _length(self) -> int:
        """Tokens of the shards taken up so far."""
        return int(self._ends[-1])

    @property
    def _ends(self) -> np.ndarray:
        """int64 (shards taken up,): where each ends in an epoch."""
        return np.cumsum([len(tokens) for tokens in self._tokens], dtype=np.int64)

    def _have(self, end: int) -> None:
        """Take up the shards that positions 0 … end-1 need, waiting where they are missing."""
        while (number := len(self._tokens)) < self._blocks and (not number or end > self._length):
            if not self._take(number) and self._growing:
                self._waiting(self._growing.block_name(number))

    def _take(self, number: int) -> bool:
        """Take up the shard that is next, once, though batches are made in one thread and counted in another."""
        with self._taking:
            if number < len(self._tokens):
                return True
            found = self._growing.block(number) if self._growing else None
            if found is not None:
                self._tokens.append(found)
            return found is not None

    def _stream(self, start: int, end: int) -> np.ndarray:
        """Tokens at positions start … end-1 of the endless stream."""
        parts = []
        ends = self._ends
        while start < end:
            epoch, offset = divmod(start, int(ends[-1])) if len(self._tokens) == self._blocks else (0, start)
            block = int(np.searchsorted(ends, offset, side="right"))
            count = min(end - start, int(ends[block]) - offset)
            parts.append(self._of_block(epoch, block, offset - int(ends[block]) + len(self._tokens[block]), count))
            start += count
        return parts[0] if len(parts) == 1 else np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)

    def _of_block(self, epoch: int, block: int, offset: int, count: int) -> np.ndarray:
        shifts, ends = self._order(epoch, block)
        first = int(np.searchsorted(ends, offset, side="right"))
        last = int(np.searchsorted(ends, offset + count, side="left"))
        # how many of the wanted positions fall into each document first … last
        bounds = np.clip(ends[first : last + 1], offset, offset + count)
        lengths = np.diff(bounds, prepend=offset)
        positions = np.arange(offset, offset + count) + np.repeat(shifts[first : last + 1], lengths)
        return self._tokens[block].take(positions)

    def _order(self, epoch: int, block: int) -> tuple[np.ndarray, np.ndarray]:
        """(shifts, ends) of a shard's documents in this epoch's order: where each ends in the shuffled shard, and what
        to add to a position there to get its position in the shard. int64 (documents,) each."""
        if (epoch, block) not in self._orders:
            starts = self._tokens[block].starts
            key = (self.seed, epoch, block) if self._growing else (self.seed, epoch)
            order = np.random.default_rng(key).permutation(len(starts) - 1)
            lengths = np.diff(starts)[order]
            ends = np.cumsum(lengths)
            while len(self._orders) >= KEPT_ORDERS:
                del self._orders[next(iter(self._orders))]
            self._orders[epoch, block] = (starts[:-1][order] - (ends - lengths), ends)
        return self._orders[epoch, block]


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
