"""Several collections drawn as one, in fixed proportions and a fixed order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Generic, TypeVar

import numpy as np

from picollm.run.errors import UserError

T = TypeVar("T")


class Mixture(Generic[T]):
    """A sequence of (name, item), shuffled by `seed`.

    Args:
        parts: {name: (items, weight)}. The weight is in epochs: 3 gives every item three times, 0.5 half of the
            items (drawn by seed), 1.5 every item once and half of them twice.
        seed: the order and the fractions depend on it and on nothing else.

    Raises UserError for a negative weight or when nothing is drawn at all.
    """

    def __init__(self, parts: Mapping[str, tuple[Sequence[T], float]], seed: int) -> None:
        self._parts = {name: items for name, (items, _) in parts.items()}
        self._names = list(parts)
        chosen: list[np.ndarray] = []
        for number, (name, (items, weight)) in enumerate(parts.items()):
            if not 0 <= weight < float("inf"):
                raise UserError(f"mixture: weight of {name} is {weight}; expected 0 or more epochs")
            wanted = round(weight * len(items))
            rounds, rest = divmod(wanted, len(items)) if items else (0, 0)
            drawn = np.random.default_rng((seed, number)).permutation(len(items))[:rest]
            index = np.concatenate([np.tile(np.arange(len(items)), rounds), drawn]).astype(np.int64)
            chosen.append(np.stack([np.full(len(index), number, dtype=np.int64), index], axis=1))
        every = np.concatenate(chosen) if chosen else np.empty((0, 2), dtype=np.int64)
        if not len(every):
            raise UserError("mixture: nothing is drawn; give a task with items a weight above 0")
        self._order = every[np.random.default_rng((seed, len(chosen))).permutation(len(every))]

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: int) -> tuple[str, T]:
        part, item = self._order[index]
        name = self._names[part]
        return name, self._parts[name][item]

    def counts(self) -> dict[str, int]:
        """Items drawn of each part."""
        found = np.bincount(self._order[:, 0], minlength=len(self._names))
        return {name: int(n) for name, n in zip(self._names, found, strict=True)}
