"""Packed conversations as batches: a pure function of the step, so that resuming is exact.

R rows in a step over all ranks, T positions. Every epoch packs the conversations anew in an order drawn from
(seed, epoch), so that neighbours change; the global batch is the same for any number of ranks. Of an epoch only the
plan is kept (4 bytes a conversation and 8 a row); rows are put together for the step that asks for them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from picollm.data.packing import Conversation, RowPlan, fill, plan_rows
from picollm.run.errors import UserError


class ChatLoader:
    """Batches of packed conversations.

    Args:
        conversations: (ids, mask) each, as `picollm.text.chat.render` gives them; any sequence, asked for one at a
            time. Where it has `lengths` (tokens of each), it is not read for them.
        length: T. Longer conversations must have been cut before: one of more than T+1 tokens is left out.
        rows: R. pad_id: id for unused positions (weight 0).
        all_tokens: weight 1 on every real token (midtraining) instead of on the assistant's (SFT).

    Raises UserError when no conversation fits a row.
    """

    def __init__(
        self,
        conversations: Sequence[Conversation],
        length: int,
        rows: int,
        seed: int,
        pad_id: int,
        *,
        rank: int = 0,
        world: int = 1,
        all_tokens: bool = False,
    ) -> None:
        self.conversations, self.all_tokens = conversations, all_tokens
        lengths = getattr(conversations, "lengths", None)
        if lengths is None:
            lengths = np.fromiter((len(ids) for ids, _ in conversations), dtype=np.int64, count=len(conversations))
        self.lengths = np.asarray(lengths, dtype=np.int64)
        self.length, self.rows, self.seed, self.pad_id = length, rows, seed, pad_id
        self.rank, self.world = rank, world
        self.dropped = int((self.lengths > length + 1).sum())
        self._epochs: dict[int, tuple[RowPlan, np.ndarray]] = {}
        self.rows_per_epoch = len(self._epoch(0)[0])
        if not self.rows_per_epoch:
            raise UserError(f"no conversation fits a row of {length} tokens; raise model.seq_len or shorten them")

    def _epoch(self, epoch: int) -> tuple[RowPlan, np.ndarray]:
        """The rows of one epoch and the order in which they come; the last two asked for are kept."""
        if epoch not in self._epochs:
            order = np.random.default_rng((self.seed, epoch)).permutation(len(self.lengths))
            plan = plan_rows(self.lengths[order], self.length + 1)
            plan = RowPlan(order[plan.items].astype(np.int32), plan.bounds)
            rows = np.random.default_rng((self.seed, epoch, 1)).permutation(len(plan))
            if len(self._epochs) > 1:
                del self._epochs[min(self._epochs)]
            self._epochs[epoch] = (plan, rows)
        return self._epochs[epoch]

    def epoch(self, step: int) -> float:
        """Epochs completed before `step`; packings differ by a row or so between epochs, which is ignored here."""
        return step * self.rows / self.rows_per_epoch

    @property
    def fullness(self) -> float:
        """Share of the positions of an epoch that hold a token of a conversation; the rest is padding."""
        kept = self.lengths[self.lengths <= self.length + 1]
        return float(kept.sum()) / (self.rows_per_epoch * (self.length + 1))

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
        """This rank's (R/world, T) inputs, targets and weights, and the step's counted tokens over all ranks.

        Epochs are cut to `rows_per_epoch` rows (or padded by repeating their first ones), so that a position in
        the run is (step × R) alone.
        """
        wanted = []
        for position in range(step * self.rows, (step + 1) * self.rows):
            epoch, row = divmod(position, self.rows_per_epoch)
            plan, order = self._epoch(epoch)
            wanted.append(plan[order[row % len(order)]])
        inputs, targets, weights = fill(
            self.conversations, wanted, self.length, self.pad_id, all_tokens=self.all_tokens
        )
        mine = slice(self.rank * self.rows // self.world, (self.rank + 1) * self.rows // self.world)
        return inputs[mine], targets[mine], weights[mine], float((weights != 0).sum())
