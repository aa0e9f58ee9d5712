"""Packed conversations as batches: a pure function of the step, so that resuming is exact.

R rows in a step over all ranks, T positions. Every epoch packs the conversations anew in an order drawn from
(seed, epoch), so that neighbours change; the global batch is the same for any number of ranks.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from picollm.data.packing import pack_conversations

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]


class ChatLoader:
    """Batches of packed conversations.

    Args:
        conversations: (ids, mask) each, as `picollm.text.chat.render` gives them.
        length: T. Longer conversations must have been cut before.
        rows: R. pad_id: id for unused positions (weight 0).
        all_tokens: weight 1 on every real token (midtraining) instead of on the assistant's (SFT).
    """

    def __init__(
        self,
        conversations: Sequence[tuple[list[int], list[int]]],
        length: int,
        rows: int,
        seed: int,
        pad_id: int,
        *,
        rank: int = 0,
        world: int = 1,
        all_tokens: bool = False,
    ) -> None:
        if all_tokens:
            conversations = [(ids, [1] * len(ids)) for ids, _ in conversations]
        self.conversations = list(conversations)
        self.length, self.rows, self.seed, self.pad_id = length, rows, seed, pad_id
        self.rank, self.world = rank, world
        self._epochs: dict[int, Arrays] = {}
        self.rows_per_epoch = len(self._epoch(0)[0])

    def _epoch(self, epoch: int) -> Arrays:
        """The packed rows of one epoch; the last two asked for are kept. Every epoch has at least one row."""
        if epoch not in self._epochs:
            order = np.random.default_rng((self.seed, epoch)).permutation(len(self.conversations))
            packed = pack_conversations([self.conversations[i] for i in order], self.length, self.pad_id)
            rows = np.random.default_rng((self.seed, epoch, 1)).permutation(len(packed.inputs))
            if len(self._epochs) > 1:
                del self._epochs[min(self._epochs)]
            self._epochs[epoch] = (packed.inputs[rows], packed.targets[rows], packed.weights[rows])
        return self._epochs[epoch]

    def epoch(self, step: int) -> float:
        """Epochs completed before `step`; packings differ by a row or so between epochs, which is ignored here."""
        return step * self.rows / self.rows_per_epoch

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
        """This rank's (R/world, T) inputs, targets and weights, and the step's counted tokens over all ranks.

        Epochs are cut to `rows_per_epoch` rows (or padded by repeating their first ones), so that a position in
        the run is (step × R) alone.
        """
        inputs, targets, weights = [], [], []
        for position in range(step * self.rows, (step + 1) * self.rows):
            epoch, row = divmod(position, self.rows_per_epoch)
            x, y, w = self._epoch(epoch)
            inputs.append(x[row % len(x)])
            targets.append(y[row % len(x)])
            weights.append(w[row % len(x)])
        all_weights = np.stack(weights)
        mine = slice(self.rank * self.rows // self.world, (self.rank + 1) * self.rows // self.world)
        return np.stack(inputs)[mine], np.stack(targets)[mine], all_weights[mine], float((all_weights != 0).sum())
