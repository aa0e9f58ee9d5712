"""What every training stage hands to the loop: token ids, what to predict, how much each prediction counts.

B rows, T positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """One rank's share of one micro-batch.

    The loss of a step is Σ weights·nll / denom, summed over micro-batches and ranks, so `denom` is the number of
    counted tokens of the *whole* step and the same on every rank. It is not Σ weights: the advantages of RL may cancel.

    Attributes:
        inputs: (B, T) int64 token ids.
        targets: (B, T) int64, the token that should follow each input.
        weights: (B, T) float32, or None for 1 everywhere.
        denom: counted tokens of the step; 0 is allowed when every weight is 0.
        padding: rows at the end that only fill the shape; their weights are 0.
    """

    inputs: Tensor
    targets: Tensor
    weights: Tensor | None
    denom: float
    padding: int = 0

    @classmethod
    def from_numpy(
        cls, inputs: np.ndarray, targets: np.ndarray, weights: np.ndarray | None = None, denom: float | None = None
    ) -> Batch:
        """From (B, T) arrays of any integer type; a negative target counts as weight 0.

        Without `denom` the tokens with a weight other than 0 are counted, which is right for one rank and one
        micro-batch only.
        """
        x = torch.from_numpy(inputs.astype(np.int64))
        y = torch.from_numpy(targets.astype(np.int64))
        w = None if weights is None else torch.from_numpy(weights.astype(np.float32))
        if (y < 0).any():
            w = torch.where(y < 0, 0.0, torch.ones(y.shape) if w is None else w)
            y = y.clamp(min=0)
        if denom is None:
            denom = float(y.numel() if w is None else int((w != 0).sum()))
        return cls(x, y, w, float(denom))

    @property
    def tokens(self) -> int:
        """Positions of real rows, counted in the loss or not."""
        return self.inputs.numel() - self.padding * self.inputs.shape[1]

    def staged(self, device: torch.device) -> Batch:
        """The same batch with explicit weights (one graph then serves every stage), in page-locked memory for CUDA."""
        weights = torch.ones(self.targets.shape) if self.weights is None else self.weights
        if device.type != "cuda":
            return replace(self, weights=weights)
        parts = (self.inputs, self.targets, weights)
        inputs, targets, weights = (t if t.is_cuda or t.is_pinned() else t.pin_memory() for t in parts)
        return replace(self, inputs=inputs, targets=targets, weights=weights)

    def to(self, device: torch.device) -> Batch:
        """The batch on `device`, staged; the copy to a GPU is not waited for."""
        staged = self.staged(device)
        if device.type == "cpu" or staged.weights is None:
            return staged
        parts = (staged.inputs, staged.targets, staged.weights)
        inputs, targets, weights = (t.to(device, non_blocking=True) for t in parts)
        return replace(staged, inputs=inputs, targets=targets, weights=weights)

    def split(self, rows: int, parts: int = 0) -> Iterator[Batch]:
        """Micro-batches of `rows` rows each, one shape for one graph; `denom` stays that of the whole step.

        `parts`: exactly so many (every rank of a step must make as many), by default as few as hold all rows. What is
        missing is filled up with rows of weight 0.
        """
        have, T = self.inputs.shape
        for part in range(parts or max(1, -(-have // rows))):
            mine = slice(part * rows, (part + 1) * rows)
            inputs, targets = self.inputs[mine], self.targets[mine]
            weights = None if self.weights is None else self.weights[mine]
            missing = rows - len(inputs)
            if missing:
                fill = torch.zeros((missing, T), dtype=torch.int64)
                weights = torch.ones(targets.shape) if weights is None else weights
                inputs, targets = torch.cat([inputs, fill]), torch.cat([targets, fill])
                weights = torch.cat([weights, fill.float()])
            yield Batch(inputs, targets, weights, self.denom, missing)
