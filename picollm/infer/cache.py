"""What a model remembers of the tokens it has read, so that the next one costs one position and not all of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from picollm.model.attention import visible
from picollm.run.scaling import ModelShape


class KVCache:
    """Keys and values of every layer for a number of slots; a slot holds one row.

    A slot that holds n tokens holds them at places 0..n-1. Places beyond may hold anything: they are masked, and
    written before they are read. A row of `length` tokens never reads its last one, so the last place is spare, and
    writes beyond the end may fall there.

    Attributes:
        k, v: (layers, slots, G, length, C): what one head reads lies together, which a CPU is twice as
            fast with once it outgrows its caches.
    """

    def __init__(
        self,
        shape: ModelShape,
        slots: int,
        length: int,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        size = (shape.depth, slots, shape.kv_heads, length, shape.head_dim)
        self.shape, self.slots, self.length = shape, slots, length
        self.k = torch.zeros(size, device=device, dtype=dtype)
        self.v = torch.zeros(size, device=device, dtype=dtype)
        # The index of each head's first place, (slots, 1, G), with all heads of all slots in a row.
        self.first = (torch.arange(slots * shape.kv_heads, device=device) * length).view(slots, 1, shape.kv_heads)

    @staticmethod
    def token_bytes(shape: ModelShape, dtype: torch.dtype) -> int:
        """Bytes that one token takes."""
        return 2 * shape.depth * shape.kv_dim * dtype.itemsize

    def resized(self, slots: int, length: int) -> KVCache:
        """A cache of at least the present size, with what this one holds."""
        new = KVCache(self.shape, slots, length, device=self.k.device, dtype=self.k.dtype)
        new.k[:, : self.slots, :, : self.length] = self.k
        new.v[:, : self.slots, :, : self.length] = self.v
        return new

    def copy(self, source: int, targets: Sequence[int], tokens: int) -> None:
        """Give slots what the slot `source` holds in its first `tokens` places."""
        for target in targets:
            self.k[:, target, :, :tokens] = self.k[:, source, :, :tokens]
            self.v[:, target, :, :tokens] = self.v[:, source, :, :tokens]

    def write(self, layer: int, span: Span, k_BTGC: Tensor, v_BTGC: Tensor) -> None:
        """Store the span's keys and values of one layer."""
        for store, new in ((self.k, k_BTGC), (self.v, v_BTGC)):
            store[layer].flatten(0, 2).index_copy_(0, span.index, new.flatten(0, 2))

    def read(self, layer: int, span: Span) -> tuple[Tensor, Tensor]:
        """Keys and values of the span's rows up to its last place, both (B, G, S, C)."""
        return self.k[layer][span.rows, :, : span.keys], self.v[layer][span.rows, :, : span.keys]


@dataclass(frozen=True)
class Span:
    """Where the tokens of one pass stand: B rows of T tokens.

    Attributes:
        rows: their slots.
        places: int64 (B or 1, T), positions in the row.
        index: int64 (B * T * G), where to write, see `KVCache.first`.
        keys: S, one more than the last place that any of them may see.
        start: first position of each row, one for all or int64 (B,); 0 opens the rows.
        masks: by window, what each query may see, added to the scores, (B, 1, T, S); empty when all rows stand alike.
    """

    cache: KVCache
    rows: slice | Tensor
    places: Tensor
    index: Tensor
    keys: int
    start: int | Tensor
    masks: dict[int | None, Tensor] = field(default_factory=dict)

    @property
    def opens(self) -> bool:
        return isinstance(self.start, int) and self.start == 0


def opening(cache: KVCache, slots: Sequence[int], tokens: int) -> Span:
    """Rows that begin: `tokens` places from the first one on. Shorter rows are padded at their end."""
    rows, places = _tensor(slots, cache), torch.arange(tokens, device=cache.k.device)[None]
    return Span(cache, rows, places, _index(cache, rows, places), tokens, 0)


def continuing(
    cache: KVCache, slots: Sequence[int], held: Sequence[int], tokens: int, windows: Iterable[int | None]
) -> Span:
    """Rows that hold `held` tokens each and read `tokens` more, padded at their end."""
    rows, start = _tensor(slots, cache), _tensor(held, cache)
    places = start[:, None] + torch.arange(tokens, device=start.device)
    places = places.clamp_(max=cache.length - 1)  # only the padding of a shorter row can lie beyond
    keys = min(max(held) + tokens, cache.length)
    masks = {w: _added(visible(tokens, keys, window=w, start=start, device=start.device), cache) for w in set(windows)}
    return Span(cache, rows, places, _index(cache, rows, places), keys, start, masks)


def next_token(cache: KVCache, place_B: Tensor, keys: int, windows: Iterable[int | None], *, alike: bool) -> Span:
    """One token for each of the first B slots, at `place_B`.

    Args:
        keys: more than any place, unless the slot's result is of no use.
        alike: all rows stand at place `keys` - 1, so that slicing says what masks would.
    """
    B = place_B.numel()
    masks = {}
    if not alike:
        seen_BS = torch.arange(keys, device=place_B.device) <= place_B[:, None]
        for w in set(windows):
            near = seen_BS
            if w is not None and w < keys:
                near = seen_BS & (torch.arange(keys, device=place_B.device) > place_B[:, None] - w)
            masks[w] = _added(near[:, None, None], cache)
    rows, places = slice(0, B), place_B[:, None]
    return Span(cache, rows, places, _index(cache, rows, places), keys, place_B, masks)


def _index(cache: KVCache, rows: slice | Tensor, places_BT: Tensor) -> Tensor:
    return (cache.first[rows] + places_BT[..., None]).flatten()


def _tensor(numbers: Sequence[int], cache: KVCache) -> Tensor:
    return torch.tensor(list(numbers), device=cache.k.device)


def _added(mask: Tensor, cache: KVCache) -> Tensor:
    """A mask to be added to scores. Kernels make this of a bool one themselves, but in every layer."""
    return torch.zeros(mask.shape, dtype=cache.k.dtype, device=mask.device).masked_fill_(~mask, float("-inf"))
