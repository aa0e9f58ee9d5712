"""What a model remembers of the tokens it has read, so that the next one costs one position and not all of them."""

from __future__ import annotations

import torch
from torch import Tensor

from picollm.run.scaling import ModelShape


class KVCache:
    """Keys and values of every layer, in tensors that never move or grow.

    Rows are left-aligned: row b holds `pos[b]` tokens at slots 0..pos[b]-1. Slots beyond may hold anything (the
    padding of a longer neighbour's prompt); they are masked, and overwritten as the row grows.

    Attributes:
        k, v: (layers, B, G, Tmax, C).
        pos: int64 (B,), tokens held by each row.
        bound: the largest `pos`, kept on the host so that no step has to ask the device.
        uniform: all rows hold `bound` tokens; lets a step slice instead of mask.
        previous: (B, 1, D) normed embedding of each row's last token, for the smear; None while empty.
    """

    def __init__(
        self,
        shape: ModelShape,
        rows: int,
        length: int,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        size = (shape.depth, rows, shape.kv_heads, length, shape.head_dim)
        self.k = torch.zeros(size, device=device, dtype=dtype)
        self.v = torch.zeros(size, device=device, dtype=dtype)
        self.pos = torch.zeros(rows, device=device, dtype=torch.int64)
        self.rows = torch.arange(rows, device=device)
        self.length = length
        self.bound = 0
        self.uniform = True
        self.previous: Tensor | None = None
        self.real: Tensor | None = None  # (B,) real tokens of each row in the step under way

    def expect(self, lengths: list[int]) -> None:
        """Announce that the next step brings padded prompts of these real lengths into an empty cache."""
        assert self.bound == 0, "padded prompts can only open a cache"
        self.real = torch.tensor(lengths, dtype=torch.int64, device=self.pos.device)
        self._lengths = lengths

    def write(self, layer: int, k_BGTC: Tensor, v_BGTC: Tensor) -> tuple[Tensor, Tensor]:
        """Store the new positions of one layer and return views of all slots in use, (B, G, S, C)."""
        T = k_BGTC.shape[2]
        end = self.bound + T
        k, v = self.k[layer], self.v[layer]
        if self.uniform:
            k[:, :, self.bound : end] = k_BGTC
            v[:, :, self.bound : end] = v_BGTC
        elif T == 1:
            k[self.rows, :, self.pos] = k_BGTC[:, :, 0]
            v[self.rows, :, self.pos] = v_BGTC[:, :, 0]
        else:
            slots = (self.pos[:, None] + torch.arange(T, device=k.device)).clamp_(max=self.length - 1)
            k[self.rows[:, None], :, slots] = k_BGTC.transpose(1, 2)
            v[self.rows[:, None], :, slots] = v_BGTC.transpose(1, 2)
        return k[:, :, :end], v[:, :, :end]

    def advance(self, steps: int) -> None:
        """All rows grew by `steps` positions, or by their announced real lengths."""
        if self.real is not None:
            self.pos = self.real
            self.bound = max(self._lengths)
            self.uniform = min(self._lengths) == self.bound
            self.real = None
            return
        self.pos += steps
        self.bound += steps

    def keep(self, rows: Tensor) -> None:
        """Become the cache of these rows (int64 indices): fewer when some have finished, repeated to branch."""
        self.k, self.v = self.k[:, rows], self.v[:, rows]
        self.pos = self.pos[rows]
        self.rows = torch.arange(self.pos.numel(), device=self.pos.device)
        lengths = self.pos.tolist()
        self.bound, self.uniform = max(lengths), min(lengths) == max(lengths)
        if self.previous is not None:
            self.previous = self.previous[rows]
