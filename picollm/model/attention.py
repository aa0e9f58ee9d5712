"""Causal attention, one function for training and for the KV cache.

Shape legend: B rows, T query positions, S key positions, H query heads, G key/value heads (G divides H),
D channels of a head.

Every backend computes the same function; they differ only in speed:

- `explicit`: two batched matrix products around a softmax. The fastest at the short rows a CPU trains on, because a
  compiler fuses the mask into the softmax; its memory grows with T*S.
- `sdpa`: `torch.nn.functional.scaled_dot_product_attention`, which never stores the T*S scores on a GPU.
- those of `attention_kernels`, for whole rows on a GPU. What they do not cover, a cache or documents kept apart,
  `sdpa` does. Which of them work, and which is fastest, `attention_proof` finds by running them.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from picollm.model.attention_kernels import KERNELS, attend, covers

BACKENDS = ("auto", "explicit", "sdpa", *KERNELS)
EXPLICIT_MAX_LENGTH = 512  # above this the T*S scores cost more than the fused kernel's overhead, even on a CPU


def resolve_backend(backend: str, device: torch.device, length: int) -> str:
    """The backend that `auto` stands for at this device and row length; any other name is returned unchanged.

    Raises:
        ValueError: the name is not one of `BACKENDS`.
    """
    if backend not in BACKENDS:
        raise ValueError(f"unknown attention backend {backend!r}; one of {', '.join(BACKENDS)}")
    if backend != "auto":
        return backend
    return "explicit" if device.type == "cpu" and length <= EXPLICIT_MAX_LENGTH else "sdpa"


def visible(
    queries: int,
    keys: int,
    *,
    window: int | None,
    start: int | Tensor = 0,
    segments: Tensor | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """Which keys each query may see: bool, True = visible, broadcastable to (B, H, T, S).

    Query t of row b stands at position start[b] + t; key j at position j. A key is visible when it is not in the
    future, lies among the last `window` positions (the query's own included), and shares the query's segment.

    Args:
        start: position of the first query, one for all rows or int64 (B,).
        segments: (B, T) document numbers; only without a cache, where T == S.
    """
    j_S = torch.arange(keys, device=device)
    t_T = torch.arange(queries, device=device)
    if isinstance(start, Tensor):
        p = (start[:, None] + t_T)[:, None, :, None]  # (B, 1, T, 1)
    else:
        p = (t_T + start)[:, None]  # (T, 1)
    mask = j_S <= p
    if window is not None:
        mask = mask & (j_S > p - window)
    if segments is not None:
        mask = mask & (segments[:, None, :, None] == segments[:, None, None, :])
    return mask


def attention(
    q_BHTD: Tensor,
    k_BGSD: Tensor,
    v_BGSD: Tensor,
    *,
    window: int | None = None,
    start: int | Tensor = 0,
    segments: Tensor | None = None,
    mask: Tensor | None = None,
    backend: str = "auto",
    blocks: Any = None,
) -> Tensor:
    """Softmax attention of Vaswani et al. 2017 with scale 1/sqrt(D), causal, optionally within a sliding window.

    Args:
        q_BHTD, k_BGSD, v_BGSD: queries, keys and values; heads are grouped when G < H (Ainslie et al. 2023).
        window: how many positions a query sees, its own included; None or >= S is full attention.
        start: position of the first query (0 in training); with a cache, how many keys each row held before.
        segments: (B, T) document numbers that attention must not cross.
        mask: precomputed `visible(...)` of the same arguments, so that layers can share one; for `sdpa` also what is to
            be added to the scores.
        backend: one of `BACKENDS`.
        blocks: `attention_kernels.block_mask` of the same window, which only `flex` reads.

    Returns:
        (B, H, T, D) in the dtype of q.
    """
    B, H, T, D = q_BHTD.shape
    G, S = k_BGSD.shape[1], k_BGSD.shape[2]
    backend = resolve_backend(backend, q_BHTD.device, S)
    if window is not None and window >= S:
        window = None

    common = not isinstance(start, Tensor) and segments is None and mask is None  # all rows see alike
    opening = common and start == 0 and T == S  # the whole row, as in training
    if common and T == 1:
        # One query at a common position: slicing the keys says what a mask would say, for nothing.
        low = 0 if window is None else max(0, start + 1 - window)
        k_BGSD, v_BGSD = k_BGSD[:, :, low : start + 1], v_BGSD[:, :, low : start + 1]
    elif opening and covers(backend, q_BHTD, blocks):
        return attend(backend, q_BHTD, k_BGSD, v_BGSD, window, blocks)
    elif backend != "explicit" and opening and window is None:
        return F.scaled_dot_product_attention(q_BHTD, k_BGSD, v_BGSD, is_causal=True, enable_gqa=G != H)
    elif backend != "explicit" and opening and window is not None:
        return _blocks_of_window(q_BHTD, k_BGSD, v_BGSD, window)
    elif mask is None:
        mask = visible(T, S, window=window, start=start, segments=segments, device=q_BHTD.device)

    if backend != "explicit":
        if T == 1:  # the one query of each head in a group is a row of its group: no keys are copied
            out = F.scaled_dot_product_attention(q_BHTD.reshape(B, G, H // G, D), k_BGSD, v_BGSD, attn_mask=mask)
            return out.reshape(B, H, T, D)
        return F.scaled_dot_product_attention(q_BHTD, k_BGSD, v_BGSD, attn_mask=mask, enable_gqa=G != H)

    if G != H:
        # The queries of one group share its keys: fold them into the row axis instead of copying the keys.
        R = H // G
        q_BHTD = q_BHTD.reshape(B, G, R * T, D)
        if mask is not None and mask.shape[-2] != 1:
            mask = mask.expand(*mask.shape[:-2], T, -1).repeat(*(1,) * (mask.dim() - 2), R, 1)
    scores = (q_BHTD * D**-0.5) @ k_BGSD.transpose(-1, -2)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    # Softmax accumulates in fp32 and rounds once, whatever the dtype of the scores.
    out = torch.softmax(scores, dim=-1, dtype=torch.float32).to(v_BGSD.dtype) @ v_BGSD
    return out.reshape(B, H, T, D)


def _blocks_of_window(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """Sliding window without a T*T mask: queries in blocks of one window see their own block and the one before.

    Work grows with T * 2 * window instead of T * T, and the only mask is (window, 2 * window). Rows are filled up to
    whole blocks at their end, where no real query sees the filling.
    """
    length = q.shape[2]
    if fill := -length % window:
        q, k, v = (F.pad(x, (0, 0, 0, fill)) for x in (q, k, v))
    B, H, T, D = q.shape
    G, blocks = k.shape[1], T // window

    def pairs(x: Tensor) -> Tensor:
        x = x.view(B, G, blocks, window, D)
        before = F.pad(x, (0, 0, 0, 0, 1, 0))[:, :, :-1]
        return torch.cat([before, x], dim=3).transpose(1, 2).reshape(B * blocks, G, 2 * window, D)

    queries = q.view(B, H, blocks, window, D).transpose(1, 2).reshape(B * blocks, H, window, D)
    mask = visible(window, 2 * window, window=window, start=window, device=q.device)
    # The first block has nothing before it: its padding must not share the softmax.
    first = (torch.arange(B * blocks, device=q.device) % blocks == 0)[:, None, None, None]
    padding = (torch.arange(2 * window, device=q.device) < window)[None, None, None, :]
    out = F.scaled_dot_product_attention(
        queries, pairs(k), pairs(v), attn_mask=mask & ~(first & padding), enable_gqa=G != H
    )
    return out.view(B, blocks, H, window, D).transpose(1, 2).reshape(B, H, T, D)[:, :, :length]
